"""Uploads. A row is there before its object, and until that is gone."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Connection,
    Row,
    and_,
    cast,
    delete,
    func,
    insert,
    not_,
    or_,
    select,
    update,
)

from magsd.db.schema import file
from magsd.model.names import AccountId, FileId
from magsd.model.uploads import StoredFile, UploadedFile

_IS_STORED: Final = file.c.is_stored.is_(True)


def add(tx: Connection, new: StoredFile) -> None:
    """Store an upload whose object is to come."""
    tx.execute(
        insert(file),
        {
            "file_id": new.file.file_id,
            "account_id": new.account_id,
            "name": new.file.name,
            "size_bytes": new.file.size_bytes,
            "sha256": new.file.sha256,
            "created_at": new.created_at,
            "used_at": new.created_at,
            "is_stored": False,
        },
    )


def set_stored(tx: Connection, file_id: FileId) -> None:
    """Note that the object store has an upload: from now on jobs may use it."""
    tx.execute(update(file).where(file.c.file_id == file_id).values(is_stored=True))


def of_account(
    tx: Connection, account_id: AccountId, file_ids: Collection[str]
) -> dict[str, UploadedFile]:
    """Return those of the uploads that are the account's, by id."""
    chosen = file.c.account_id == account_id, file.c.file_id.in_(file_ids), _IS_STORED
    return {row.file_id: _record(row).file for row in tx.execute(select(file).where(*chosen))}


def use(tx: Connection, account_id: AccountId, file_ids: Collection[FileId], now: datetime) -> bool:
    """Note that a job asked for uploads. False: one of them is there no more."""
    chosen = file.c.account_id == account_id, file.c.file_id.in_(file_ids), _IS_STORED
    return tx.execute(update(file).where(*chosen).values(used_at=now)).rowcount == len(file_ids)


def size_bytes(tx: Connection, account_id: AccountId) -> int:
    """Return what an account's uploads have together, those on their way included."""
    total = cast(func.coalesce(func.sum(file.c.size_bytes), 0), BigInteger)
    return int(tx.execute(select(total).where(file.c.account_id == account_id)).scalar_one())


def withdraw(
    tx: Connection, *, used_before: datetime | None, begun_before: datetime, limit: int
) -> Sequence[StoredFile]:
    """Take uploads back that nobody used since (None: they stay), and those that were begun and
    never came; the longest unused first. No job can use them from now on."""
    is_left = and_(not_(_IS_STORED), file.c.created_at < begun_before)
    if used_before is not None:
        is_left = or_(file.c.used_at < used_before, is_left)
    query = select(file).where(is_left).order_by(file.c.used_at).limit(limit)
    found = [_record(row) for row in tx.execute(query)]
    ids = [each.file.file_id for each in found]
    tx.execute(update(file).where(file.c.file_id.in_(ids)).values(is_stored=False))
    return found


def remove(tx: Connection, file_ids: Collection[FileId]) -> None:
    """Forget uploads whose objects are gone."""
    tx.execute(delete(file).where(file.c.file_id.in_(file_ids)))


def _record(row: Row[Any]) -> StoredFile:
    stored = UploadedFile(FileId(row.file_id), row.name, row.size_bytes, row.sha256)
    return StoredFile(stored, AccountId(row.account_id), row.created_at)
