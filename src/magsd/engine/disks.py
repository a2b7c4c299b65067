"""The writable disks of VMs: one sparse ext4 image each, in `disks/` of the data directory.

Where copies of files do not share their blocks there, they lie in a disk pool
instead, see `disk_pool`. Owns making them and deleting them. `mkfs` runs once
for a size, into `blank/`; the others are copies of that, 2 ms each: starting a
process forks the daemon, and while a large one is copied its event loop stands
still. Those of the usual size are copied ahead of need, into `spare/`.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from magsd.aio import SingleFlight, Tasks, finish
from magsd.engine import disk_files, process
from magsd.engine.disk_files import UNFINISHED
from magsd.engine.disk_pool import DiskPool, PoolSettings
from magsd.engine.process import ProcessError
from magsd.model.errors import JobCode, LaunchError
from magsd.model.names import VmId

_SUFFIX: Final = ".ext4"
_OWNER_SUFFIX: Final = ".of"
_MKFS: Final = ("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096")
_MKFS_LAZY: Final = ("-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard")
_MKFS_S: Final = 60.0
_log = structlog.get_logger()


@dataclass(frozen=True)
class _Folder:
    """A place of disks: that of all new ones, or that of those from before a change."""

    path: Path
    has_reflinks: bool

    @property
    def spare(self) -> Path:
        """Where those that are made ahead lie."""
        return self.path / "spare"

    @property
    def blank(self) -> Path:
        """Where those lie that others are copied from."""
        return self.path / "blank"

    def disk(self, vm: VmId) -> Path:
        """Return where a VM's image lies, if it is here."""
        return self.path / f"{vm}{_SUFFIX}"

    def owner(self, name: VmId) -> Path:
        """Return the link to the snapshot that a disk here is kept for."""
        return self.path / f"{name}{_OWNER_SUFFIX}"

    def owners(self) -> list[Path]:
        """Return all such links."""
        return list(self.path.glob(f"*{_OWNER_SUFFIX}"))

    def disks(self) -> list[Path]:
        """Return the images of VMs."""
        return list(self.path.glob(f"*{_SUFFIX}"))

    def prepare(self) -> None:
        """Make the folders, and drop what was left unfinished. Raises `OSError`."""
        for folder in (self.spare, self.blank):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)
        for folder in (self.path, self.spare, self.blank):
            for left_over in folder.glob(f"{UNFINISHED}*"):
                left_over.unlink(missing_ok=True)
        # Made anew by each daemon: whatever happened to one is not handed on.
        for blank in self.blank.glob(f"*{_SUFFIX}"):
            blank.unlink(missing_ok=True)


class Disks:
    """The images of one data directory. One owner: spare ones are counted here only.

    `prepare` comes first; `aclose` leaves living VMs what they have open.
    """

    def __init__(
        self,
        directory: Path,
        *,
        spare_gb: int,
        spare_count: int,
        tasks: Tasks,
        pool: PoolSettings | None = None,
    ) -> None:
        self._pool_settings = pool or PoolSettings()
        self._pool = DiskPool(directory.parent, self._pool_settings.size_gb)
        self._directory = directory
        self._main = _Folder(directory, has_reflinks=False)
        self._other: _Folder | None = None
        self._is_pooled = False
        self._blanks = SingleFlight()
        self._spare_gb = spare_gb
        self._spare_count = spare_count
        self._tasks = tasks
        self._refill: asyncio.Task[None] | None = None
        self._numbers = itertools.count()
        self.being_kept: set[VmId] = set()
        """Disks of snapshots that are being made."""

    async def prepare(self) -> None:
        """Find out where disks lie, drop what was left unfinished, begin to make spare images.

        Raises `LaunchError`, `OSError`.
        """
        own = _Folder(self._directory, has_reflinks=False)
        own.prepare()
        own = _Folder(self._directory, disk_files.has_reflinks(self._directory))
        self._main, self._other = await self._folders(own)
        if self._other is not None:
            self._drop_spares(self._other, keep_gb=None)
            if not self._other.disks():
                self._other = None
        self._drop_spares(self._main, keep_gb=self._spare_gb)
        self.refill()

    async def _folders(self, own: _Folder) -> tuple[_Folder, _Folder | None]:
        """Return where new disks are to be, and where older ones may be."""
        mode = self._pool_settings.mode
        is_wanted = mode == "on" or (mode == "auto" and not own.has_reflinks)
        if self._pool.exists():
            pool = _Folder(await self._pool.open(), has_reflinks=True)
        elif not is_wanted:
            return own, None
        else:
            try:
                pool = _Folder(await self._pool.make(own.path), has_reflinks=True)
            except LaunchError as error:
                if mode == "on":
                    raise
                _log.warning("no_disk_pool", error=error.message, detail=error.detail)
                return own, None
        if is_wanted:
            pool.prepare()
            self._is_pooled = True
            return pool, own
        if pool.disks():
            return own, pool
        self._pool.remove()
        return own, None

    def _drop_spares(self, folder: _Folder, *, keep_gb: int | None) -> None:
        for spare in folder.spare.glob(f"*{_SUFFIX}"):
            # Another default size may have held when it was made.
            if keep_gb is None or spare.stat().st_size != keep_gb << 30:
                spare.unlink(missing_ok=True)

    async def aclose(self) -> None:
        """Let go of the disk pool, when nothing is made in it any more. Idempotent."""
        await self._blanks.idle()
        await finish(asyncio.to_thread(self._pool.close))

    def path(self, vm: VmId) -> Path:
        """Return where a VM's image lies, whether it is there or not."""
        return self._folder_of(vm).disk(vm)

    def has_reflinks(self, vm: VmId) -> bool:
        """Say whether a copy of this VM's image takes no time, whatever the size."""
        return self._folder_of(vm).has_reflinks

    def _folder_of(self, vm: VmId) -> _Folder:
        other = self._other
        return self._main if other is None or not other.disk(vm).exists() else other

    async def create(self, vm: VmId, size_gb: int) -> Path:
        """Give a VM an empty image. Raises `LaunchError`; nothing is left then."""
        self.require_room()
        target = self._main.disk(vm)
        if size_gb == self._spare_gb and self._take_spare(target):
            return target
        await self._make(target, size_gb)
        return target

    async def create_copy(self, vm: VmId, image: int) -> Path:
        """Give a VM a copy of an image that is open. Raises `LaunchError`; nothing is left then."""
        self.require_room()
        target = self._main.disk(vm)
        try:
            await finish(asyncio.to_thread(disk_files.copy, image, target))
        except OSError as error:
            raise _failure(error) from error
        except asyncio.CancelledError:
            target.unlink(missing_ok=True)
            raise
        return target

    def require_room(self) -> None:
        """Raise `LaunchError` when no VM is to begin: the last of the room is being used up."""
        if self._is_pooled:
            try:
                self._pool.require_room()
            except OSError as error:
                raise _failure(error) from error

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

    def copy_unnamed(self, vm: VmId, image: int) -> int:
        """Return a descriptor of a copy of a VM's image; with it the copy goes. Blocks.

        Raises `OSError`.
        """
        return disk_files.unnamed_copy(image, self._folder_of(vm).path)

    def keep_copy(self, name: VmId, image: int, snapshot: Path) -> None:
        """Keep a copy of an image under a name, for as long as there is a snapshot. Blocks.

        Raises `OSError`; nothing is left then.
        """
        owner = self._main.owner(name)
        owner.symlink_to(snapshot.absolute())
        try:
            disk_files.copy(image, self._main.disk(name))
        except BaseException:
            owner.unlink()
            raise

    def of_snapshots(self) -> set[VmId]:
        """Return the names of disks whose snapshot is there, or is being made."""
        found = set(self.being_kept)
        for folder in self._all():
            found |= {VmId(link.stem) for link in folder.owners() if link.exists()}
        return found

    async def drop_orphans(self) -> None:
        """Delete the disks of snapshots that were deleted."""
        kept = self.of_snapshots()
        for link in [link for folder in self._all() for link in folder.owners()]:
            if (name := VmId(link.stem)) not in kept:
                await self.delete(name)

    def brought_near(self, image: int) -> int:
        """Return a descriptor of an image where copies of it are as quick as can be. Blocks.

        That is `image` itself, or a copy, for which it is closed. Raises `OSError`.
        """
        if os.fstat(image).st_dev == self._main.path.stat().st_dev:
            return image
        copy = disk_files.unnamed_copy(image, self._main.path)
        os.close(image)
        return copy

    async def delete(self, vm: VmId) -> None:
        """Delete a VM's image, in a thread: it may be large. Idempotent."""
        # Named as unfinished first: what a crash leaves of it is dropped at the next start.
        folder = self._folder_of(vm)
        folder.owner(vm).unlink(missing_ok=True)
        doomed = disk_files.unfinished_name(folder.path)
        try:
            folder.disk(vm).rename(doomed)
        except FileNotFoundError:
            return
        await finish(asyncio.to_thread(doomed.unlink, missing_ok=True))

    def names(self) -> list[VmId]:
        """Return the VMs that have an image."""
        return [VmId(path.stem) for folder in self._all() for path in folder.disks()]

    def _all(self) -> list[_Folder]:
        return [self._main, *([] if self._other is None else [self._other])]

    def _spares(self) -> list[Path]:
        return sorted(self._main.spare.glob(f"*{_SUFFIX}"))

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
                self.require_room()
                target = self._main.spare / f"{next(self._numbers)}-{secrets.token_hex(4)}{_SUFFIX}"
                await self._make(target, self._spare_gb)
        except LaunchError as error:
            # Launches make their own then, and say what is wrong to who asked.
            _log.warning("no spare disks", detail=error.detail, error=error.message)

    async def _make(self, target: Path, size_gb: int) -> None:
        """Make an image, whole or not at all."""
        try:
            blank = await self._blanks.do(size_gb, lambda: self._blank_of(size_gb))
            await finish(asyncio.to_thread(disk_files.copy_file, blank, target))
        except (OSError, ProcessError) as error:
            raise _failure(error) from error
        except asyncio.CancelledError:
            target.unlink(missing_ok=True)
            raise

    async def _blank_of(self, size_gb: int) -> Path:
        """Return the image of this size that others are copied from."""
        target = self._main.blank / f"{size_gb}{_SUFFIX}"
        if target.exists():
            return target
        with disk_files.written_aside(target) as unfinished:
            with unfinished.open("xb") as image:
                image.truncate(size_gb << 30)
            await process.run([*_MKFS, *_MKFS_LAZY, unfinished], timeout_s=_MKFS_S)
        return target


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
