"""Tokens: hashed secrets with an account, scopes and an expiry."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, delete, func, insert, select, update

from magsd.db.schema import account, token
from magsd.model.names import AccountId, TokenId
from magsd.model.records import Scope, TokenRecord

_SELECT: Final = select(token, account.c.name.label("account")).join(account)
_TOUCH: Final = (
    update(token)
    .where(token.c.token_id == bindparam("of_token"))
    .values(last_used_at=bindparam("used_at"))
)


def add(tx: Connection, record: TokenRecord, secret_sha256: str) -> None:
    """Store a token."""
    tx.execute(
        insert(token),
        {
            "token_id": record.token_id,
            "account_id": record.account_id,
            "name": record.name,
            "secret_sha256": secret_sha256,
            "scopes": " ".join(sorted(record.scopes)),
            "created_at": record.created_at,
            "expires_at": record.expires_at,
            "last_used_at": record.last_used_at,
        },
    )


def by_secret(tx: Connection, secret_sha256: str) -> TokenRecord | None:
    """Return the token whose secret has this hash."""
    row = (tx.execute(_SELECT.where(token.c.secret_sha256 == secret_sha256))).one_or_none()
    return None if row is None else _record(row)


def get(tx: Connection, token_id: str) -> TokenRecord | None:
    """Return a token by its id."""
    row = (tx.execute(_SELECT.where(token.c.token_id == token_id))).one_or_none()
    return None if row is None else _record(row)


def listed(tx: Connection, account_id: AccountId | None) -> list[TokenRecord]:
    """Return the tokens of an account, or of all (None), oldest first."""
    query = _SELECT.order_by(token.c.created_at, token.c.token_id)
    if account_id is not None:
        query = query.where(token.c.account_id == account_id)
    return [_record(row) for row in tx.execute(query)]


def count(tx: Connection) -> int:
    """Return how many tokens there are."""
    return (tx.execute(select(func.count()).select_from(token))).scalar_one()


def remove(tx: Connection, token_id: str) -> None:
    """Forget a token."""
    tx.execute(delete(token).where(token.c.token_id == token_id))


def touch(tx: Connection, used_at: Mapping[TokenId, datetime]) -> None:
    """Record when tokens were used last."""
    tx.execute(_TOUCH, [{"of_token": token_id, "used_at": at} for token_id, at in used_at.items()])


def _record(row: Row[Any]) -> TokenRecord:
    return TokenRecord(
        token_id=TokenId(row.token_id),
        account_id=AccountId(row.account_id),
        account=row.account,
        name=row.name,
        scopes=frozenset(Scope(scope) for scope in row.scopes.split()),
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
    )
