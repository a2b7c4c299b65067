"""Uploads on their way: from a request to the object store, and from there to this machine.

Owns the files that lie here meanwhile; none of them is ever in memory as a
whole. Which uploads there are, and whose, is for the caller to know.
"""

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from magsd.aio import finish
from magsd.model.errors import CapacityError, MagsError, NotFoundError, TooLargeError
from magsd.model.names import FileId
from magsd.model.uploads import UPLOAD_MAX_BYTES, StoredFile
from magsd.storage.layer_files import disk_errors
from magsd.storage.objects import ObjectStore

_PIECE_BYTES: Final = 1 << 20


class GoneError(MagsError):
    """The object store has an upload no more, or something else in its place."""


class Received:
    """An upload that is being received."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self.size_bytes = 0
        self._file = file
        self._digest = hashlib.sha256()
        self._pending = bytearray()

    @property
    def sha256(self) -> str:
        """Of all that was written and flushed."""
        return self._digest.hexdigest()

    async def write(self, data: bytes) -> None:
        """Take some of it. Raises `TooLargeError` and `CapacityError`."""
        self.size_bytes += len(data)
        if self.size_bytes > UPLOAD_MAX_BYTES:
            raise TooLargeError(
                f"the file is larger than {UPLOAD_MAX_BYTES >> 20} MiB: have the script fetch it, "
                "or send it in parts"
            )
        self._pending += data
        if len(self._pending) >= _PIECE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Have all of it in the file. Raises `CapacityError`."""
        pending, self._pending = self._pending, bytearray()

        def work() -> None:
            self._digest.update(pending)
            self._file.write(pending)
            self._file.flush()

        with disk_errors():
            await finish(asyncio.to_thread(work))


@dataclass
class _Copy:
    """An upload on this machine: the first who wants it fetches it, the last removes it."""

    path: Path
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    is_whole: bool = False


class UploadStore:
    """The uploads of one data directory. Belongs to one event loop.

    What is left in `tmp` by a process that died goes when the next one starts.
    """

    def __init__(
        self, data_directory: Path, objects: ObjectStore, *, free_min_bytes: int = 0
    ) -> None:
        """`free_min_bytes`: what is to be free on the disk beside an upload."""
        self._folder = data_directory / "tmp"
        self._objects = objects
        self._free_min_bytes = free_min_bytes
        self._copies: dict[FileId, _Copy] = {}

    @asynccontextmanager
    async def receiving(self) -> AsyncIterator[Received]:
        """Have a place to write an upload to inside the block. Raises `CapacityError`."""
        with disk_errors():
            path = await asyncio.to_thread(self._new_path, UPLOAD_MAX_BYTES)
            file = path.open("xb")
        try:
            yield Received(path, file)
        finally:
            file.close()
            await finish(asyncio.to_thread(path.unlink, missing_ok=True))

    async def put(self, stored: StoredFile, received: Received) -> None:
        """Have the object store keep what was received. Raises `CapacityError`."""
        await self._objects.put(stored.key, received.path)

    async def delete(self, stored: StoredFile) -> None:
        """Remove an upload from the object store. Raises `CapacityError`."""
        await self._objects.delete(stored.key)

    @asynccontextmanager
    async def here(self, stored: StoredFile) -> AsyncIterator[Path]:
        """Have an upload as a file on this machine inside the block; others who do share it.

        Raises `GoneError`, and `CapacityError` while the store is away or the disk full.
        """
        file_id = stored.file.file_id
        if (copy := self._copies.get(file_id)) is None:
            with disk_errors():
                path = await asyncio.to_thread(self._new_path, stored.file.size_bytes)
            copy = self._copies.setdefault(file_id, _Copy(path))
        copy.users += 1
        try:
            async with copy.lock:
                if not copy.is_whole:
                    await self._fetch(stored, copy.path)
                    copy.is_whole = True
            yield copy.path
        finally:
            copy.users -= 1
            if not copy.users:
                del self._copies[file_id]
                await finish(asyncio.to_thread(copy.path.unlink, missing_ok=True))

    async def _fetch(self, stored: StoredFile, into: Path) -> None:
        file = stored.file
        gone = GoneError(f"the upload {file.name!r} ({file.file_id}) is no longer there")
        try:
            # To its end, so that nothing is written any more when the file is removed.
            found = await finish(self._objects.get(stored.key, into, limit_bytes=file.size_bytes))
            if (found.size_bytes, found.sha256) != (file.size_bytes, file.sha256):
                raise gone
        except NotFoundError:
            raise gone from None
        except BaseException:
            await finish(asyncio.to_thread(into.unlink, missing_ok=True))
            raise

    def _new_path(self, size_bytes: int) -> Path:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if self._free_min_bytes:
            found = os.statvfs(self._folder)
            if found.f_bavail * found.f_frsize < self._free_min_bytes + size_bytes:
                raise CapacityError(
                    "the host's disk is nearly full: its operator must free some space"
                )
        return self._folder / f"upload-{secrets.token_hex(8)}"
