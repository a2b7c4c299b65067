"""Where the memory of VMs that sleep lies, and that none is gone on from twice.

A folder for each VM, below `snapshots/` of the data directory. Whoever goes on
from one takes it away first: what the VM writes then would not fit it any more.
What is in it is the engine's.
"""

import asyncio
import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

from magsd.aio import finish
from magsd.model.names import VmId

_TAKEN: Final = ".taken"
_SPARE: Final = 2
"""So many times its memory must be free beside what is to stay free, or no memory is kept."""


class Snapshots:
    """The snapshots of a node's VMs."""

    def __init__(self, data_directory: Path, free_min_bytes: int) -> None:
        self._folder = data_directory / "snapshots"
        self._free_min_bytes = free_min_bytes

    def place(self, vm: VmId) -> Path:
        """Return where the snapshot of a VM is, or is to be made; its folder is there."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._folder / vm

    def exists(self, vm: VmId) -> bool:
        """Say whether a VM has one that nobody has taken."""
        return (self._folder / vm).is_dir()

    def has_room(self, memory_mb: int) -> bool:
        """Say whether the host's disk has room to spare for so much memory. Raises `OSError`."""
        found = os.statvfs(self.place(VmId("")))
        free_bytes = found.f_bavail * found.f_frsize - self._free_min_bytes
        return free_bytes > _SPARE * memory_mb << 20

    def take(self, vm: VmId) -> Path | None:
        """Return the snapshot of a VM, which nobody else finds from now on; None: there is none."""
        taken = self._folder / f"{vm}{_TAKEN}"
        shutil.rmtree(taken, ignore_errors=True)
        with suppress(FileNotFoundError):
            (self._folder / vm).rename(taken)
            return taken
        return None

    async def drop(self, vm: VmId) -> None:
        """Remove all snapshots of a VM. Idempotent."""
        for place in (self._folder / vm, self._folder / f"{vm}{_TAKEN}"):
            if place.exists():
                await finish(asyncio.to_thread(shutil.rmtree, place, ignore_errors=True))

    async def sweep(self, keep: Collection[VmId]) -> None:
        """Remove what belongs to no VM of `keep`, and what was not finished or was taken."""
        names = [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []
        for name in names:
            if name not in keep:
                place = self._folder / name
                await finish(asyncio.to_thread(shutil.rmtree, place, ignore_errors=True))
