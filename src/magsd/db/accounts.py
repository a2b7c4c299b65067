"""Accounts, by name and by id."""

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from magsd.db.schema import account
from magsd.model.names import AccountId, new_account_id
from magsd.model.records import Account


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


def _record(row: Row[Any]) -> Account:
    return Account(AccountId(row.account_id), row.name, row.created_at)
