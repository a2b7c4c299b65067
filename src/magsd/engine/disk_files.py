"""Copies of disk images: by reference where the filesystem can, else only what is no hole.

Owns how a file is copied and written whole or not at all; what is copied when
is decided by `disks`. All of it blocks.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

UNFINISHED: Final = ".new-"
"""How the name of a file begins that is being written, or deleted."""
_FICLONE: Final = 0x40049409
_NO_REFLINKS: Final = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL}
_PIECE_BYTES: Final = 4 << 20
_FIEMAP: Final = 0xC020660B
_FIEMAP_HEAD: Final = struct.Struct("=QQIIII")
_MANY_PIECES: Final = 2000
"""Copies by reference take 15 to 80 µs for each piece of a file, others 0.25 s for 1 GB (measured,
XFS): so for fewer than these, and for files with little data to each, nothing else is thought of."""
_BYTES_PER_PIECE: Final = 128 << 10

_Copying: TypeAlias = Callable[[int, int, int, int], None]


def has_reflinks(directory: Path) -> bool:
    """Say whether copies of files in a directory can share their blocks. Raises `OSError`."""
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    one, other = (os.open(directory, flags, 0o600) for _ in range(2))
    try:
        os.write(one, bytes(4096))
        fcntl.ioctl(other, _FICLONE, one)
    except OSError as error:
        if error.errno not in _NO_REFLINKS:
            raise
        return False
    finally:
        os.close(one)
        os.close(other)
    return True


def unfinished_name(directory: Path) -> Path:
    """Return a path for what a later start is to drop if nobody renames it."""
    return directory / f"{UNFINISHED}{secrets.token_hex(8)}"


@contextlib.contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Yield a path that becomes `target` when the block succeeds, and is removed when not."""
    unfinished = unfinished_name(target.parent)
    try:
        yield unfinished
        unfinished.rename(target)
    finally:
        unfinished.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> None:
    """Copy an image, whole or not at all. Raises `OSError`."""
    with source.open("rb") as file:
        copy(file.fileno(), target)


def copy(source: int, target: Path) -> None:
    """Copy an image that is open, whole or not at all. Raises `OSError`."""
    with written_aside(target) as unfinished, unfinished.open("xb") as file:
        os.fchmod(file.fileno(), 0o600)
        copy_into(source, file.fileno())


def unnamed_copy(source: int, directory: Path) -> int:
    """Return a descriptor of a copy in `directory`; with it the copy goes. Raises `OSError`."""
    made = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        copy_into(source, made)
    except BaseException:
        os.close(made)
        raise
    return made


def copy_into(source: int, target: int) -> None:
    """Copy an image into an empty file. Raises `OSError`."""
    if _is_quicker_by_data(source):
        # Not by the kernel, which would make references.
        copy_data(source, target, _copy_by_hand)
        return
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _NO_REFLINKS:
            raise
        copy_data(source, target)


def _is_quicker_by_data(source: int) -> bool:
    """Say whether a file is in so many pieces that each is hardly worth a reference."""
    asked = bytearray(_FIEMAP_HEAD.pack(0, (1 << 64) - 1, 0, 0, 0, 0))
    try:
        fcntl.ioctl(source, _FIEMAP, asked)
    except OSError:  # A filesystem without it has no reflinks either.
        return False
    pieces: int = _FIEMAP_HEAD.unpack(asked)[3]
    data_bytes = os.fstat(source).st_blocks * 512
    return pieces > _MANY_PIECES and data_bytes < pieces * _BYTES_PER_PIECE


def copy_data(source: int, target: int, copy_extent: _Copying | None = None) -> None:
    """Copy what is no hole, also from one filesystem to another. Raises `OSError`."""
    os.truncate(target, os.fstat(source).st_size)
    copy_extent = copy_extent or _copy_by_kernel
    for at, end in _data_of(source):
        try:
            copy_extent(source, target, at, end)
        except OSError as error:
            if error.errno not in _NO_REFLINKS or copy_extent is _copy_by_hand:
                raise
            copy_extent = _copy_by_hand
            copy_extent(source, target, at, end)


def pieces_of(file: int, most_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield where a file's first data lies, and how many bytes: pieces that are not large.

    Raises `OSError`.
    """
    for at, end in _data_of(file):
        while at < end and most_bytes > 0:
            size = min(_PIECE_BYTES, end - at, most_bytes)
            yield at, size
            at, most_bytes = at + size, most_bytes - size
        if most_bytes <= 0:
            return


def will_need(file: int, at: int, size_bytes: int) -> None:
    """Have the kernel read part of a file, in large pieces, while others go on. Raises `OSError`.

    A filesystem in an image asks for one file after another, and waits for each.
    """
    os.posix_fadvise(file, at, size_bytes, os.POSIX_FADV_WILLNEED)


def _data_of(file: int) -> Iterator[tuple[int, int]]:
    """Yield where a file has data, from and to. Raises `OSError`."""
    at, size = 0, os.fstat(file).st_size
    while at < size:
        try:
            at = os.lseek(file, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        end = os.lseek(file, at, os.SEEK_HOLE)
        yield at, end
        at = end


def _copy_by_kernel(source: int, target: int, at: int, end: int) -> None:
    while at < end:
        copied = os.copy_file_range(source, target, end - at, at, at)
        if not copied:  # Some filesystems say so instead of failing.
            _copy_by_hand(source, target, at, end)
            return
        at += copied


def _copy_by_hand(source: int, target: int, at: int, end: int) -> None:
    while at < end:
        piece = os.pread(source, min(_PIECE_BYTES, end - at), at)
        if not piece:
            raise OSError(errno.EIO, "the file became shorter while it was copied")
        while piece:
            written = os.pwrite(target, piece, at)
            piece, at = piece[written:], at + written
