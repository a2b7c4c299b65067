"""Layers in the object store: chunks that layers of an account share, and a list for each layer.

A chunk's ends are found by what is around them, so a layer that has changed
little since the last one has most of its chunks in common with it, and only
the others are sent. An object is named by what is in it and never changes.
A layer is there when its list is: that is put last.
"""

import asyncio
import hashlib
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from pyfastcdc import FastCDC

from magsd.aio import finish
from magsd.model.errors import MagsError, NotFoundError
from magsd.model.layers import Layer
from magsd.model.names import AccountId
from magsd.storage.objects import Head, ObjectStore

_MIN_BYTES: Final = 64 << 10
_AVERAGE_BYTES: Final = 256 << 10
LARGEST_BYTES: Final = 1 << 20
"""Of a chunk."""
_FORMAT: Final = 1
_LIST_ENTRY_BYTES: Final = 96
_LIST_BYTES: Final = 64 << 20
_SHA256: Final = re.compile("[0-9a-f]{64}")
_AT_ONCE: Final = 6
"""Batches of objects on their way for one layer."""

_Item = TypeVar("_Item")


class DamagedLayerError(MagsError):
    """A layer is not, or no longer, what was put there: neither here nor in the object store."""

    def __init__(self, sha256: str, problem: str) -> None:
        super().__init__(f"the layer {sha256} is damaged: {problem}")
        self.sha256 = sha256


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a layer file."""

    sha256: str
    offset: int
    size_bytes: int


def cut(file: Path) -> list[Chunk]:
    """Return the chunks of a file. Blocks: about 1 s for 1 GB."""
    # Not mapped: its pages would count as this process's memory.
    with file.open("rb", buffering=0) as stream:
        return [
            Chunk(hashlib.sha256(found.data).hexdigest(), found.offset, found.length)
            for found in _cutter().cut_stream(stream)
        ]


def cut_piece(content: memoryview, offset: int) -> list[Chunk]:
    """Return the chunks that lie in a piece of a file, which begins at `offset` as one of them does.

    What they leave of the piece is where one begins that ends beyond it: there is none where the
    piece is smaller than `LARGEST_BYTES`.
    """
    found = [(each.offset, each.length) for each in _cutter().cut_buf(content)][:-1]
    return [
        Chunk(hashlib.sha256(content[at : at + length]).hexdigest(), offset + at, length)
        for at, length in found
    ]


def _cutter() -> FastCDC:
    return FastCDC(avg_size=_AVERAGE_BYTES, min_size=_MIN_BYTES, max_size=LARGEST_BYTES)


async def is_stored(objects: ObjectStore, account_id: AccountId, layer: Layer) -> bool:
    """Say whether a layer is in the store. Raises `CapacityError` while that is away."""
    return await _size(objects, _list_key(account_id, layer.sha256)) is not None


async def send(
    objects: ObjectStore,
    account_id: AccountId,
    layer: Layer,
    file: Path,
    chunks: Sequence[Chunk],
    progress: Callable[[int], None],
) -> int:
    """Put a layer's file, which consists of `chunks`, into the store; return how many bytes were
    sent.

    `progress` is told how many bytes of the layer are there. Raises
    `CapacityError` while the store is away.
    """
    done_bytes = sent_bytes = 0

    def is_there(chunk: Chunk, was_sent: bool) -> None:
        nonlocal done_bytes, sent_bytes
        done_bytes += chunk.size_bytes
        sent_bytes += chunk.size_bytes if was_sent else 0
        progress(done_bytes)

    await send_missing(objects, account_id, chunks, partial(_read, file), is_there)
    record = {"format": _FORMAT, "chunks": [[chunk.sha256, chunk.size_bytes] for chunk in chunks]}
    content = json.dumps(record, separators=(",", ":")).encode()
    await objects.put(_list_key(account_id, layer.sha256), content)
    progress(layer.size_bytes)
    return sent_bytes + len(content)


async def send_missing(
    objects: ObjectStore,
    account_id: AccountId,
    chunks: Iterable[Chunk],
    read: Callable[[Chunk], bytes],
    is_there: Callable[[Chunk, bool], None] = lambda _, __: None,
) -> None:
    """Put those chunks into the store that are not there.

    `read` returns the content of one, in a thread; `is_there` is told of each, and whether it was
    sent. Raises `CapacityError` while the store is away.
    """
    different = iter({chunk.sha256: chunk for chunk in chunks}.values())

    async def send_some(some: Sequence[Chunk]) -> None:
        keys = [_chunk_key(account_id, chunk.sha256) for chunk in some]
        sizes = await objects.sizes(keys)
        missing = {
            key: chunk
            for key, chunk in zip(keys, some, strict=True)
            if sizes.get(key) != chunk.size_bytes
        }
        if missing:
            await objects.put_all((key, read(chunk)) for key, chunk in missing.items())
        for key, chunk in zip(keys, some, strict=True):
            is_there(chunk, key in missing)

    await _for_each(iter(lambda: list(islice(different, objects.batch)), []), send_some)


async def fetch(
    objects: ObjectStore, account_id: AccountId, layer: Layer, into: Path, folder: Path
) -> None:
    """Write a layer's file anew from the store; `folder` is an empty one for what is on its way.

    Checks every chunk; whether the whole is right is for the caller to see.
    Raises `DamagedLayerError`, and `CapacityError` while the store is away.
    """
    chunks = await _read_list(objects, account_id, layer.sha256, folder, layer.size_bytes)
    if sum(chunk.size_bytes for chunk in chunks) != layer.size_bytes:
        raise DamagedLayerError(layer.sha256, "its list of chunks is of another layer")
    await asyncio.to_thread(into.touch)

    async def fetch_one(chunk: Chunk) -> None:
        staged = folder / str(chunk.offset)
        try:
            found = await objects.get(
                _chunk_key(account_id, chunk.sha256), staged, limit_bytes=chunk.size_bytes
            )
        except NotFoundError:
            raise DamagedLayerError(layer.sha256, f"chunk {chunk.sha256} is missing") from None
        if (found.sha256, found.size_bytes) != (chunk.sha256, chunk.size_bytes):
            raise DamagedLayerError(layer.sha256, f"chunk {chunk.sha256} is not what was put there")
        await asyncio.to_thread(_move_content, staged, into, chunk.offset)

    await _for_each(chunks, fetch_one)


async def delete(
    objects: ObjectStore, account_id: AccountId, sha256s: Iterable[str], folder: Path
) -> None:
    """Remove layers, and all chunks of the account that no list names any more.

    Nothing may be sent for the account meanwhile: chunks come before the list
    that names them. Raises `CapacityError` while the store is away, and
    `DamagedLayerError` for a list that cannot be read, before any chunk is
    removed; to be called again then. `folder` as in `fetch`. Cancelled, it
    waits for what it has asked the store to remove: nothing that is sent
    afterwards may be removed by that.
    """

    async def remove(key: str) -> None:
        await finish(objects.delete(key))

    for sha256 in sha256s:
        await remove(_list_key(account_id, sha256))
    named: set[bytes] = set()
    lists = [head async for head in objects.list(_folder(account_id, "lists"))]

    async def read_one(head: Head) -> None:
        sha256 = head.key.rpartition("/")[2]
        chunks = await _read_list(objects, account_id, sha256, folder, None)
        named.update(bytes.fromhex(chunk.sha256) for chunk in chunks)

    await _for_each(lists, read_one)
    unnamed = [
        head.key
        async for head in objects.list(_folder(account_id, "chunks"))
        if bytes.fromhex(head.key.rpartition("/")[2]) not in named
    ]
    await _for_each(unnamed, remove)


async def _read_list(
    objects: ObjectStore, account_id: AccountId, sha256: str, folder: Path, size_bytes: int | None
) -> list[Chunk]:
    """Return what a layer consists of."""
    staged = folder / sha256
    limit_bytes = _LIST_BYTES
    if size_bytes is not None:
        limit_bytes = _LIST_ENTRY_BYTES * (size_bytes // _MIN_BYTES + 2)
    try:
        await objects.get(_list_key(account_id, sha256), staged, limit_bytes=limit_bytes)
    except NotFoundError:
        raise DamagedLayerError(sha256, "it is not in the object store") from None
    try:
        content = await asyncio.to_thread(_take, staged)
        return list(_parse(json.loads(content)))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedLayerError(sha256, "its list of chunks cannot be read") from error


def _parse(record: Any) -> Iterator[Chunk]:
    if record["format"] != _FORMAT:
        raise ValueError(record["format"])
    offset = 0
    for sha256, size_bytes in record["chunks"]:
        if not _SHA256.fullmatch(sha256) or not isinstance(size_bytes, int) or size_bytes < 1:
            raise ValueError(sha256)
        yield Chunk(sha256, offset, size_bytes)
        offset += size_bytes


async def _size(objects: ObjectStore, key: str) -> int | None:
    try:
        return (await objects.head(key)).size_bytes
    except NotFoundError:
        return None


async def _for_each(items: Iterable[_Item], work: Callable[[_Item], Awaitable[None]]) -> None:
    """Do `work` for all, a few at once; raise the first error when the others have ended."""
    waiting = iter(items)

    async def work_on() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(_AT_ONCE):
                group.create_task(work_on(), name=f"layer objects {number}")
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _folder(account_id: AccountId, kind: str) -> str:
    return f"layers/{account_id}/{kind}"


def _list_key(account_id: AccountId, sha256: str) -> str:
    return f"{_folder(account_id, 'lists')}/{sha256}"


def _chunk_key(account_id: AccountId, sha256: str) -> str:
    return f"{_folder(account_id, 'chunks')}/{sha256}"


def _read(file: Path, chunk: Chunk) -> bytes:
    with file.open("rb") as opened:
        return os.pread(opened.fileno(), chunk.size_bytes, chunk.offset)


def _take(staged: Path) -> bytes:
    content = staged.read_bytes()
    staged.unlink()
    return content


def _move_content(staged: Path, into: Path, offset: int) -> None:
    with into.open("r+b") as opened:
        opened.seek(offset)
        opened.write(_take(staged))
