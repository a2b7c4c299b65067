"""Grants and aliases: small tables, of which the core has a copy in memory."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    Connection,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    not_,
    or_,
    select,
    update,
)

from magsd.db.schema import alias, grant, job, run, token
from magsd.model.grants import Alias, Grant, GrantKind
from magsd.model.lifecycle import RunState
from magsd.model.names import AccountId, GrantId, RequestId, TokenId

_HAS_ENDED: Final = exists().where(
    job.c.request_id == grant.c.request_id,
    run.c.run_id == job.c.run_id,
    run.c.state == RunState.ENDED,
)
_HAS_TOKEN: Final = exists().where(token.c.token_id == grant.c.token_id)
_TOUCH: Final = (
    update(grant)
    .where(grant.c.grant_id == bindparam("of_grant"))
    .values(expires_at=bindparam("until"))
)


def add(tx: Connection, new: Grant) -> None:
    """Store a grant."""
    tx.execute(
        insert(grant),
        {
            "grant_id": new.grant_id,
            "account_id": new.account_id,
            "request_id": new.request_id,
            "workspace_id": None,
            "kind": new.kind,
            "port": new.port,
            "fingerprint": new.fingerprint,
            "created_at": new.created_at,
            "expires_at": new.expires_at,
            "token_id": new.token_id,
            "ends_at": new.ends_at,
        },
    )


def of_job(tx: Connection, request_id: RequestId, kind: GrantKind) -> Sequence[Grant]:
    """Return the grants of a job, the newest first."""
    query = select(grant).where(grant.c.request_id == request_id, grant.c.kind == kind)
    rows = tx.execute(query.order_by(grant.c.created_at.desc(), grant.c.grant_id))
    return [_grant(row) for row in rows]


def remove(tx: Connection, grants: Collection[GrantId]) -> None:
    """Forget grants."""
    tx.execute(delete(grant).where(grant.c.grant_id.in_(grants)))


def touch(tx: Connection, until: Mapping[GrantId, datetime]) -> None:
    """Record when keys expire that were used."""
    tx.execute(_TOUCH, [{"of_grant": each, "until": moment} for each, moment in until.items()])


def remove_dead(tx: Connection, now: datetime) -> None:
    """Forget grants of jobs that have ended, of tokens that are gone, and those past their time."""
    has_no_token = and_(grant.c.token_id.is_not(None), not_(_HAS_TOKEN))
    is_past = or_(grant.c.expires_at <= now, grant.c.ends_at <= now)
    tx.execute(delete(grant).where(or_(_HAS_ENDED, has_no_token, is_past)))


def all_grants(tx: Connection) -> Sequence[Grant]:
    """Return every grant of a job, oldest first."""
    rows = tx.execute(
        select(grant)
        .where(grant.c.request_id.is_not(None))
        .order_by(grant.c.created_at, grant.c.grant_id)
    )
    return [_grant(row) for row in rows]


def add_alias(tx: Connection, new: Alias, at_most: int) -> bool:
    """Store an alias. False: the account has `at_most` of them already.

    Raises `LookupError` when somebody has the name.
    """
    if tx.execute(select(alias.c.subdomain).where(alias.c.subdomain == new.subdomain)).first():
        raise LookupError(new.subdomain)
    counted = select(func.count()).select_from(alias).where(alias.c.account_id == new.account_id)
    if tx.execute(counted).scalar_one() >= at_most:
        return False
    tx.execute(
        insert(alias),
        {
            "subdomain": new.subdomain,
            "account_id": new.account_id,
            "workspace_id": new.workspace,
            "port": new.port,
            "created_at": new.created_at,
        },
    )
    return True


def remove_alias(tx: Connection, account_id: AccountId, subdomain: str) -> bool:
    """Forget an alias of an account. False: it has none of that name."""
    its = alias.c.subdomain == subdomain, alias.c.account_id == account_id
    return tx.execute(delete(alias).where(*its)).rowcount == 1


def all_aliases(tx: Connection) -> Sequence[Alias]:
    """Return every alias, oldest first."""
    return [
        Alias(
            subdomain=row.subdomain,
            account_id=AccountId(row.account_id),
            workspace=row.workspace_id,
            port=row.port,
            created_at=row.created_at,
        )
        for row in tx.execute(select(alias).order_by(alias.c.created_at, alias.c.subdomain))
    ]


def _grant(row: Any) -> Grant:
    return Grant(
        grant_id=GrantId(row.grant_id),
        account_id=AccountId(row.account_id),
        request_id=RequestId(row.request_id),
        kind=GrantKind(row.kind),
        port=row.port,
        created_at=row.created_at,
        token_id=None if row.token_id is None else TokenId(row.token_id),
        ends_at=row.ends_at,
        fingerprint=row.fingerprint,
        expires_at=row.expires_at,
    )
