"""Going on from a microVM that was saved.

Owns what such a machine is told before anything runs in it, and which snapshots it can
go on from. How one is started is `qemu_launch`'s part. The memory of a VM that was
suspended is mapped from the snapshot's file, so that no more of it is read than is
used; for copies of a VM that went on it is read once, and sealed.
"""

import asyncio
import os
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any, Final

from typing_extensions import override

from magsd.aio import SingleFlight, finish
from magsd.engine import disk_files, qemu_facts, snapshot_files, template_files
from magsd.engine import qemu_spec as spec
from magsd.engine.base import Plan, SnapshotError
from magsd.engine.launch_shim import ShimPlan, StartingShim
from magsd.engine.qemu_launch import CloneLaunch, Parts
from magsd.engine.snapshot_files import STATE, STREAMS, Manifest, Mark
from magsd.engine.template_files import Template
from magsd.engine.vm_host import VmHost
from magsd.engine.vm_launch import opened
from magsd.guest import identity
from magsd.guest.shim import ShimError
from magsd.model.errors import LaunchError

_IN_MEMORY_MAX: Final = 2
_SLOTS: Final = "slots"
_NAMES: Final = {
    "qemu": "another QEMU",
    "accelerator": "another accelerator",
    "processor": "another processor",
    "kernel": "another guest kernel",
    "command_line": "a processor of another frequency, or other kernel options",
    "initramfs": "another agent",
}


class RestoreLaunch(CloneLaunch):
    """A launch that goes on from a snapshot."""

    def __init__(
        self,
        host: VmHost,
        parts: Parts,
        plan: Plan,
        run_directory: Path,
        template: Template,
        snapshot: Path,
        manifest: Manifest,
    ) -> None:
        super().__init__(host, parts, plan, run_directory, template)
        self._snapshot = snapshot
        self._manifest = manifest

    @property
    @override
    def is_held(self) -> bool:
        # Until it knows who it is: it ends with whoever would have told it.
        return True

    @override
    def descriptors(self, held: AsyncExitStack) -> spec.Descriptors:
        usual = super().descriptors(held)
        rest = (None,) * (self._manifest.facts[_SLOTS] - len(usual.layers))
        return spec.Descriptors(usual.monitor, usual.layers + rest, usual.disk, usual.tap)

    @override
    def add_engine(self, plan: ShimPlan, held: AsyncExitStack) -> None:
        if not self._manifest.is_fork:
            # The emulator opens it for writing, though it writes to copies of its pages only.
            os.fchown(self.template.memory, self.emulator_uid, self.emulator_uid)
        super().add_engine(plan, held)
        streams = opened(self._snapshot / STREAMS, os.O_RDONLY, held)
        plan.add_descriptor("resume", streams)

    @override
    def beginning(self, plan: ShimPlan, held: AsyncExitStack) -> list[str]:
        super().beginning(plan, held)
        return spec.going_on(has_configuration=False)

    @override
    async def settle_in(self, shim: StartingShim) -> None:
        """Tell it who it is, and only then let anything run in it."""
        connection, now = shim.connection, self.host.clock.now()
        try:
            if self._manifest.is_fork:
                await identity.introduce(connection, self.plan.hostname, now)
            else:
                await identity.refresh(connection, now)
            await connection.request("proceed")
            await connection.request("claim")
        except ShimError as error:
            raise LaunchError("the sandbox cannot go on", repr(error)) from error


class Snapshots:
    """Which snapshots can be gone on from here, and the memory of those that many go on from."""

    def __init__(self, host: VmHost, parts: Parts) -> None:
        self._host = host
        self._parts = parts
        self._loads = SingleFlight()
        self._memories: OrderedDict[tuple[int, Mark], int] = OrderedDict()
        """By inode and mark."""

    async def open(self, snapshot: Path, plan: Plan, held: AsyncExitStack) -> RestoreLaunch:
        """Return a launch of `plan` that goes on from a snapshot; `held` closes what it has open.

        Raises `SnapshotError`, `LaunchError`, `OSError`.
        """
        manifest = await asyncio.to_thread(snapshot_files.read, snapshot)
        self._check(manifest, plan)
        disk = self._host.disks.path(manifest.disk)
        template = Template(
            memory=await self._memory(snapshot, manifest, held),
            disk=_opened(disk, manifest.disk_mark, "the disk", held),
            state=(snapshot / STATE).read_bytes(),
        )
        directory = self._host.run / plan.vm
        return RestoreLaunch(self._host, self._parts, plan, directory, template, snapshot, manifest)

    def _check(self, manifest: Manifest, plan: Plan) -> None:
        wanted = {**self._parts.facts, **qemu_facts.of_plan(plan)}
        found = {key: value for key, value in manifest.facts.items() if key != _SLOTS}
        if found != wanted:
            raise SnapshotError(_why_not(found, wanted), f"it has {found}, wanted is {wanted}")
        if plan.has_disk != (plan.vm == manifest.disk):
            raise LaunchError("a VM that goes on needs its own disk, or an id of its own")
        living = self._host.vms.get(manifest.vm)
        if not manifest.is_fork and living is not None and not living.has_ended:
            raise LaunchError("the VM of this snapshot lives: it cannot go on twice")

    async def _memory(self, snapshot: Path, manifest: Manifest, held: AsyncExitStack) -> int:
        memory = snapshot_files.open_memory(snapshot, manifest)
        held.callback(os.close, memory)
        if not manifest.is_fork:
            return memory
        key = (os.fstat(memory).st_ino, manifest.memory_mark)
        while key not in self._memories:  # Others may have been read since, and it let go of.
            await self._loads.do(key, lambda: self._load(key, memory))
        self._memories.move_to_end(key)
        own = os.dup(self._memories[key])
        held.callback(os.close, own)
        return own

    async def _load(self, key: tuple[int, Mark], file: int) -> None:
        self._memories[key] = await finish(asyncio.to_thread(_sealed_copy, file))
        while len(self._memories) > _IN_MEMORY_MAX:
            os.close(self._memories.popitem(last=False)[1])

    def close(self) -> None:
        """Let go of all. Idempotent."""
        while self._memories:
            os.close(self._memories.popitem()[1])


def _sealed_copy(file: int) -> int:
    """Return a copy of a memory that nobody can write to. Blocks; raises `OSError`."""
    with ExitStack() as undo:
        memory = template_files.new_memory(os.fstat(file).st_size)
        undo.callback(os.close, memory)
        disk_files.copy_data(file, memory)
        template_files.seal(memory)
        undo.pop_all()
    return memory


def _opened(path: Path, mark: Mark, name: str, held: AsyncExitStack) -> int:
    descriptor = snapshot_files.open_marked(path, mark, name)
    held.callback(os.close, descriptor)
    return descriptor


def _why_not(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    keys = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    others = [_NAMES[key] for key in keys if key in _NAMES]
    why = ", ".join(others) if others else f"a VM that is otherwise ({', '.join(keys)})"
    return f"the snapshot was made with {why}: start from the disk"
