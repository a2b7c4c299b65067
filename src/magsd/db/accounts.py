"""Accounts, by name and by id, and what they may have."""

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select, update

from magsd.db.schema import account
from magsd.model.names import AccountId, new_account_id
from magsd.model.quota import Quota
from magsd.model.records import Account

_LIMITS: Final = tuple(field.name for field in dataclasses.fields(Quota))


def by_name(tx: Connection, name: str) -> Account | None:
    """Return the account called `name`."""
    row = (tx.execute(select(account).where(account.c.name == name))).one_or_none()
    return None if row is None else _record(row)


def ensure(tx: Connection, name: str, now: datetime) -> Account:
    """Return the account called `name`, made if it is new."""
    if (found := by_name(tx, name)) is not None:
        return found
    made = Account(new_account_id(), name, now)
    tx.execute(
        insert(account),
        {"account_id": made.account_id, "name": made.name, "created_at": made.created_at},
    )
    return made


def quotas(tx: Connection) -> Mapping[AccountId, Quota]:
    """Return the quotas of all accounts that have one of their own."""
    columns = [account.c[name] for name in _LIMITS]
    rows = tx.execute(select(account.c.account_id, *columns))
    found = {AccountId(row.account_id): _quota(row) for row in rows}
    return {account_id: quota for account_id, quota in found.items() if quota != Quota()}


def listed(tx: Connection) -> Sequence[tuple[Account, Quota]]:
    """Return all accounts and their quotas, by name."""
    rows = tx.execute(select(account).order_by(account.c.name))
    return [(_record(row), _quota(row)) for row in rows]


def set_quota(tx: Connection, account_id: AccountId, quota: Quota) -> None:
    """Give an account a quota in place of the one it has."""
    changed = update(account).where(account.c.account_id == account_id)
    tx.execute(changed.values(dataclasses.asdict(quota)))


def _quota(row: Row[Any]) -> Quota:
    return Quota(*(getattr(row, name) for name in _LIMITS))


def _record(row: Row[Any]) -> Account:
    return Account(AccountId(row.account_id), row.name, row.created_at)
