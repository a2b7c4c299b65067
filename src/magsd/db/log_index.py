"""Which logs have been put away, where and how large; which of them the object store has."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, insert, select, tuple_, update

from magsd.db.schema import log_index
from magsd.model.names import AccountId, RequestId

_STORE: Final = (
    update(log_index)
    .where(
        log_index.c.request_id == bindparam("its_request_id"),
        log_index.c.epoch == bindparam("its_epoch"),
    )
    .values(
        stored_at=bindparam("at"),
        object_bytes=bindparam("its_bytes"),
        object_sha256=bindparam("its_sha256"),
    )
)


@dataclass(frozen=True, slots=True)
class LogObject:
    """What a log is in the object store."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class LogRecord:
    """The log of one life of a job, put away."""

    request_id: RequestId
    epoch: int
    account_id: AccountId
    archived_at: datetime
    """When it was put away on its node."""
    stored: LogObject | None
    """None while the object store does not have it."""


def add(
    tx: Connection,
    *,
    request_id: RequestId,
    epoch: int,
    account_id: AccountId,
    node: str,
    size_bytes: int,
    at: datetime,
) -> None:
    """Record that the log of one life of a job was put away. Asking again changes nothing."""
    known = select(log_index.c.epoch).where(
        log_index.c.request_id == request_id, log_index.c.epoch == epoch
    )
    if (tx.execute(known)).one_or_none() is not None:
        return
    tx.execute(
        insert(log_index),
        {
            "request_id": request_id,
            "epoch": epoch,
            "account_id": account_id,
            "node": node,
            "size_bytes": size_bytes,
            "archived_at": at,
        },
    )


def of_job(tx: Connection, request_id: RequestId) -> dict[int, LogRecord]:
    """Return what is known of a job's logs, by epoch."""
    rows = tx.execute(select(log_index).where(log_index.c.request_id == request_id))
    return {row.epoch: record(row) for row in rows}


def unstored(tx: Connection, node: str, after: LogRecord | None, limit: int) -> Sequence[LogRecord]:
    """Return logs on `node` that the object store does not have, oldest first, from `after` on."""
    order = (log_index.c.archived_at, log_index.c.request_id, log_index.c.epoch)
    query = select(log_index).where(log_index.c.node == node, log_index.c.stored_at.is_(None))
    if after is not None:
        query = query.where(tuple_(*order) > (after.archived_at, after.request_id, after.epoch))
    return [record(row) for row in tx.execute(query.order_by(*order).limit(limit))]


def store(
    tx: Connection, stored: Collection[tuple[RequestId, int, LogObject]], at: datetime
) -> None:
    """Record that the object store has these logs."""
    for request_id, epoch, kept in stored:
        tx.execute(
            _STORE,
            {
                "its_request_id": request_id,
                "its_epoch": epoch,
                "at": at,
                "its_bytes": kept.size_bytes,
                "its_sha256": kept.sha256,
            },
        )


def known(
    tx: Connection, places: Collection[tuple[RequestId, int]]
) -> dict[tuple[RequestId, int], LogRecord]:
    """Return what is known of these logs."""
    which = tuple_(log_index.c.request_id, log_index.c.epoch).in_(places)
    rows = [record(row) for row in tx.execute(select(log_index).where(which))]
    return {(row.request_id, row.epoch): row for row in rows}


def remove(tx: Connection, logs: Collection[LogRecord]) -> None:
    """Forget logs that are gone everywhere."""
    for log in logs:
        tx.execute(
            delete(log_index).where(
                log_index.c.request_id == log.request_id, log_index.c.epoch == log.epoch
            )
        )


def record(row: Any) -> LogRecord:
    """Return the log in a row."""
    is_stored = row.stored_at is not None
    return LogRecord(
        request_id=RequestId(row.request_id),
        epoch=row.epoch,
        account_id=AccountId(row.account_id),
        archived_at=row.archived_at,
        stored=LogObject(row.object_bytes, row.object_sha256) if is_stored else None,
    )
