"""The writable disks of VMs: one sparse ext4 image each, in `disks/` of the data directory.

Owns making them and deleting them. `mkfs` runs once for a size, into
`disks/blank/`; the others are copies of that, 2 ms each: starting a process
forks the daemon, and while a large one is copied its event loop stands still.
Those of the usual size are copied ahead of need, into `disks/spare/`.
Attaching one is the shim's part. Everything here is made by the host: no image that a guest
kernel wrote is ever mounted from here.
"""

import asyncio
import contextlib
import errno
import fcntl
import itertools
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

from magsd.aio import SingleFlight, Tasks, finish
from magsd.engine import process
from magsd.engine.process import ProcessError
from magsd.model.errors import JobCode, LaunchError
from magsd.model.names import VmId

_SUFFIX: Final = ".ext4"
_MKFS: Final = ("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096")
_MKFS_LAZY: Final = ("-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard")
_MKFS_S: Final = 60.0
_UNFINISHED: Final = ".new-"
_FICLONE: Final = 0x40049409
_NO_REFLINKS: Final = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL}
_log = structlog.get_logger()


class Disks:
    """The images of one data directory. One owner: spare ones are counted here only."""

    def __init__(self, directory: Path, *, spare_gb: int, spare_count: int, tasks: Tasks) -> None:
        self._directory = directory
        self._spare = directory / "spare"
        self._blank = directory / "blank"
        self._blanks = SingleFlight()
        self._spare_gb = spare_gb
        self._spare_count = spare_count
        self._tasks = tasks
        self._refill: asyncio.Task[None] | None = None
        self._numbers = itertools.count()
        self.has_reflinks = False
        """Copies take no time, whatever the size: known when it is prepared."""

    def prepare(self) -> None:
        """Make the folders, drop what was left unfinished, begin to make spare images."""
        for folder in (self._spare, self._blank):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory.chmod(0o700)
        self.has_reflinks = _has_reflinks(self._directory)
        for folder in (self._directory, self._spare, self._blank):
            for left_over in folder.glob(f"{_UNFINISHED}*"):
                left_over.unlink(missing_ok=True)
        # Made anew by each daemon: whatever happened to one is not handed on.
        for blank in self._blank.glob(f"*{_SUFFIX}"):
            blank.unlink(missing_ok=True)
        for spare in self._spares():
            # Another default size may have held when it was made.
            if spare.stat().st_size != self._spare_gb << 30:
                spare.unlink(missing_ok=True)
        self.refill()

    def path(self, vm: VmId) -> Path:
        """Return where a VM's image lies, whether it is there or not."""
        return self._directory / f"{vm}{_SUFFIX}"

    async def create(self, vm: VmId, size_gb: int) -> Path:
        """Give a VM an empty image. Raises `LaunchError`; nothing is left then."""
        target = self.path(vm)
        if size_gb == self._spare_gb and self._take_spare(target):
            return target
        await self._make(target, size_gb)
        return target

    async def create_copy(self, vm: VmId, image: int) -> Path:
        """Give a VM a copy of an image that is open. Raises `LaunchError`; nothing is left then."""
        target = self.path(vm)
        try:
            await finish(asyncio.to_thread(_copy, image, target))
        except OSError as error:
            raise _failure(error) from error
        except asyncio.CancelledError:
            target.unlink(missing_ok=True)
            raise
        return target

    def open(self, vm: VmId) -> int:
        """Return a descriptor of a VM's image, for nobody else to open like this meanwhile.

        Raises `LookupError` when there is none, `LaunchError` when somebody has it.
        """
        try:
            image = os.open(self.path(vm), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise LookupError(f"VM {vm} has no disk any more") from None
        try:
            fcntl.flock(image, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(image)
            raise LaunchError("what this VM has changed is being read already") from None
        return image

    def copy_unnamed(self, image: int) -> int:
        """Return a descriptor of a copy of an image; with it the copy goes. Blocks.

        Raises `OSError`.
        """
        copy = os.open(self._directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            _copy_into(image, copy)
        except BaseException:
            os.close(copy)
            raise
        return copy

    async def delete(self, vm: VmId) -> None:
        """Delete a VM's image, in a thread: it may be large. Idempotent."""
        # Named as unfinished first: what a crash leaves of it is dropped at the next start.
        doomed = self._directory / f"{_UNFINISHED}{secrets.token_hex(8)}"
        try:
            self.path(vm).rename(doomed)
        except FileNotFoundError:
            return
        await finish(asyncio.to_thread(doomed.unlink, missing_ok=True))

    def names(self) -> list[VmId]:
        """Return the VMs that have an image."""
        return [VmId(path.stem) for path in self._directory.glob(f"*{_SUFFIX}")]

    def _spares(self) -> list[Path]:
        return sorted(self._spare.glob(f"*{_SUFFIX}"))

    def _take_spare(self, target: Path) -> bool:
        for spare in self._spares():
            with contextlib.suppress(FileNotFoundError):
                spare.rename(target)
                return True
        return False

    def refill(self) -> None:
        """Make spare images until there are enough, in the background: not while a VM starts."""
        if self._spare_count > 0 and (self._refill is None or self._refill.done()):
            self._refill = self._tasks.spawn("spare disks", self._make_spares())

    async def _make_spares(self) -> None:
        try:
            while len(self._spares()) < self._spare_count:
                target = self._spare / f"{next(self._numbers)}-{secrets.token_hex(4)}{_SUFFIX}"
                await self._make(target, self._spare_gb)
        except LaunchError as error:
            # Launches make their own then, and say what is wrong to who asked.
            _log.warning("no spare disks", detail=error.detail, error=error.message)

    async def _make(self, target: Path, size_gb: int) -> None:
        """Make an image, whole or not at all."""
        try:
            blank = await self._blanks.do(size_gb, lambda: self._blank_of(size_gb))
            await finish(asyncio.to_thread(_copy_file, blank, target))
        except (OSError, ProcessError) as error:
            raise _failure(error) from error
        except asyncio.CancelledError:
            target.unlink(missing_ok=True)
            raise

    async def _blank_of(self, size_gb: int) -> Path:
        """Return the image of this size that others are copied from."""
        target = self._blank / f"{size_gb}{_SUFFIX}"
        if target.exists():
            return target
        with _written_aside(target) as unfinished:
            with unfinished.open("xb") as image:
                image.truncate(size_gb << 30)
            await process.run([*_MKFS, *_MKFS_LAZY, unfinished], timeout_s=_MKFS_S)
        return target


def _has_reflinks(directory: Path) -> bool:
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


@contextlib.contextmanager
def _written_aside(target: Path) -> Iterator[Path]:
    """Yield a path that becomes `target` when the block succeeds, and is removed when not."""
    unfinished = target.with_name(f"{_UNFINISHED}{secrets.token_hex(8)}")
    try:
        yield unfinished
        unfinished.rename(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _copy_file(blank: Path, target: Path) -> None:
    with blank.open("rb") as source:
        _copy(source.fileno(), target)


def _copy(source: int, target: Path) -> None:
    """Copy an image: by reference where the filesystem can, else only what is no hole."""
    with _written_aside(target) as unfinished, unfinished.open("xb") as copy:
        os.fchmod(copy.fileno(), 0o600)
        _copy_into(source, copy.fileno())


def _copy_into(source: int, copy: int) -> None:
    try:
        fcntl.ioctl(copy, _FICLONE, source)
    except OSError as error:
        if error.errno not in _NO_REFLINKS:
            raise
        _copy_data(source, copy)


def _copy_data(source: int, copy: int) -> None:
    size = os.fstat(source).st_size
    os.truncate(copy, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        end = os.lseek(source, at, os.SEEK_HOLE)
        while at < end:
            at += os.copy_file_range(source, copy, end - at, at, at)


def _failure(error: OSError | ProcessError) -> LaunchError:
    detail = error.detail if isinstance(error, ProcessError) else str(error)
    return failure(
        "the sandbox's disk could not be made: is the package e2fsprogs installed?", detail
    )


def failure(message: str, detail: str) -> LaunchError:
    """Return the error for what failed in a launch, which may be that the host's disk is full."""
    if any(os.strerror(number) in detail for number in (errno.ENOSPC, errno.EDQUOT)):
        return LaunchError(
            "the host's disk is full: free some space in the data directory",
            detail,
            JobCode.HOST_DISK_FULL,
        )
    return LaunchError(message, detail)
