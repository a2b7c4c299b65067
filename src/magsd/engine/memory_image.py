"""Reading the memory of an emulator's machine from outside, while it stands still.

Owns what is read and written: of memory that is a private copy of a file's, the file,
which does not change, and the pages that the machine has written since. The
emulator is trusted no more than its guest: what it has mapped is measured
before it is read, and no more is read than the machine has. All of it blocks.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from magsd.model.errors import LaunchError

_PAGE_BYTES: Final = 4096
_ENTRY_BYTES: Final = 8
_PIECE_BYTES: Final = 64 << 10
_ZEROS: Final = bytes(_PIECE_BYTES)
_PRESENT: Final = 0x80
_SWAPPED: Final = 0x40
_OF_A_FILE: Final = 0x20
# Of an entry of `pagemap`, by its highest byte: a page that is the process's own.
_IS_OWN: Final = bytes(
    int(bool(byte & (_PRESENT | _SWAPPED)) and not byte & _OF_A_FILE) for byte in range(256)
)
_OWN: Final = b"\1"
_OTHER: Final = b"\0"


@dataclass(frozen=True)
class _Area:
    """A part of the memory, as the process has it mapped."""

    start: int
    end: int
    offset: int
    inode: int
    is_private: bool


class MachineMemory:
    """The memory of one emulator. `close` it."""

    def __init__(self, held: ExitStack, pid: int, size_bytes: int) -> None:
        self._held = held
        self._size_bytes = size_bytes
        self._memory = _opened(f"/proc/{pid}/mem", held)
        self._pagemap = _opened(f"/proc/{pid}/pagemap", held)
        self._file, self._areas = _found(pid, size_bytes, held)

    @classmethod
    def of(cls, pid: int, size_bytes: int) -> "MachineMemory":
        """Find it. Raises `LaunchError` when it is not as expected, `OSError`."""
        with ExitStack() as held:
            memory = cls(held, pid, size_bytes)
            memory._held = held.pop_all()
        return memory

    def close(self) -> None:
        """Let go of it."""
        self._held.close()

    def copy_ahead(self, target: int) -> None:
        """Copy into an empty file what does not change, while the machine may run."""
        os.truncate(target, self._size_bytes)
        if all(area.is_private for area in self._areas):
            self._copy_file(target)

    def copy_rest(self, target: int) -> None:
        """Copy all else, while the machine stands still."""
        if not all(area.is_private for area in self._areas):
            self._copy_file(target)
            return
        for area in self._areas:
            for start, end in self._own(area):
                self._copy_own(area, start, end, target)

    def _copy_file(self, target: int) -> None:
        end = 0
        while (start := _next_data(self._file, end)) is not None:
            end = os.lseek(self._file, start, os.SEEK_HOLE)
            for at in range(start, end, _PIECE_BYTES):
                piece = os.pread(self._file, min(_PIECE_BYTES, end - at), at)
                # Whoever reads a hole of a shared memory has it filled, with zeros.
                if piece != _ZEROS[: len(piece)]:
                    _write(target, piece, at)

    def _own(self, area: _Area) -> Iterator[tuple[int, int]]:
        """Yield where the pages lie that the process has written, in its addresses."""
        first = area.start // _PAGE_BYTES
        count = area.end // _PAGE_BYTES - first
        entries = os.pread(self._pagemap, count * _ENTRY_BYTES, first * _ENTRY_BYTES)
        if len(entries) != count * _ENTRY_BYTES:
            raise _changed()
        pages = entries[_ENTRY_BYTES - 1 :: _ENTRY_BYTES].translate(_IS_OWN)
        end = 0
        while (start := pages.find(_OWN, end)) >= 0:
            end = pages.find(_OTHER, start)
            end = count if end < 0 else end
            yield (first + start) * _PAGE_BYTES, (first + end) * _PAGE_BYTES

    def _copy_own(self, area: _Area, start: int, end: int, target: int) -> None:
        for address in range(start, end, _PIECE_BYTES):
            length = min(_PIECE_BYTES, end - address)
            piece = os.pread(self._memory, length, address)
            if len(piece) != length:
                raise _changed()
            at = address - area.start + area.offset
            # What was freed inside and is zero takes no room, but over what the file has there.
            if piece != _ZEROS[:length] or _has_data(target, at, at + length):
                _write(target, piece, at)


def _found(pid: int, size_bytes: int, held: ExitStack) -> tuple[int, list[_Area]]:
    """Return the file that the whole memory is mapped from, and where."""
    files = _files_of(pid, size_bytes)
    mapped: dict[int, list[_Area]] = {}
    for area in _areas_of(pid):
        if area.inode in files:
            mapped.setdefault(area.inode, []).append(area)
    for inode, areas in mapped.items():
        areas.sort(key=lambda area: area.offset)
        at = 0
        for area in areas:
            if area.offset == at:
                at += area.end - area.start
        if at == size_bytes == sum(area.end - area.start for area in areas):
            return _opened(files[inode], held), areas
    raise LaunchError("the memory of the sandbox cannot be found", f"process {pid}")


def _files_of(pid: int, size_bytes: int) -> dict[int, str]:
    """Return the files of a size that a process has open, by their inodes."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            about = entry.stat()
        except OSError:  # Closed meanwhile.
            continue
        if stat.S_ISREG(about.st_mode) and about.st_size == size_bytes:
            found[about.st_ino] = str(entry)
    return found


def _areas_of(pid: int) -> Iterator[_Area]:
    for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").split("\n"):
        if not line:
            continue
        addresses, rights, offset, _, inode, *_ = line.split()
        start, _, end = addresses.partition("-")
        is_private = rights.endswith("p")
        yield _Area(int(start, 16), int(end, 16), int(offset, 16), int(inode), is_private)


def _opened(path: str, held: ExitStack) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    held.callback(os.close, descriptor)
    return descriptor


def _has_data(file: int, start: int, end: int) -> bool:
    found = _next_data(file, start)
    return found is not None and found < end


def _next_data(file: int, start: int) -> int | None:
    """Return where the next data of a file begin; None: nothing but a hole follows."""
    try:
        return os.lseek(file, start, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None


def _write(target: int, piece: bytes, at: int) -> None:
    view = memoryview(piece)
    while view:
        written = os.pwrite(target, view, at)
        view, at = view[written:], at + written


def _changed() -> LaunchError:
    return LaunchError("the memory of the sandbox cannot be read", "its mapping has changed")
