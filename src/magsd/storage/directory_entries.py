"""A directory that the host wrote, entry by entry, as `tar_entries` reads them from an archive.

In the order in which GNU tar has them (`layer_merging.TAR`), with its hard
links and its maps of sparse files: the same changes give the same layer,
whichever way they came. Files are asked of the kernel before it is their turn,
because a disk answers many at once as soon as one.

Imported by programs that are started for each directory: standard library only.
"""

import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from magsd.storage.tar_rules import Kind, TarEntry, TarLimits, TarRefusedError, shown

_AHEAD: Final = 64
"""Entries that are found before it is their turn; files among them are open."""
_AHEAD_BYTES: Final = 1 << 20
"""Of each file. The rest the kernel reads ahead by itself, when it is read in its order."""
_PIECE_BYTES: Final = 1 << 18
_BLOCK_BYTES: Final = 512
_TIME_MAX: Final = (1 << 32) - 1
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_KIND_OF: Final = {
    stat.S_IFREG: Kind.REGULAR,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFIFO: Kind.FIFO,
}
"""A socket is none of them, and in no layer."""


@dataclass(slots=True)
class _Folder:
    file: int
    path: bytes
    names: Iterator[bytes]


@dataclass(slots=True)
class _Found:
    entry: TarEntry
    file: int = -1
    """Of a regular file, open."""


class DirectoryReader:
    """The entries of a directory, from the top down, names in their order.

    Raises `OSError`, and `TarRefusedError` for a file in too many parts. To be
    read to the end, or with the process to be ended.
    """

    def __init__(self, top: int, limits: TarLimits) -> None:
        """`top` is a descriptor of the directory."""
        self._top = top
        self._limits = limits
        self._names: dict[tuple[int, int], bytes] = {}
        """Of files with more names than one: the first."""
        self._given = _Found(TarEntry(b"", Kind.DIRECTORY, 0, 0, 0, 0))

    def __iter__(self) -> Iterator[TarEntry]:
        """Yield every entry; its content may be asked for until the next."""
        ahead: deque[_Found] = deque()
        for found in self._walk():
            ahead.append(found)
            if len(ahead) > _AHEAD:
                yield from self._give(ahead.popleft())
        while ahead:
            yield from self._give(ahead.popleft())

    def content(self) -> Iterator[bytes]:
        """Yield the content of the entry that was yielded last, without its holes."""
        entry, file = self._given.entry, self._given.file
        extents = ((0, entry.size_bytes),) if entry.extents is None else entry.extents
        for at, size in extents:
            end = at + size
            while at < end:
                piece = os.pread(file, min(_PIECE_BYTES, end - at), at)
                if not piece:
                    raise OSError(errno.EIO, f"{shown(entry.path)} became shorter")
                yield piece
                at += len(piece)

    def _give(self, found: _Found) -> Iterator[TarEntry]:
        self._given = found
        yield found.entry
        if found.file >= 0:
            os.close(found.file)

    def _walk(self) -> Iterator[_Found]:
        yield _Found(_entry(b".", Kind.DIRECTORY, os.fstat(self._top), self._top))
        folders = [_Folder(self._top, b"", _names(self._top))]
        # A list and no calls: how deep it goes is a guest's choice.
        while folders:
            folder = folders[-1]
            name = next(folder.names, None)
            if name is None:
                os.close(folders.pop().file)
                continue
            status = os.stat(name, dir_fd=folder.file, follow_symlinks=False)
            kind = _KIND_OF.get(stat.S_IFMT(status.st_mode))
            path = folder.path + name
            if kind is Kind.DIRECTORY:
                file = os.open(name, _OPEN | os.O_DIRECTORY, dir_fd=folder.file)
                yield _Found(_entry(path, kind, status, file))
                folders.append(_Folder(file, path + b"/", _names(file)))
            elif kind is not None:
                yield self._found(folder, name, path, kind, status)

    def _found(
        self, folder: _Folder, name: bytes, path: bytes, kind: Kind, status: os.stat_result
    ) -> _Found:
        """Return what is no directory."""
        if status.st_nlink > 1 and kind is not Kind.FIFO:
            first = self._names.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                entry = _entry(path, Kind.HARD_LINK, status)
                entry.target = first
                return _Found(entry)
        if kind is Kind.REGULAR:
            return self._regular(os.open(name, _OPEN, dir_fd=folder.file), path, status)
        entry = _entry(path, kind, status)
        if kind is Kind.SYMLINK:
            entry.target = os.readlink(name, dir_fd=folder.file)
        elif kind is not Kind.FIFO:
            entry.device = os.major(status.st_rdev), os.minor(status.st_rdev)
        return _Found(entry)

    def _regular(self, file: int, path: bytes, status: os.stat_result) -> _Found:
        entry = _entry(path, Kind.REGULAR, status, file)
        entry.size_bytes = entry.content_bytes = status.st_size
        if _may_have_holes(status):
            entry.extents = self._extents(file, path, status.st_size)
            if entry.extents is not None:
                entry.content_bytes = sum(size for _, size in entry.extents)
        if entry.content_bytes:
            size = min(_AHEAD_BYTES, status.st_size)
            os.posix_fadvise(file, 0, size, os.POSIX_FADV_WILLNEED)
        return _Found(entry, file)

    def _extents(self, file: int, path: bytes, size: int) -> tuple[tuple[int, int], ...] | None:
        """Return where a file has content, with nothing at its end, as GNU tar does."""
        found: list[tuple[int, int]] = []
        at = 0
        while at < size:
            try:
                at = os.lseek(file, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # Nothing but a hole is left.
                    break
                raise
            end = os.lseek(file, at, os.SEEK_HOLE)
            found.append((at, end - at))
            if len(found) >= self._limits.extents:
                raise TarRefusedError(
                    f"the entry {shown(path)} has more parts than may be", is_too_large=True
                )
            at = end
        return None if found == [(0, size)] else (*found, (size, 0))


def _may_have_holes(status: os.stat_result) -> bool:
    whole, rest = divmod(status.st_size, _BLOCK_BYTES)
    return status.st_blocks < whole + (rest > 0 and whole > 0)


def _names(folder: int) -> Iterator[bytes]:
    return iter(sorted(map(os.fsencode, os.listdir(folder))))


def _entry(path: bytes, kind: Kind, status: os.stat_result, file: int = -1) -> TarEntry:
    """Return an entry; `file`: with the attributes of what is open there."""
    names = os.listxattr(file) if file >= 0 else ()
    return TarEntry(
        path=path,
        kind=kind,
        mode=status.st_mode & 0o7777,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_s=min(max(status.st_mtime_ns // 10**9, 0), _TIME_MAX),
        xattrs={os.fsencode(name): os.getxattr(file, name) for name in names},
    )
