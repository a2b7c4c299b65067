"""Chunks of a layer that are sent while it is being packed.

Nothing relies on it. A packer goes back in what it wrote: it writes the head
last, and takes back files that it finds to be the same as earlier ones. So
what is sent is what *may* be a chunk, under the name of what is in it, and the
upload looks for every chunk of the layer that came of it. What turns out to be
of no layer goes with what other uploads leave unfinished.
"""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from magsd.aio import Clock
from magsd.model.errors import MagsError
from magsd.model.names import AccountId
from magsd.storage import layer_chunks
from magsd.storage.layer_chunks import Chunk
from magsd.storage.objects import ObjectStore

_PIECE_BYTES: Final = 4 * layer_chunks.LARGEST_BYTES
_BEHIND_BYTES: Final = 4 << 20
"""How far behind the packer: what it takes back is rarely more."""
_LOOK_S: Final = 0.02
_AT_ONCE: Final = 2
"""Layers. Each has a piece in memory, and what is on its way of that once more."""
_log: Final = structlog.get_logger()


class Ahead:
    """What was sent of one layer ahead of its upload."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        """With what is on its way, and with what turned out not to arrive."""
        self.has_begun = False
        """Whether there may be something in the store."""
        self._lock = threading.Lock()

    def count(self, size_bytes: int) -> None:
        """Take note of what is about to be sent."""
        with self._lock:
            self.sent_bytes += size_bytes


@dataclass(frozen=True, slots=True)
class _Piece:
    offset: int
    content: memoryview
    chunks: list[Chunk]
    ahead: Ahead

    def read(self, chunk: Chunk) -> bytes:
        """Return what was cut, to be sent: in the file something else may be by now."""
        self.ahead.count(chunk.size_bytes)
        at = chunk.offset - self.offset
        return bytes(self.content[at : at + chunk.size_bytes])


class AheadSender:
    """Sends ahead to one store. Belongs to one event loop."""

    def __init__(self, objects: ObjectStore, clock: Clock) -> None:
        self._objects = objects
        self._clock = clock
        self._turn = asyncio.Semaphore(_AT_ONCE)

    @asynccontextmanager
    async def following(self, account_id: AccountId, file: Path) -> AsyncIterator[Ahead]:
        """Send what is written meanwhile to `file`, which need not be there yet.

        Never fails: an error ends it, and the upload will see for itself. What is on its way
        at the end of the block may still arrive after it.
        """
        ahead = Ahead()
        try:
            async with asyncio.TaskGroup() as group:
                work = self._follow(account_id, file, ahead)
                following = group.create_task(work, name="send a layer ahead")
                try:
                    yield ahead
                finally:
                    following.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _follow(self, account_id: AccountId, file: Path, ahead: Ahead) -> None:
        offset = 0
        try:
            async with self._turn:
                # One for all pieces: each thread that made some would keep the room for one.
                buffer = bytearray(_PIECE_BYTES)
                while True:
                    await self._until(file, offset + _PIECE_BYTES + _BEHIND_BYTES)
                    piece = await asyncio.to_thread(_cut, file, offset, buffer, ahead)
                    ahead.has_begun = True
                    # The first has the head in it.
                    chunks = piece.chunks if offset else piece.chunks[1:]
                    await layer_chunks.send_missing(self._objects, account_id, chunks, piece.read)
                    offset += sum(chunk.size_bytes for chunk in piece.chunks)
        except (MagsError, OSError) as error:
            _log.info("not_sent_ahead", why=repr(error))
        except Exception:  # noqa: BLE001 - of no consequence for the layer, and told
            _log.exception("not_sent_ahead")

    async def _until(self, file: Path, size_bytes: int) -> None:
        while _size(file) < size_bytes:
            await self._clock.sleep(_LOOK_S)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _cut(file: Path, offset: int, buffer: bytearray, ahead: Ahead) -> _Piece:
    with file.open("rb", buffering=0) as opened:
        size = os.preadv(opened.fileno(), [buffer], offset)
    content = memoryview(buffer)[:size]
    return _Piece(offset, content, layer_chunks.cut_piece(content, offset), ahead)
