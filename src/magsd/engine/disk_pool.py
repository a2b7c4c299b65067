"""The disk pool: an XFS with reflinks in one sparse file, for hosts whose own filesystem has none.

Owns the file `disks.img` of a data directory: how it is made, mounted and
grown, and whether there is room in it. What lies in it is `disks`' part. It is
mounted where nobody sees it, and no mount namespace that anybody makes gets a
copy: it is gone with the last descriptor of it and of the files in it, and its
loop device too. So VMs keep it while there is no daemon, and the next daemon
finds it by that loop device, for two of one file would destroy what is in it.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import structlog

from magsd.aio import finish
from magsd.engine import mounts, process
from magsd.engine.disk_files import unfinished_name
from magsd.engine.process import ProcessError
from magsd.model.errors import JobCode, LaunchError

IMAGE: Final = "disks.img"
"""Its name in the data directory."""
PROGRAM: Final = "mkfs.xfs"
_BLOCK_BYTES: Final = 4096
_MKFS: Final = (PROGRAM, "-q", "-m", "reflink=1", "-s", f"size={_BLOCK_BYTES}", "-i", "maxpct=25")
"""The log is written in full by it: what the pool needs to stay whole has its room on the host."""
_INODES_PERCENT: Final = 25
_MKFS_S: Final = 60.0
_OPTIONS: Final = "discard,nouuid"
"""What is deleted is given back to the host; a copy of a data directory is no reason to fail."""
_SHARE: Final = 0.9
"""Of what the host has free, for a pool without a size of its own."""
_LEAST_BYTES: Final = 512 << 20
_GROWTH_BYTES: Final = 1 << 30
"""Less than that more is not worth it."""
_RESERVE_BYTES: Final = 1 << 30
_RESERVE_SHARE: Final = 10
"""No VM begins with less than that free: the smaller of these bytes and this part of the pool."""
# linux: _IOW('X', 110, struct xfs_growfs_data)
_XFS_IOC_FSGROWFSDATA: Final = 0x4010586E
_log: Final = structlog.get_logger()

PoolMode = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class PoolSettings:
    """What an operator decides about the pool."""

    mode: PoolMode = "auto"
    """`auto`: where the host's own filesystem has no reflinks."""
    size_gb: int | None = None
    """None: nine tenths of what the host has free."""


class DiskPool:
    """The pool of one data directory. `open` or `make` comes first; `close` leaves VMs theirs."""

    def __init__(self, data_directory: Path, size_gb: int | None) -> None:
        self.image = data_directory / IMAGE
        self._size_gb = size_gb
        self._held = contextlib.ExitStack()
        self._root = self.image

    def exists(self) -> bool:
        """Say whether there is one, mounted or not."""
        return self.image.exists()

    async def make(self, aside: Path) -> Path:
        """Make and open one; see `open`. `aside`: where it may lie unfinished.

        Raises `LaunchError`; nothing is left then.
        """
        made, is_own = unfinished_name(aside), False
        try:
            size_bytes = self._wanted_bytes()
            if size_bytes < _LEAST_BYTES:
                raise _no_pool("there is too little room", f"{size_bytes} bytes")
            with made.open("xb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.truncate(size_bytes)
            await process.run([*_MKFS, made], timeout_s=_MKFS_S)
            # Whoever was first has it, and files in it.
            with contextlib.suppress(FileExistsError):
                self.image.hardlink_to(made)
                is_own = True
        except ProcessError as error:
            raise _no_pool("is the package xfsprogs installed?", error.detail) from error
        except OSError as error:
            raise _no_pool(error.strerror or "it cannot be written", str(error)) from error
        finally:
            made.unlink(missing_ok=True)
        try:
            return await self.open()
        except LaunchError as error:
            if is_own:
                self.image.unlink()
            raise _no_pool("this kernel does not mount one", error.detail) from error

    async def open(self) -> Path:
        """Mount it, make it as large as is wanted, and return where its files are.

        The path is good for all processes of root, until `close`. Raises `LaunchError`.
        """
        try:
            self._root = await finish(
                asyncio.to_thread(self._held.enter_context, shown(self.image))
            )
            await finish(asyncio.to_thread(self._grow))
        except OSError as error:
            self.close()
            raise LaunchError(
                "the disk pool cannot be mounted: `magsd doctor` says what to do",
                f"{self.image}: {error}",
            ) from error
        return self._root

    def close(self) -> None:
        """Let go of it; open files in it stay what they are. Idempotent."""
        self._held.close()

    def remove(self) -> None:
        """Delete it, with all that is in it."""
        self.close()
        self.image.unlink(missing_ok=True)

    def require_room(self) -> None:
        """Raise `LaunchError` where a VM more might be one too many for what is free.

        VMs would see errors of their disks once nothing is: so the last of it is for those that
        live. Grows the pool where the host has room.
        """
        size_bytes = self.image.stat().st_size
        reserve_bytes = min(_RESERVE_BYTES, size_bytes // _RESERVE_SHARE)
        if (free_bytes := _free_bytes(self.image.parent)) < reserve_bytes:
            raise LaunchError(
                "the host's disk is full: free some space in the data directory",
                f"{free_bytes} bytes are free, {reserve_bytes} are kept for VMs that live",
                JobCode.HOST_DISK_FULL,
            )
        if _free_bytes(self._root) >= reserve_bytes:
            return
        self._grow()
        if (free_bytes := _free_bytes(self._root)) < reserve_bytes:
            raise LaunchError(
                "the disk pool is full: end some sandboxes, or raise MAGSD_DISK_POOL_GB",
                f"{free_bytes} of {size_bytes} bytes are free in it, {reserve_bytes} are kept",
                JobCode.HOST_DISK_FULL,
            )

    def _wanted_bytes(self) -> int:
        if self._size_gb is not None:
            return self._size_gb << 30
        used = self.image.stat().st_blocks * 512 if self.image.exists() else 0
        share = int((_free_bytes(self.image.parent) + used) * _SHARE)
        return share - share % _LEAST_BYTES

    def _grow(self) -> None:
        """Make it as large as is wanted; never smaller. Raises `OSError`."""
        wanted_bytes = self._wanted_bytes()
        with _locked(self.image) as image:
            size_bytes = os.fstat(image).st_size
            is_set = self._size_gb is not None
            if wanted_bytes > size_bytes and (is_set or wanted_bytes - size_bytes >= _GROWTH_BYTES):
                os.ftruncate(image, wanted_bytes)
                _log.info("disk_pool_grown", from_bytes=size_bytes, to_bytes=wanted_bytes)
                size_bytes = wanted_bytes
            # Also after a crash between the steps.
            mounts.tell_size(image)
            blocks = size_bytes // _BLOCK_BYTES
            root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                wish = struct.pack("=QI4x", blocks, _INODES_PERCENT)
                fcntl.ioctl(root, _XFS_IOC_FSGROWFSDATA, wish)
            finally:
                os.close(root)


@contextlib.contextmanager
def shown(image: Path) -> Iterator[Path]:
    """Yield where the files of a pool are, while the block runs; others may have it too.

    Blocks; raises `OSError`.
    """
    with _locked(image) as file:
        mounted = mounts.mount_detached(
            file, "xfs", is_writable=True, is_direct=True, options=_OPTIONS
        )
    try:
        yield Path(f"/proc/{os.getpid()}/fd/{mounted}")
    finally:
        os.close(mounted)


@contextlib.contextmanager
def _locked(image: Path) -> Iterator[int]:
    """Yield a descriptor of a pool's file; nobody else attaches it meanwhile."""
    file = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)


def _free_bytes(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def _no_pool(why: str, detail: str) -> LaunchError:
    is_full = os.strerror(errno.ENOSPC) in detail
    code = JobCode.HOST_DISK_FULL if is_full else JobCode.LAUNCH_FAILED
    return LaunchError(f"a disk pool could not be made: {why}", detail, code)
