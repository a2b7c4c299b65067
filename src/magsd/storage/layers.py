"""The layers that workspaces consist of: made, kept here, sent and fetched.

Puts together what others own: `layer_packing` makes a layer's file,
`layer_files` keeps it on this machine, `layer_chunks` knows the object store.
Which layers make which workspace, and which of them are still needed, is for
the caller to know.
"""

import asyncio
import os
from collections import Counter, OrderedDict
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from magsd.aio import Clock
from magsd.model.errors import CapacityError, MagsError
from magsd.model.layers import Layer
from magsd.model.names import AccountId
from magsd.storage import layer_chunks, layer_packing
from magsd.storage.images import file_sha256, sync_file
from magsd.storage.layer_ahead import AheadSender
from magsd.storage.layer_chunks import Chunk, DamagedLayerError
from magsd.storage.layer_files import LayerFiles, disk_errors
from magsd.storage.objects import ObjectStore
from magsd.storage.tar_rules import TarLimits

__all__ = ["DamagedLayerError", "LayerStore", "TarLimits", "disk_errors"]

_LEND_TRIES: Final = 3
_CHUNKS_KEPT: Final = 20_000
"""In memory, of layers that are to be uploaded: of 6 GB. Others are cut again."""


@dataclass
class _Fetch:
    """Who wants one layer at once: the first fetches it, the others wait for that."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0
    error: MagsError | None = None


@dataclass(slots=True)
class _Packed:
    """What is known of a layer that was packed here and not uploaded since."""

    chunks: Sequence[Chunk]
    account_id: AccountId | None = None
    ahead_bytes: int = 0
    """What was sent for the account already."""


class LayerStore:
    """The layers of one data directory: `layers/<sha256>.sqfs` (shared with images), and their
    objects. Belongs to one event loop.

    Whatever is cancelled or fails leaves nothing behind but objects that the
    next upload of the same layer finds. A full disk is a `CapacityError`.
    """

    def __init__(
        self, data_directory: Path, objects: ObjectStore, clock: Clock, *, cache_bytes: int
    ) -> None:
        """Clear what an earlier process left half done. Raises `CapacityError`."""
        self._files = LayerFiles(data_directory)
        self._objects = objects
        self._clock = clock
        self._cache_bytes = cache_bytes
        self._fetches: dict[tuple[AccountId, str], _Fetch] = {}
        self._ahead = AheadSender(objects, clock)
        self._packed: OrderedDict[str, _Packed] = OrderedDict()
        self.untidy: set[AccountId] = set()
        """Accounts for which something was sent that is of no layer: see `delete_objects`."""
        self._sending: Counter[AccountId] = Counter()
        self._deleting: set[AccountId] = set()
        self._turn = asyncio.Event()

    def path(self, sha256: str) -> Path:
        """Return where a layer lies on this machine, or would lie."""
        return self._files.path(sha256)

    async def pack_directory(
        self, directory: Path, *, account_id: AccountId | None = None
    ) -> Layer | None:
        """Make a layer of an overlay's upper directory that the host wrote; None: nothing in it.

        The same content gives the same layer. It is here, durably, on return. With an
        account, whose layer it will be, much of it is in the object store by then. Raises `MagsError` when the directory cannot be read, `TooLargeError`
        for files whose sizes, holes counted, are beyond measure.
        """
        return await self._pack(
            lambda into: layer_packing.pack_directory(directory, into), account_id
        )

    async def pack_tar(self, tar: AsyncIterator[bytes], limits: TarLimits) -> Layer | None:
        """Make a layer of an archive from a guest; None: nothing in it. Durable on return.

        Raises `InvalidError` for what may not be in a layer and
        `TooLargeError` for what is over the limits; both name the entry. What
        `tar` raises is raised.
        """
        return await self._pack(lambda into: layer_packing.pack_tar(tar, limits, into))

    async def pack_root(self, archive: Path, limits: TarLimits, form: str) -> Layer | None:
        """Make a layer of the root filesystem in an archive file; None: nothing in it.

        `form` is one of `root_import.FORMS`. Durable on return; raises as `pack_tar`.
        """

        async def pack(into: Path) -> bool:
            with archive.open("rb") as source, into.with_name("scratch").open("x+b") as scratch:
                files = source.fileno(), scratch.fileno()
                return await layer_packing.pack_root(*files, limits, form, into)

        return await self._pack(pack)

    @asynccontextmanager
    async def lent(self, layers: Sequence[tuple[AccountId, Layer]]) -> AsyncIterator[list[Path]]:
        """Give files of layers, each with whose it is, that stay whatever is deleted meanwhile.

        They lie in one folder, with nothing else. Raises as `ensure`.
        """
        with self._files.staging() as folder:
            yield [
                await self._lend(account_id, layer, folder / f"{number}.sqfs")
                for number, (account_id, layer) in enumerate(layers)
            ]

    async def _lend(self, account_id: AccountId, layer: Layer, place: Path) -> Path:
        for _ in range(_LEND_TRIES):
            path = await self.ensure(account_id, layer)
            with suppress(FileNotFoundError):
                os.link(path, place)
                return place
        raise CapacityError("a layer of the workspace was just deleted: try again")

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Give a folder on the disk of the layers that goes with the block. Raises `CapacityError`."""
        with self._files.staging() as folder:
            yield folder

    async def merge(self, layers: Sequence[Layer]) -> Layer:
        """Make one layer that does what `layers`, lowest first, do together. Durable on return.

        Whiteouts and opaque marks are kept as against what is below. All must
        be here (`ensure`); raises `DamagedLayerError` for one that is not.
        """
        for layer in layers:
            await self._check_here(layer)
        paths = [self.path(layer.sha256) for layer in layers]
        with self._files.staging() as folder:
            await layer_packing.pack_merged(paths, folder, folder / "packed")
            return await self._placed(folder / "packed")

    async def upload(
        self,
        account_id: AccountId,
        layer: Layer,
        *,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Put a layer that is here into the object store; return how many bytes were sent.

        0 when it is there already: then it need not be here. `progress` is told
        how many bytes of the layer are there. Raises `DamagedLayerError`,
        `CapacityError` while the store is away: what was sent by then is not
        sent again.
        """
        is_here = await self._files.is_whole(layer)
        progress = progress or _ignore
        async with self._send_turn(account_id):
            is_stored = await layer_chunks.is_stored(self._objects, account_id, layer)
            if not is_here and not is_stored:
                raise _damaged_here(layer)
            sent_bytes = 0 if is_stored else await self._send(account_id, layer, progress)
        progress(layer.size_bytes)
        if is_here:
            self._files.mark_stored(layer.sha256, self._clock.now())
        packed = self._packed.pop(layer.sha256, None)
        if packed is not None and packed.account_id == account_id:
            sent_bytes += packed.ahead_bytes
        return sent_bytes

    async def _send(
        self, account_id: AccountId, layer: Layer, progress: Callable[[int], None]
    ) -> int:
        """Put a layer into the store that is here and not there."""
        path, packed = self.path(layer.sha256), self._packed.get(layer.sha256)
        if packed is None:
            chunks: Sequence[Chunk] = await asyncio.to_thread(layer_chunks.cut, path)
        else:
            chunks = packed.chunks
        return await layer_chunks.send(self._objects, account_id, layer, path, chunks, progress)

    async def ensure(self, account_id: AccountId, layer: Layer) -> Path:
        """Return the file of a layer, whole: fetched if it is not here.

        Several may ask for one layer at once: it is fetched once. Say that it
        is in use (`forget_unused`) before. Raises `DamagedLayerError` that
        names it when what is in the object store is not it, `CapacityError`
        while the store is away.
        """
        if not await self._files.is_whole(layer):
            key = (account_id, layer.sha256)
            fetch = self._fetches.setdefault(key, _Fetch())
            fetch.users += 1
            try:
                async with fetch.lock:
                    await self._fetch_in_turn(account_id, layer, fetch)
            finally:
                fetch.users -= 1
                if not fetch.users:
                    del self._fetches[key]
        self._files.note_use(layer.sha256, self._clock.now())
        return self.path(layer.sha256)

    async def forget_unused(self, in_use: Collection[str]) -> int:
        """Remove files of layers that are in the object store until `cache_bytes` are not passed.

        The longest unused first. `in_use` are the layers, by their SHA-256, of
        all images, of jobs that run or are about to, and of versions that
        wait to be uploaded. Returns how many bytes were freed.
        """
        return await asyncio.to_thread(self._files.shrink, self._cache_bytes, frozenset(in_use))

    async def discard(self, sha256s: Iterable[str]) -> None:
        """Remove files of layers that nobody needs, whether they were uploaded or not."""
        for sha256 in sha256s:
            await asyncio.to_thread(self._files.remove, sha256)

    async def delete_objects(self, account_id: AccountId, sha256s: Iterable[str]) -> None:
        """Remove layers of an account from the object store, and what uploads left unfinished.

        Waits for this process's uploads of the account, and they for it. No
        other process may upload layers of this account meanwhile: their chunks
        would be lost. Raises as `upload`; to be called again then.
        """
        await self._until(
            lambda: not self._sending[account_id] and account_id not in self._deleting
        )
        self._deleting.add(account_id)
        try:
            with disk_errors(), self._files.staging() as folder:
                await layer_chunks.delete(self._objects, account_id, sha256s, folder)
            self.untidy.discard(account_id)
        finally:
            self._deleting.discard(account_id)
            self._turn.set()

    async def _pack(
        self, pack: Callable[[Path], Awaitable[bool]], account_id: AccountId | None = None
    ) -> Layer | None:
        with self._files.staging() as folder:
            packed = folder / "packed"
            if account_id is None:
                return await self._placed(packed) if await pack(packed) else None
            layer = None
            async with self._ahead.following(account_id, packed) as ahead:
                try:
                    if await pack(packed):
                        layer = await self._placed(packed)
                finally:
                    if layer is None and ahead.has_begun:
                        self.untidy.add(account_id)
            if layer is not None and (known := self._packed.get(layer.sha256)) is not None:
                known.account_id, known.ahead_bytes = account_id, ahead.sent_bytes
            return layer

    async def _placed(self, staged: Path) -> Layer:
        """Give a file that was packed its place; it is cut too, while it is in memory."""
        with disk_errors():
            # At once: each keeps a processor or the disk busy.
            sha256, chunks, _ = await asyncio.gather(
                asyncio.to_thread(file_sha256, staged),
                asyncio.to_thread(layer_chunks.cut, staged),
                asyncio.to_thread(sync_file, staged),
            )
        layer = await asyncio.to_thread(self._files.put, staged, sha256)
        self._packed[sha256] = _Packed(chunks)
        while sum(len(each.chunks) for each in self._packed.values()) > _CHUNKS_KEPT:
            self._packed.popitem(last=False)
        return layer

    async def _check_here(self, layer: Layer) -> None:
        if not await self._files.is_whole(layer):
            raise _damaged_here(layer)

    async def _fetch_in_turn(self, account_id: AccountId, layer: Layer, fetch: _Fetch) -> None:
        if fetch.error is not None:
            raise fetch.error
        if await self._files.is_whole(layer):
            return
        try:
            with disk_errors(), self._files.staging() as folder:
                staged, parts = folder / "whole", folder / "parts"
                parts.mkdir()
                await layer_chunks.fetch(self._objects, account_id, layer, staged, parts)
                if await asyncio.to_thread(file_sha256, staged) != layer.sha256:
                    problem = "it is not what was put into the object store"
                    raise DamagedLayerError(layer.sha256, problem)
                await asyncio.to_thread(self._files.put, staged, layer.sha256)
        except MagsError as error:
            fetch.error = error
            raise
        self._files.mark_stored(layer.sha256, self._clock.now())

    @asynccontextmanager
    async def _send_turn(self, account_id: AccountId) -> AsyncIterator[None]:
        await self._until(lambda: account_id not in self._deleting)
        self._sending[account_id] += 1
        try:
            yield
        finally:
            self._sending[account_id] -= 1
            if not self._sending[account_id]:
                del self._sending[account_id]
            self._turn.set()

    async def _until(self, is_free: Callable[[], bool]) -> None:
        while not is_free():
            self._turn.clear()
            await self._turn.wait()


def _damaged_here(layer: Layer) -> DamagedLayerError:
    return DamagedLayerError(layer.sha256, "its file on this machine is not whole")


def _ignore(size_bytes: int) -> None:
    """Be told of progress that nobody asked for."""
