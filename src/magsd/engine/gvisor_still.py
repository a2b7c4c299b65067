"""What a gVisor VM has changed: how it is held still, and its disk's upper directory, to be read.

The image was written by this host's kernel only, which may mount it again.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import structlog

from magsd.aio import Tasks, finish
from magsd.engine import disk_files, gvisor_spec, mounts
from magsd.engine.base import Capture
from magsd.engine.record import VmRecord
from magsd.guest.shim import ShimConnection

_AHEAD_BYTES: Final = 1 << 30
_AHEAD_SHARE: Final = 16
"""And no more than this part of a machine's memory: others need it too."""
_log: Final = structlog.get_logger()


class FreezerHolding:
    """A VM held by its control group's freezer, which its shim writes.

    Not by freezing the filesystem: that would stay frozen, whoever dies.
    """

    def __init__(self, connection: ShimConnection, disk: int, deadline_ms: int) -> None:
        self._connection = connection
        self._disk = disk
        self._deadline_ms = deadline_ms

    async def write_out(self) -> None:
        """Have what was written so far in the image, and give back what is free."""
        # What is not given back takes room, and no more.
        with contextlib.suppress(OSError):
            await finish(asyncio.to_thread(mounts.trim, self._disk))
        await self._sync()

    async def hold(self) -> None:
        """Freeze the VM, then write out the rest."""
        await self._connection.request("freeze", deadline_ms=str(self._deadline_ms))
        await self._sync()

    async def _sync(self) -> None:
        await finish(asyncio.to_thread(mounts.sync_filesystem, self._disk))

    async def let_go(self) -> None:
        """Let it go on."""
        await self._connection.request("thaw")


@asynccontextmanager
async def held_by_freezer(
    record: VmRecord, connection: ShimConnection, deadline_ms: int
) -> AsyncIterator[FreezerHolding]:
    """Hold a VM for a while; see `moment.Hold`."""
    # The shim's working directory is the run directory, as its own namespace has it.
    place = Path(f"/proc/{record.shim_pid}/cwd", gvisor_spec.DISK)
    disk = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield FreezerHolding(connection, disk, deadline_ms)
    finally:
        # The end of the connection lets go too. Open, this would keep the disk from being unmounted.
        os.close(disk)


async def upper_of(disk: int, held: AsyncExitStack) -> Capture:
    """Show the upper directory of an image until `held` is unwound. Raises `OSError`."""
    mounted: list[int] = []
    held.push_async_callback(_close, mounted)
    await finish(asyncio.to_thread(_mount, disk, mounted))
    _begin_to_read(disk, held)  # Not before: mounting would have to wait for much of it.
    return Capture(directory=Path(f"/proc/{os.getpid()}/fd/{mounted[-1]}"))


def _begin_to_read(disk: int, held: AsyncExitStack) -> None:
    """Have an image in memory soon: a copy by reference has nothing there of what it is a copy of."""
    tasks = Tasks(_report)
    held.push_async_callback(tasks.aclose)
    tasks.spawn("read ahead", _read_ahead(disk))


async def _read_ahead(disk: int) -> None:
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    most_bytes = min(_AHEAD_BYTES, memory_bytes // _AHEAD_SHARE)
    # What is not read ahead is read when it is asked for.
    with contextlib.suppress(OSError):
        for at, size in disk_files.pieces_of(disk, most_bytes):
            # One by one: a slow disk must not keep a thread from others for long.
            await finish(asyncio.to_thread(disk_files.will_need, disk, at, size))


def _report(name: str, error: BaseException) -> None:
    _log.error("task_failed", task=name, exc_info=error)


def _mount(disk: int, mounted: list[int]) -> None:
    mounted.append(mounts.mount_detached(disk, "ext4"))
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    name = Path(gvisor_spec.UPPER).name
    mounted.append(os.open(name, flags, dir_fd=mounted[0]))


async def _close(mounted: list[int]) -> None:
    while mounted:
        await finish(asyncio.to_thread(os.close, mounted.pop()))
