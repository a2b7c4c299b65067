"""What callers can do with uploads: hand one in, and name it in a job.

An upload has its row before its object comes, and until that is gone; so
whatever breaks between is found again by the row (`OldFiles`).
"""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from magsd.aio import finish
from magsd.core.node import Node
from magsd.db import files
from magsd.model.errors import CapacityError, InvalidError, NotFoundError, QuotaError
from magsd.model.names import AccountId, new_file_id
from magsd.model.records import Principal
from magsd.model.uploads import FILES_MAX, StoredFile, UploadedFile, safe_name
from magsd.storage.uploads import Received

_AT_ONCE: Final = 32
"""Uploads on their way together: each may have its whole size on the disk."""
_AT_ONCE_OF_ACCOUNT: Final = 8
_ID_SHOWN: Final = 64


class Files:
    """The uploads of a node, as accounts see them."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._receiving: Counter[AccountId] = Counter()

    @asynccontextmanager
    async def receiving(self, principal: Principal) -> AsyncIterator[Received]:
        """Have a place inside the block for an upload, which is lost unless it is kept.

        Raises `QuotaError` and `CapacityError`.
        """
        account_id = principal.account_id
        if self._receiving[account_id] >= _AT_ONCE_OF_ACCOUNT:
            raise QuotaError(
                f"{_AT_ONCE_OF_ACCOUNT} uploads of this account are on their way: "
                "wait until one of them is done"
            )
        if self._receiving.total() >= _AT_ONCE:
            raise CapacityError(f"{_AT_ONCE} uploads are on their way: try again in a moment")
        self._receiving[account_id] += 1
        try:
            kept = await self._node.database.read(lambda tx: files.size_bytes(tx, account_id))
            self._node.quotas.of(account_id).check_files(kept, 1)
            async with self._node.files.receiving() as received:
                yield received
        finally:
            self._receiving[account_id] -= 1
            if not self._receiving[account_id]:
                del self._receiving[account_id]

    async def keep(self, principal: Principal, received: Received, name: str) -> UploadedFile:
        """Keep what was received, durably, under the last element of `name`.

        Raises `QuotaError`, and `CapacityError` while the store is away.
        """
        await received.flush()
        file = UploadedFile(new_file_id(), safe_name(name), received.size_bytes, received.sha256)
        stored = StoredFile(file, principal.account_id, self._node.clock.now())
        await finish(self._kept(stored, received))
        return file

    async def _kept(self, stored: StoredFile, received: Received) -> None:
        quota, database = self._node.quotas.of(stored.account_id), self._node.database

        def add(tx: Connection) -> None:
            quota.check_files(files.size_bytes(tx, stored.account_id), stored.file.size_bytes)
            files.add(tx, stored)

        await database.write(add)
        await self._node.files.put(stored, received)
        await database.write(lambda tx: files.set_stored(tx, stored.file.file_id))

    async def chosen(
        self, principal: Principal, file_ids: Sequence[str]
    ) -> tuple[UploadedFile, ...]:
        """Return the uploads that a job asks for, in its order.

        Raises `InvalidError` for too many, `NotFoundError` for one that is not the caller's.
        """
        if not file_ids:
            return ()
        if len(file_ids) > FILES_MAX:
            raise InvalidError(f"file_ids: a job may have at most {FILES_MAX} files")
        known = await self._node.database.read(
            lambda tx: files.of_account(tx, principal.account_id, file_ids)
        )
        for file_id in file_ids:
            if file_id not in known:
                raise NotFoundError(
                    f"file_ids: there is no upload {file_id[:_ID_SHOWN]!r}: upload the file "
                    "(POST /mags-files) and use the file_id of the answer"
                )
        return tuple(known[file_id] for file_id in file_ids)


def use(
    tx: Connection, account_id: AccountId, chosen: Sequence[UploadedFile], now: datetime
) -> None:
    """Note that a job begins to need uploads. Raises `NotFoundError` when one is just going."""
    if chosen and not files.use(tx, account_id, [file.file_id for file in chosen], now):
        raise NotFoundError("file_ids: one of the uploads was deleted just now: upload it again")
