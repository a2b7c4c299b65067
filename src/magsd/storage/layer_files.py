"""Layer files of this machine: `layers/<sha256>.sqfs` of a data directory.

Owns how a file gets its place there, whether it is still what was put there,
and which go when there are too many. The folder is shared with the layers of
images; those are never removed here, because only what is known to be in the
object store is.

A file never changes. To replace one, a new file takes its name, so that
whoever has the old one mounted keeps it.
"""

import asyncio
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Self

from magsd.model.errors import CapacityError
from magsd.model.layers import Layer
from magsd.storage.images import file_sha256, sync_directory, sync_file

_STAGING: Final = ".staging"
_STORED: Final = ".stored"
_SUFFIX: Final = ".sqfs"
_TRIES: Final = 16


@dataclass(frozen=True, slots=True)
class _Fingerprint:
    """What changes when somebody writes to a file or puts another in its place."""

    size_bytes: int
    modified_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Raise `FileNotFoundError` when there is none."""
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)

    @classmethod
    def of_any(cls, path: Path) -> Self | None:
        """Return None when there is none."""
        with suppress(FileNotFoundError):
            return cls.of(path)
        return None


@contextmanager
def disk_errors() -> Iterator[None]:
    """Raise `CapacityError` for what goes wrong with this machine's disk in the block."""
    try:
        yield
    except OSError as error:
        raise CapacityError(
            "the disk of this machine cannot be written now: make room and try again", str(error)
        ) from error


@dataclass(frozen=True, slots=True)
class _Stored:
    sha256: str
    size_bytes: int
    used_ns: int


class LayerFiles:
    """The layer files of one data directory."""

    def __init__(self, data_directory: Path) -> None:
        """Make the folders and clear what an unfinished layer left. Raises `CapacityError`."""
        self._layers = data_directory / "layers"
        self._staging = self._layers / _STAGING
        self._stored = self._layers / _STORED
        self._whole: dict[Path, _Fingerprint] = {}
        with disk_errors():
            self._layers.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self._staging, ignore_errors=True)
            for folder in (self._staging, self._stored):
                folder.mkdir(mode=0o700, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Return where a layer lies, or would lie."""
        return self._layers / f"{sha256}{_SUFFIX}"

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Give a folder for what is on its way, on the same filesystem; it goes with the block."""
        folder = self._staging / secrets.token_hex(8)
        with disk_errors():
            folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            # What was cancelled may still be writing: it finds its folder gone, once that is.
            for _ in range(_TRIES):
                shutil.rmtree(folder, ignore_errors=True)
                if not folder.exists():
                    break

    async def is_whole(self, layer: Layer) -> bool:
        """Say whether a layer is here and is what it was when it was put here.

        Reads it in full at its first use by this process and whenever its
        size, time or inode is another than then; otherwise only looks at those.
        """
        path = self.path(layer.sha256)
        seen = _Fingerprint.of_any(path)
        if seen is None or seen.size_bytes != layer.size_bytes:
            return False
        if self._whole.get(path) != seen:
            try:
                if await asyncio.to_thread(file_sha256, path) != layer.sha256:
                    return False
            except OSError:
                return False
            self._whole[path] = seen
        return True

    def put(self, staged: Path, sha256: str) -> Layer:
        """Give a staged file, which the caller knows to be `sha256`, its place; durable on return.

        Blocks. Raises `CapacityError`.
        """
        with disk_errors():
            return self._put(staged, sha256)

    def _put(self, staged: Path, sha256: str) -> Layer:
        path = self.path(sha256)
        seen = _Fingerprint.of_any(path)
        if seen is not None and self._whole.get(path) == seen:
            return Layer(sha256, seen.size_bytes)
        staged.chmod(0o400)
        sync_file(staged)
        staged.replace(path)
        sync_directory(self._layers)
        self._whole[path] = seen = _Fingerprint.of(path)
        return Layer(sha256, seen.size_bytes)

    def mark_stored(self, sha256: str, used_at: datetime) -> None:
        """Note that a layer is in the object store, and was used then."""
        (self._stored / sha256).touch(mode=0o600)
        self.note_use(sha256, used_at)

    def note_use(self, sha256: str, used_at: datetime) -> None:
        """Note that a layer was used then."""
        with suppress(FileNotFoundError):
            os.utime(self._stored / sha256, (used_at.timestamp(), used_at.timestamp()))

    def remove(self, sha256: str) -> None:
        """Remove a layer's file, whether it is in the object store or not."""
        path = self.path(sha256)
        self._whole.pop(path, None)
        path.unlink(missing_ok=True)
        (self._stored / sha256).unlink(missing_ok=True)

    def shrink(self, most_bytes: int, kept: Collection[str]) -> int:
        """Remove stored layers, the longest unused first, until all take `most_bytes`.

        Never one of `kept`. Returns how many bytes were freed. Blocks.
        """
        found = sorted(self._all_stored(), key=lambda each: each.used_ns)
        excess_bytes = sum(each.size_bytes for each in found) - most_bytes
        freed_bytes = 0
        for each in found:
            if freed_bytes >= excess_bytes:
                break
            if each.sha256 not in kept:
                self.remove(each.sha256)
                freed_bytes += each.size_bytes
        return freed_bytes

    def _all_stored(self) -> Iterator[_Stored]:
        for mark in self._stored.iterdir():
            path = self.path(mark.name)
            seen = _Fingerprint.of_any(path)
            if seen is None:
                mark.unlink(missing_ok=True)
            else:
                yield _Stored(mark.name, seen.size_bytes, mark.stat().st_mtime_ns)
