"""One launch: everything a VM needs, made ready at once, each with its undo.

Owns the order of the steps and the parts of the shim's plan that are the same
for every engine: identity, limits, network, disk. An engine adds what it runs
and how, see the methods marked abstract.
"""

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from magsd.aio import finish
from magsd.engine.base import Plan
from magsd.engine.cgroup import Cgroup, Limits
from magsd.engine.launch_shim import ShimPlan, StartingShim
from magsd.engine.network import Slot
from magsd.engine.process import Detached
from magsd.engine.record import VmRecord, boot_id, sync_record
from magsd.engine.vm_host import VmHost
from magsd.guest import streams
from magsd.guest.shim import ShimConnection, ShimError
from magsd.model.errors import JobCode, LaunchError

MACHINE: Final = "m"
"""The shim's tmpfs in the run directory. All names in it are short: the options
of an overlay with many layers must fit one page."""
ENGINE_ENVIRONMENT: Final = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
_GUEST_FILES: Final = "/run/mags/root"


@dataclass
class Launched:
    """A VM whose agent has joined."""

    record: VmRecord
    shim: Detached
    cgroup: Cgroup
    connection: ShimConnection


@dataclass(frozen=True)
class Overhead:
    """What an engine needs beside what the guest gets."""

    memory_mb: int
    tasks: int


class VmLaunch(ABC):
    """One launch, from a plan to a VM that is ready for its script."""

    engine: str
    overhead: Overhead

    def __init__(
        self,
        host: VmHost,
        plan: Plan,
        run_directory: Path,
        *,
        version: str,
        guest_files: Mapping[str, bytes],
    ) -> None:
        self.host = host
        self.plan = plan
        self.run_directory = run_directory
        self.slot: Slot | None = None
        self.disk = -1
        self.cgroup: Cgroup
        self._version = version
        self._guest_files = guest_files
        self.netns = -1
        self._uid = host.uid_of_offline(plan.vm)

    async def run(self, undo: AsyncExitStack) -> Launched:
        """Do it. `undo` gets everything that must be given back when the VM is no more.

        Raises `LaunchError`, or `OSError` for what the host refused.
        """
        async with AsyncExitStack() as held:
            # What the shim has taken over is closed here, in any case.
            self._make_cgroup(undo)
            await together(self.steps(undo, held))
            plan = self._shim_plan(held)
            program = self.host.settings.shim_program
            shim = await StartingShim.open(program, self.run_directory, plan, undo)
        record = self._record(shim.process)
        record.write(self.run_directory)
        # On the disk by the time that anybody is told of the VM; nothing has to wait for it.
        await together([self._begin(shim), self._sync_record()])
        return Launched(record, shim.process, self.cgroup, shim.connection)

    # --- what an engine adds -------------------------------------------------------

    def steps(self, undo: AsyncExitStack, held: AsyncExitStack) -> list[Coroutine[Any, Any, None]]:
        """Return what is to be made ready, to be done at once."""
        return [self.take_network(undo, held), self.make_disk(undo, held)]

    async def acquire_slot(self) -> Slot:
        """Take a network slot of the kind that the engine needs."""
        return await self.host.network.acquire()

    @abstractmethod
    def add_engine(self, plan: ShimPlan, held: AsyncExitStack) -> None:
        """Add what the shim mounts and runs; `held` closes descriptors afterwards."""

    @abstractmethod
    async def start(self, shim: StartingShim) -> None:
        """Run the engine; return when the agent has joined and has its root."""

    # --- parts ---------------------------------------------------------------------

    async def take_network(self, undo: AsyncExitStack, held: AsyncExitStack) -> None:
        """Take a slot, or nothing where there is to be no network."""
        host = self.host
        if not self.plan.network:
            self.netns = host.empty_namespace
            return
        slot = await self.acquire_slot()
        undo.push_async_callback(host.network.release, slot.index)
        held.callback(slot.close)
        self.slot, self.netns = slot, slot.guest_fd
        self._uid = host.settings.vm_uid_base + slot.index

    async def make_disk(self, undo: AsyncExitStack, held: AsyncExitStack) -> None:
        """Make the VM's writable disk."""
        if self.plan.has_disk:
            self.disk = self._kept_disk(held)
            return
        undo.push_async_callback(self.host.disks.delete, self.plan.vm)
        self.disk = opened(await self.create_disk(), os.O_RDWR, held)

    def _kept_disk(self, held: AsyncExitStack) -> int:
        """Return a descriptor of the disk that an earlier VM of this name left."""
        disks, vm = self.host.disks, self.plan.vm
        disks.require_room()
        try:
            # While it is handed over; its lock goes with this one, the VM has another.
            locked = disks.open(vm)
        except LookupError as error:
            text = "the disk that the sandbox goes on from is gone"
            raise LaunchError(text, str(error), JobCode.STATE_LOST) from error
        held.callback(os.close, locked)
        return opened(disks.path(vm), os.O_RDWR, held)

    async def create_disk(self) -> Path:
        """Return the image of the VM's disk, which is made for it."""
        return await self.host.disks.create(self.plan.vm, self.plan.disk_gb)

    def _make_cgroup(self, undo: AsyncExitStack) -> None:
        plan, overhead = self.plan, self.overhead
        limits = Limits(
            memory_bytes=(plan.memory_mb + overhead.memory_mb) << 20,
            cpus=plan.vcpus,
            pids=plan.pids_limit + overhead.tasks,
            is_last=plan.waits,
        )
        self.cgroup = self.host.cgroups.create(plan.vm, limits)
        undo.push_async_callback(self.cgroup.remove, self.host.clock)

    def _shim_plan(self, held: AsyncExitStack) -> ShimPlan:
        plan = ShimPlan()
        plan.add("vm", self.plan.vm)
        plan.add("epoch", self.plan.epoch)
        for descriptor in self.slot.hold_fds if self.slot else ():
            plan.add_descriptor("hold", descriptor)
        plan.add_descriptor("netns", self.netns)
        plan.add("mkdir", MACHINE)
        plan.add("tmpfs", MACHINE)
        self.add_engine(plan, held)
        self._add_limits(plan, held)
        plan.add("env", ENGINE_ENVIRONMENT)
        plan.add("uid", self._uid)
        return plan

    def _add_limits(self, plan: ShimPlan, held: AsyncExitStack) -> None:
        group = self.cgroup
        for path in group.procs_files:
            plan.add_descriptor("cgroup", opened(path, os.O_WRONLY, held))
        if (freezer := group.freezer) is not None:
            words = f"{freezer.frozen}:{freezer.thawed}"
            plan.add_descriptor("freezer", opened(freezer.file, os.O_RDWR, held), words)
            if freezer.events is not None:
                plan.add_descriptor("freezer_events", opened(freezer.events, os.O_RDONLY, held))
        if self.plan.waits:
            weight = group.weight
            descriptor = opened(weight.file, os.O_WRONLY, held)
            plan.add_descriptor("weight", descriptor, weight.usual)
        plan.add_descriptor("oom", opened(group.oom_file, os.O_RDONLY, held))
        plan.add_descriptor("pids", opened(group.pids_file, os.O_RDONLY, held))
        if self.plan.log_rate_bytes:
            plan.add("log_rate", f"{self.plan.log_rate_bytes}:{self.plan.log_burst_bytes}")

    def _record(self, shim: Detached) -> VmRecord:
        return VmRecord(
            vm=self.plan.vm,
            epoch=self.plan.epoch,
            boot_id=boot_id(),
            shim_pid=shim.pid,
            shim_start_time=shim.start_time,
            engine=self.engine,
            engine_version=self._version,
            image=self.plan.image,
            layers=tuple(path.name for path in self.plan.layers),
            memory_mb=self.plan.memory_mb,
            slot=self.slot.index if self.slot else 0,
            uid=self._uid,
        )

    async def _sync_record(self) -> None:
        await finish(asyncio.to_thread(sync_record, self.run_directory))

    async def _begin(self, shim: StartingShim) -> None:
        await self.start(shim)
        try:
            await self.push_files(shim.connection)
        except ShimError as error:
            raise LaunchError("the sandbox could not take the host's files", repr(error)) from error

    async def push_files(self, connection: ShimConnection) -> None:
        """Show the host's files in the guest. Raises `ShimError`."""
        files = dict(self._guest_files)
        if self.plan.network:
            resolvers = f"nameserver {self.host.network.dns_address}\n"
            files["etc/resolv.conf"] = resolvers.encode()
        if not files:
            return
        await together(
            streams.write_file(connection, f"{_GUEST_FILES}/{path}", content)
            for path, content in files.items()
        )
        await streams.control(connection, "bind", path=sorted(files))


async def together(steps: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run steps at once; when one fails, cancel the others and raise what it raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for step in steps:
                group.create_task(step)
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def opened(path: Path, flags: int, held: AsyncExitStack) -> int:
    """Open a file; `held` closes it."""
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    held.callback(os.close, descriptor)
    return descriptor
