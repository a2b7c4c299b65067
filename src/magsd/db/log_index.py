"""Which logs have been put away, where and how large: what retention goes by."""

from datetime import datetime

from sqlalchemy import Connection, insert, select

from magsd.db.schema import log_index
from magsd.model.names import AccountId, RequestId


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
