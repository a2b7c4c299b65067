"""What an account's rows say of its use: counted by the database, however many there are."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Connection,
    and_,
    cast,
    func,
    or_,
    select,
    type_coerce,
    union_all,
)

from magsd.db import files, naps
from magsd.db.schema import job, layer, run
from magsd.model.lifecycle import RunState
from magsd.model.names import AccountId
from magsd.model.usage import seconds_by_day

_DAY_US: Final = 86_400_000_000
_SECOND_US: Final = 1_000_000
_EPOCH: Final = date(1970, 1, 1)
_RUNNING: Final = (RunState.RUNNING, RunState.SUSPENDING, RunState.STOPPING)


def jobs_by_day(tx: Connection, account_id: AccountId, since: datetime) -> Mapping[date, int]:
    """Count the jobs that were submitted since then, by the day."""
    day = _day(job.c.created_at)
    of_account = job.c.account_id == account_id, job.c.created_at >= since
    query = select(day, func.count()).where(*of_account).group_by(day)
    return {_date(number): count for number, count in tx.execute(query)}


def ended(tx: Connection, account_id: AccountId, since: datetime) -> tuple[int, int]:
    """Count the jobs that have ended since then: how many completed, and how many failed."""
    # No job has several of them; and nothing but an index is read for it.
    query = select(func.count(), func.count(run.c.code)).where(
        run.c.account_id == account_id, run.c.ended_at >= since
    )
    total, failed = tx.execute(query).one()
    return total - failed, failed


def running(tx: Connection, account_id: AccountId) -> int:
    """Count the jobs whose script runs at this moment."""
    is_running = run.c.account_id == account_id, run.c.state.in_(_RUNNING)
    return tx.execute(select(func.count()).select_from(run).where(*is_running)).scalar_one()


def vm_seconds(
    tx: Connection, account_id: AccountId, since: datetime, now: datetime
) -> Mapping[date, float]:
    """Return for how many seconds jobs had VMs, by the day; those that have theirs included, and
    sleep left out."""
    found: defaultdict[date, float] = defaultdict(float)
    own = and_(run.c.account_id == account_id, run.c.started_at.is_not(None))
    day = _day(run.c.started_at)
    is_within = run.c.started_at >= since, run.c.ended_at >= since
    # Nearly all begin and end on one day: the database adds them up.
    lasted = _us(run.c.ended_at) - _us(run.c.started_at)
    of_one_day = (
        select(day, cast(func.sum(lasted), BigInteger))
        .where(own, *is_within, day == _day(run.c.ended_at), lasted > 0)
        .group_by(day)
    )
    for number, microseconds in tx.execute(of_one_day):
        found[_date(number)] += microseconds / _SECOND_US
    columns = select(run.c.started_at, run.c.ended_at).where(own)
    others = union_all(
        columns.where(run.c.ended_at >= since, day != _day(run.c.ended_at)),
        columns.where(run.c.ended_at.is_(None)),
    )
    for started_at, ended_at in tx.execute(others):
        for date_, seconds in seconds_by_day(max(started_at, since), ended_at or now).items():
            found[date_] += seconds
    for date_, seconds in _asleep(tx, account_id, since, now).items():
        found[date_] = max(0.0, found[date_] - seconds)
    return found


def _asleep(
    tx: Connection, account_id: AccountId, since: datetime, now: datetime
) -> Mapping[date, float]:
    found = defaultdict(float, naps.seconds_of_days(tx, account_id, since.date()))
    # Sleeps that are not over, and those that a job ended in.
    open_ones = select(run.c.slept_at, run.c.ended_at).where(
        run.c.account_id == account_id,
        run.c.slept_at.is_not(None),
        or_(run.c.ended_at.is_(None), run.c.ended_at >= since),
    )
    for slept_at, ended_at in tx.execute(open_ones):
        for date_, seconds in seconds_by_day(max(slept_at, since), ended_at or now).items():
            found[date_] += seconds
    return found


def storage_bytes(tx: Connection, account_id: AccountId) -> int:
    """Return how large an account's workspaces and uploads are; what several have in common
    counts once."""
    total = cast(func.coalesce(func.sum(layer.c.size_bytes), 0), BigInteger)
    layers = tx.execute(select(total).where(layer.c.account_id == account_id)).scalar_one()
    return int(layers) + files.size_bytes(tx, account_id)


def _us(moment: Any) -> Any:
    return type_coerce(moment, BigInteger)


def _day(moment: Any) -> Any:
    return _us(moment) // _DAY_US


def _date(number: int) -> date:
    return _EPOCH + timedelta(days=int(number))
