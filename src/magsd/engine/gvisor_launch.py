"""One launch with gVisor: everything a VM needs, made ready at once, each with its undo.

Owns the order of the steps and what goes into the shim's plan. Where the
parts come from is `disks`, `layers`, `cgroup` and `network`; what runsc is
told is `gvisor_spec`; who keeps the VM afterwards is `gvisor`.
"""

import asyncio
import itertools
import os
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from magsd.aio import Clock, finish
from magsd.engine import gvisor_spec as spec
from magsd.engine.base import Plan
from magsd.engine.cgroup import Cgroup, CgroupTree, Limits
from magsd.engine.disks import Disks
from magsd.engine.launch_shim import ShimPlan, StartingShim, memory_file
from magsd.engine.layers import Layers
from magsd.engine.network import Network, Slot
from magsd.engine.process import Detached
from magsd.engine.record import VmRecord, boot_id, sync_record
from magsd.guest import streams
from magsd.guest.shim import ShimConnection, ShimError
from magsd.model.errors import LaunchError

_GUEST_FILES: Final = "/run/mags/root"
_ENGINE_ENVIRONMENT: Final = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
_CPU_TURN: Final = itertools.count()


@dataclass(frozen=True)
class Parts:
    """What all launches share."""

    clock: Clock
    disks: Disks
    layers: Layers
    cgroups: CgroupTree
    network: Network
    runsc: Path
    runsc_version: str
    shim_program: Path
    agent_directory: Path
    empty_namespace: int
    """A network namespace with nothing in it, for the shims of VMs without network."""
    vm_uid_base: int
    guest_files: Mapping[str, bytes]


@dataclass
class Launched:
    """A VM whose agent has joined."""

    record: VmRecord
    shim: Detached
    cgroup: Cgroup
    connection: ShimConnection


class Launch:
    """One launch, from a plan to a VM that is ready for its script."""

    def __init__(self, parts: Parts, plan: Plan, run_directory: Path, uid_of_offline: int) -> None:
        self._parts = parts
        self._plan = plan
        self._run_directory = run_directory
        self._uid_of_offline = uid_of_offline
        self._slot: Slot | None = None
        self._netns = -1
        self._disk = -1
        self._cgroup: Cgroup
        self._layers: dict[int, int] = {}
        self._meminfo = -1

    async def run(self, undo: AsyncExitStack) -> Launched:
        """Do it. `undo` gets everything that must be given back when the VM is no more.

        Raises `LaunchError`, or `OSError` for what the host refused.
        """
        async with AsyncExitStack() as held:
            # What the shim has taken over is closed here, in any case.
            await self._make_ready(undo, held)
            plan = self._shim_plan(held)
            program = self._parts.shim_program
            shim = await StartingShim.open(program, self._run_directory, plan, undo)
        record = self._record(shim.process)
        record.write(self._run_directory)
        # On the disk by the time that anybody is told of the VM; nothing has to wait for it.
        await together([self._start(shim), self._sync_record()])
        return Launched(record, shim.process, self._cgroup, shim.connection)

    async def _make_ready(self, undo: AsyncExitStack, held: AsyncExitStack) -> None:
        steps: list[Coroutine[Any, Any, None]] = [
            self._take_network(undo, held),
            self._make_disk(undo, held),
            self._clone_meminfo(held),
        ]
        steps += (
            self._clone_layer(number, path, held) for number, path in enumerate(self._plan.layers)
        )
        self._make_cgroup(undo)
        await together(steps)

    async def _take_network(self, undo: AsyncExitStack, held: AsyncExitStack) -> None:
        if not self._plan.network:
            self._netns = self._parts.empty_namespace
            return
        slot = await self._parts.network.acquire()
        undo.push_async_callback(self._parts.network.release, slot.index)
        held.callback(slot.close)
        self._slot, self._netns = slot, slot.guest_fd

    async def _make_disk(self, undo: AsyncExitStack, held: AsyncExitStack) -> None:
        undo.push_async_callback(self._parts.disks.delete, self._plan.vm)
        image = await self._parts.disks.create(self._plan.vm, self._plan.disk_gb)
        self._disk = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        held.callback(os.close, self._disk)

    async def _clone_layer(self, number: int, path: Path, held: AsyncExitStack) -> None:
        self._layers[number] = await self._parts.layers.clone(path)
        held.callback(os.close, self._layers[number])

    async def _clone_meminfo(self, held: AsyncExitStack) -> None:
        self._meminfo = await self._parts.layers.clone_file(spec.meminfo(self._plan))
        held.callback(os.close, self._meminfo)

    def _make_cgroup(self, undo: AsyncExitStack) -> None:
        plan = self._plan
        limits = Limits(
            memory_bytes=(plan.memory_mb + spec.OVERHEAD_MB) << 20,
            cpus=plan.vcpus,
            pids=plan.pids_limit + spec.OVERHEAD_TASKS,
        )
        self._cgroup = self._parts.cgroups.create(plan.vm, limits)
        undo.push_async_callback(self._cgroup.remove, self._parts.clock)

    def _shim_plan(self, held: AsyncExitStack) -> ShimPlan:
        plan = ShimPlan()
        plan.add("vm", self._plan.vm)
        plan.add("epoch", self._plan.epoch)
        for descriptor in self._slot.hold_fds if self._slot else ():
            plan.add_descriptor("hold", descriptor)
        plan.add_descriptor("netns", self._netns)
        self._add_mounts(plan, held)
        self._add_limits(plan, held)
        plan.add_each("arg", spec.command(self._parts.runsc, self._plan))
        plan.add("env", _ENGINE_ENVIRONMENT)
        plan.add_each("engine_failed", spec.FAILED_STATUSES)
        plan.add("uid", self._uid)
        return plan

    def _add_mounts(self, plan: ShimPlan, held: AsyncExitStack) -> None:
        plan.add("mkdir", spec.MACHINE)
        plan.add("tmpfs", spec.MACHINE)
        # runsc takes a namespace where this can be read for the host's own and
        # refuses to run; since Linux 6.11 it can be read in all. google/gvisor#10704.
        plan.add("hide", "/proc/sys/net")
        plan.add_descriptor("layer", self._meminfo, "/proc/meminfo")
        places = [spec.layer_place(number) for number in self._layers]
        plan.add_each("mkdir", [spec.ROOT, spec.DISK, spec.BUNDLE, spec.STATE, *places])
        places_agent = spec.Places(self._run_directory, self._parts.agent_directory)
        config = memory_file("config", spec.config(self._plan, places_agent), held)
        plan.add_descriptor("copy", config, f"600:{spec.BUNDLE}/config.json")
        for number, descriptor in self._layers.items():
            plan.add_descriptor("layer", descriptor, spec.layer_place(number))
        plan.add_descriptor("disk", self._disk, spec.DISK)
        plan.add_each("mkdir", [spec.UPPER, spec.WORK])
        plan.add("overlay", spec.overlay(self._plan))

    def _add_limits(self, plan: ShimPlan, held: AsyncExitStack) -> None:
        group = self._cgroup
        for path in group.procs_files:
            plan.add_descriptor("cgroup", _opened(path, os.O_WRONLY, held))
        if (freezer := group.freezer) is not None:
            words = f"{freezer.frozen}:{freezer.thawed}"
            plan.add_descriptor("freezer", _opened(freezer.file, os.O_RDWR, held), words)
        plan.add_descriptor("oom", _opened(group.oom_file, os.O_RDONLY, held))
        plan.add_descriptor("pids", _opened(group.pids_file, os.O_RDONLY, held))

    @property
    def _uid(self) -> int:
        if self._slot is None:
            return self._uid_of_offline
        return self._parts.vm_uid_base + self._slot.index

    def _record(self, shim: Detached) -> VmRecord:
        return VmRecord(
            vm=self._plan.vm,
            epoch=self._plan.epoch,
            boot_id=boot_id(),
            shim_pid=shim.pid,
            shim_start_time=shim.start_time,
            engine="gvisor",
            engine_version=self._parts.runsc_version,
            image=self._plan.image,
            layers=tuple(path.name for path in self._plan.layers),
            memory_mb=self._plan.memory_mb,
            slot=self._slot.index if self._slot else 0,
            uid=self._uid,
        )

    async def _sync_record(self) -> None:
        await finish(asyncio.to_thread(sync_record, self._run_directory))

    async def _start(self, shim: StartingShim) -> None:
        """Run the engine, on as many CPUs as the guest is to see, and fill in the host's files.

        The sentry counts the CPUs it may use, once, when it begins. After
        that its threads go where the scheduler wants; the quota is what limits.
        """
        everywhere = os.sched_getaffinity(0)
        os.sched_setaffinity(shim.process.pid, _some(everywhere, spec.cpu_count(self._plan)))
        await shim.start()
        os.sched_setaffinity(shim.process.pid, everywhere)
        self._cgroup.spread(everywhere)
        try:
            await self._push_files(shim.connection)
        except ShimError as error:
            raise LaunchError("the sandbox could not take the host's files", repr(error)) from error

    async def _push_files(self, connection: ShimConnection) -> None:
        files = dict(self._parts.guest_files)
        if self._plan.network:
            resolvers = f"nameserver {self._parts.network.dns_address}\n"
            files["etc/resolv.conf"] = resolvers.encode()
        if not files:
            return
        await together(
            streams.write_file(connection, f"{_GUEST_FILES}/{path}", content)
            for path, content in files.items()
        )
        await streams.control(connection, "bind", path=sorted(files))


async def together(steps: Any) -> None:
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


def _opened(path: Path, flags: int, held: AsyncExitStack) -> int:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    held.callback(os.close, descriptor)
    return descriptor


def _some(cpus: set[int], count: int) -> set[int]:
    """Return `count` of `cpus`, others each time."""
    ordered = sorted(cpus)
    first = next(_CPU_TURN)
    return {ordered[(first + i) % len(ordered)] for i in range(min(count, len(ordered)))}
