"""A snapshot's directory: a machine that was saved, to go on from there.

`memory` (sparse, as long as the machine's), `state` (of its devices), `streams` (the
shim's state file) and `manifest.json`; written aside, made durable and renamed. The
disk lies with the others, see `disks`; the manifest names it. What the memory holds
is not compared when it is read, which would take longer than to begin anew: its
length and the time of its last change are, and the small files by their hashes.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from magsd.engine.base import SnapshotError
from magsd.model.names import VmId

_FORM: Final = 1
"""Raise it when snapshots of before cannot be gone on from any more."""
MEMORY: Final = "memory"
STATE: Final = "state"
STREAMS: Final = "streams"
_MANIFEST: Final = "manifest.json"
_UNFINISHED: Final = ".new-"


@dataclass(frozen=True)
class Mark:
    """What tells whether a file is still what it was."""

    size_bytes: int
    written_ns: int

    @classmethod
    def of(cls, descriptor: int) -> "Mark":
        """Return that of an open file."""
        found = os.fstat(descriptor)
        return cls(found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class Manifest:
    """What a snapshot says of itself."""

    vm: VmId
    """Which VM was saved."""
    is_fork: bool
    """It went on: what goes on from here is another."""
    facts: Mapping[str, Any]
    """What the memory depends on, see `qemu_facts`."""
    disk: VmId
    """Under whose name its disk lies."""
    disk_mark: Mark
    memory_mark: Mark


@contextmanager
def written_aside(into: Path) -> Iterator[Path]:
    """Yield a new folder for `commit`, which is removed unless that was called.

    Blocks, at its end for as long as there is much in it; raises `OSError`.
    """
    aside = into.parent / f"{_UNFINISHED}{secrets.token_hex(8)}"
    aside.mkdir(mode=0o700)
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file and bring it to the disk. Raises `OSError`."""
    with path.open("xb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_manifest(aside: Path, manifest: Manifest) -> None:
    """Finish a folder: its other files are written. Raises `OSError`."""
    content = {
        "form": _FORM,
        **asdict(manifest),
        **{name: _digest(aside / name) for name in (STATE, STREAMS)},
    }
    write_whole(aside / _MANIFEST, json.dumps(content, indent=1).encode() + b"\n")
    _sync(aside)


def commit(aside: Path, into: Path) -> None:
    """Put a finished folder in its place. Raises `OSError`, also where there is one."""
    aside.rename(into)
    _sync(into.parent)


def read(snapshot: Path) -> Manifest:
    """Return what a snapshot says of itself. Blocks; raises `SnapshotError`."""
    try:
        content = json.loads((snapshot / _MANIFEST).read_text(encoding="utf-8"))
        if content.pop("form") != _FORM:
            raise SnapshotError("the snapshot was made by another magsd: start from the disk")
        hashes = {name: content.pop(name) for name in (STATE, STREAMS)}
        for name in ("disk_mark", "memory_mark"):
            content[name] = Mark(**content[name])
        manifest = Manifest(**content)
        is_whole = all(_digest(snapshot / name) == wanted for name, wanted in hashes.items())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(repr(error)) from error
    if not is_whole:
        raise _damaged("a file has another hash")
    return manifest


def open_memory(snapshot: Path, manifest: Manifest) -> int:
    """Return a descriptor of the memory. Raises `SnapshotError`."""
    return open_marked(snapshot / MEMORY, manifest.memory_mark, "the memory")


def open_marked(path: Path, mark: Mark, name: str) -> int:
    """Return a descriptor of a file that is still what it was. Raises `SnapshotError`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _damaged(f"{name}: {error}") from error
    if Mark.of(descriptor) != mark:
        os.close(descriptor)
        raise _damaged(f"{name} is not what it was when the snapshot was made")
    return descriptor


def exists(snapshot: Path) -> bool:
    """Say whether there is a snapshot, in whatever state."""
    return (snapshot / _MANIFEST).exists()


def _damaged(detail: str) -> SnapshotError:
    return SnapshotError("the snapshot is damaged: start from the disk", detail)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
