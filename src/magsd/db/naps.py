"""How long runs slept, by the day: what the usage of an account leaves out."""

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Final

from sqlalchemy import BigInteger, Connection, cast, func, insert, select, update

from magsd.db.schema import nap
from magsd.model.names import AccountId, RunId
from magsd.model.usage import seconds_by_day

_EPOCH: Final = date(1970, 1, 1)
_SECOND_US: Final = 1_000_000


def add(
    tx: Connection, run_id: RunId, account_id: AccountId, slept_at: datetime, woke_at: datetime
) -> None:
    """Count a sleep that is over."""
    for day, seconds in seconds_by_day(slept_at, woke_at).items():
        number = (day - _EPOCH).days
        its = nap.c.run_id == run_id, nap.c.day == number
        more = int(seconds * _SECOND_US)
        longer = update(nap).where(*its).values(microseconds=nap.c.microseconds + more)
        if tx.execute(longer).rowcount == 0:
            key = {"run_id": run_id, "day": number, "account_id": account_id}
            tx.execute(insert(nap), key | {"microseconds": more})


def seconds_of_days(tx: Connection, account_id: AccountId, since: date) -> Mapping[date, float]:
    """Return for how many seconds an account's runs slept, without sleeps that are not over."""
    total = cast(func.sum(nap.c.microseconds), BigInteger)
    query = select(nap.c.day, total).where(
        nap.c.account_id == account_id, nap.c.day >= (since - _EPOCH).days
    )
    rows = tx.execute(query.group_by(nap.c.day))
    return {_EPOCH + timedelta(days=day): int(us) / _SECOND_US for day, us in rows}
