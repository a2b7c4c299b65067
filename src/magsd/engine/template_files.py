"""A template's files: what a machine that was saved is made of, kept from one daemon to the next.

A folder `templates/<key>`: `memory` and `disk` (sparse), `state`, and `manifest.json` with
their hashes; written aside and renamed, compared when it is read. What is
damaged is no template: it is removed, and made anew by whoever asks.
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

_log: Final = structlog.get_logger()

_PIECE_BYTES: Final = 4 << 20
_PAGE_BYTES: Final = 4096
_ZEROS: Final = bytes(_PAGE_BYTES)
_MANIFEST: Final = "manifest.json"
_UNFINISHED: Final = ".new-"
# linux/fcntl.h
_F_ADD_SEALS: Final = 1033
_SEALS: Final = 0x1 | 0x2 | 0x4 | 0x8
"""Of a memory file: neither seals nor size nor content change any more."""


@dataclass(frozen=True)
class Template:
    """A machine that was saved: whoever has these can go on from there, any number of times."""

    memory: int
    """A sealed memory file."""
    disk: int
    """The writable disk at the same moment: each that goes on needs a copy of its own."""
    state: bytes
    """Of the devices."""

    def close(self) -> None:
        """Let go of it; machines that came of it keep theirs."""
        os.close(self.memory)
        os.close(self.disk)

    def copy(self) -> "Template":
        """Return the same, to be closed by itself."""
        return Template(os.dup(self.memory), os.dup(self.disk), self.state)


def new_memory(size_bytes: int) -> int:
    """Return a memory file of that size, all zeros."""
    descriptor = os.memfd_create("template", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size_bytes)
    return descriptor


def seal(memory: int) -> None:
    """Let nobody write to a memory file any more, who may have it. Raises `OSError`."""
    fcntl.fcntl(memory, _F_ADD_SEALS, _SEALS)


def write(folder: Path, key: str, template: Template, facts: Mapping[str, Any]) -> None:
    """Put a template's files in place, whole. Blocks; raises `OSError`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = folder / f"{_UNFINISHED}{secrets.token_hex(8)}"
    aside.mkdir(mode=0o700)
    try:
        memory = _write(aside / "memory", template.memory)
        disk = _write(aside / "disk", template.disk)
        (aside / "state").write_bytes(template.state)
        manifest = {
            "facts": dict(facts),
            "memory": memory,
            "disk": disk,
            "state": hashlib.sha256(template.state).hexdigest(),
        }
        (aside / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder / key, ignore_errors=True)
        aside.rename(folder / key)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read(folder: Path, key: str, facts: Mapping[str, Any]) -> Template | None:
    """Return a template from its files; None when there is none. Blocks.

    One whose files are not what the manifest says, or that was made of other
    `facts`, is removed.
    """
    place = folder / key
    if not place.is_dir():
        return None
    try:
        return _read(place, facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("template_damaged", template=key, error=str(error))
        shutil.rmtree(place, ignore_errors=True)
        return None


def _read(place: Path, facts: Mapping[str, Any]) -> Template:
    manifest = json.loads((place / _MANIFEST).read_text(encoding="utf-8"))
    if manifest["facts"] != dict(facts):
        raise ValueError("it was made of something else")
    state = (place / "state").read_bytes()
    if hashlib.sha256(state).hexdigest() != manifest["state"]:
        raise ValueError("the devices' state has another hash")
    with ExitStack() as undo:
        disk = os.open(place / "disk", os.O_RDONLY | os.O_CLOEXEC)
        undo.callback(os.close, disk)
        if _facts_of(disk, None) != manifest["disk"]:
            raise ValueError("the disk has another hash")
        with (place / "memory").open("rb") as file:
            memory = new_memory(os.fstat(file.fileno()).st_size)
            undo.callback(os.close, memory)
            if _facts_of(file.fileno(), memory) != manifest["memory"]:
                raise ValueError("the memory has another hash")
        seal(memory)
        os.utime(place)
        undo.pop_all()
    return Template(memory, disk, state)


def remove(folder: Path, key: str) -> None:
    """Remove a template's files, if there are any. Blocks."""
    shutil.rmtree(folder / key, ignore_errors=True)


def remove_unneeded(folder: Path, keep: Mapping[str, Any], unused_s: float, now: float) -> None:
    """Remove what no daemon like this one can use, and what none has used for a while.

    `keep`: facts that a template of use has; `now`: the wall time in seconds.
    """
    for place in folder.iterdir() if folder.is_dir() else ():
        if not _is_needed(place, keep, now - unused_s):
            shutil.rmtree(place, ignore_errors=True)


def _is_needed(place: Path, keep: Mapping[str, Any], since: float) -> bool:
    if place.name.startswith(_UNFINISHED):
        return False
    try:
        facts = json.loads((place / _MANIFEST).read_text(encoding="utf-8"))["facts"]
        return place.stat().st_mtime >= since and all(facts[key] == keep[key] for key in keep)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(path: Path, source: int) -> dict[str, Any]:
    with path.open("xb") as file:
        os.ftruncate(file.fileno(), os.fstat(source).st_size)
        return _facts_of(source, file.fileno())


def _facts_of(source: int, target: int | None) -> dict[str, Any]:
    """Return size and hash of a file, and copy what is no hole to `target`, if there is one."""
    digest = hashlib.sha256()
    for start, end in _extents(source):
        position = start
        while position < end:
            piece = os.pread(source, min(_PIECE_BYTES, end - position), position)
            if not piece:
                raise ValueError("the file became shorter")
            _hash_pages(digest, piece, position)
            if target is not None and os.pwrite(target, piece, position) != len(piece):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            position += len(piece)
    return {"size_bytes": os.fstat(source).st_size, "sha256": digest.hexdigest()}


def _hash_pages(digest: "hashlib._Hash", piece: bytes, position: int) -> None:
    """Add pages with their places, but those of zeros: a copy may have holes there."""
    view = memoryview(piece)
    for start in range(0, len(piece), _PAGE_BYTES):
        page = view[start : start + _PAGE_BYTES]
        if page != _ZEROS[: len(page)]:
            digest.update((position + start).to_bytes(8, "little"))
            digest.update(page)


def _extents(descriptor: int) -> Iterator[tuple[int, int]]:
    position, size_bytes = 0, os.fstat(descriptor).st_size
    while position < size_bytes:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # Nothing but a hole follows.
                return
            raise
        position = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, position
