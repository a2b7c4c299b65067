"""`GvisorEngine`: VMs as gVisor sandboxes, an application kernel for each.

Owns the VMs of one data directory that live: who watches them, how they are
found again, how they end and what is given back then. How one comes to be is
`gvisor_launch`'s part, what runsc is told `gvisor_spec`'s.
"""

import asyncio
import os
import platform
import shutil
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog

from magsd.aio import Clock, SingleFlight, Tasks, finish
from magsd.engine import gvisor_spec as spec
from magsd.engine import run_directory
from magsd.engine.base import Capabilities, Handle, Plan, Stats, VmEnd
from magsd.engine.cgroup import CgroupTree
from magsd.engine.disks import Disks, failure
from magsd.engine.ends import read_end
from magsd.engine.gvisor_host import empty_namespace, find_runsc, install_agent
from magsd.engine.gvisor_launch import Launch, Parts
from magsd.engine.launch_shim import end
from magsd.engine.layers import Layers
from magsd.engine.live_vm import LiveVm
from magsd.engine.network import Network
from magsd.engine.process import Detached
from magsd.engine.record import VmRecord, boot_id
from magsd.guest.shim import ShimConnection, ShimError
from magsd.model.errors import LaunchError, MagsError
from magsd.model.names import VmId, is_vm_id

_log: Final = structlog.get_logger()

_PROGRAMS: Final = Path(__file__).parent.parent / "guest/programs" / platform.machine()
_KILL_S: Final = 1.0
_GREETING_S: Final = 5.0
_OFFLINE_FIRST: Final = 20_000
"""VMs without network take their uids behind those of all slots."""


@dataclass(frozen=True)
class EngineSettings:
    """What an operator decides about the engine."""

    data_directory: Path
    instance: str
    """Four hex digits, see `network.instance_of`: in the name of everything on the host."""
    runsc: Path | None = None
    """None: the one in PATH."""
    vm_uid_base: int = 2_000_000
    spare_disk_gb: int = 2
    """The usual size: images of this size are made ahead of need."""
    spare_disks: int = 2
    shim_program: Path = _PROGRAMS / "mags-shim"
    agent_program: Path = _PROGRAMS / "mags-agent"


class GvisorEngine:
    """The Engine contract with gVisor."""

    def __init__(
        self,
        settings: EngineSettings,
        network: Network,
        clock: Clock,
        guest_files: Mapping[str, bytes],
    ) -> None:
        """`guest_files`: by path without a leading slash, shown inside where the image has one."""
        self._settings = settings
        self._network = network
        self._clock = clock
        self._guest_files = dict(guest_files)
        self._run = settings.data_directory.resolve() / "run"
        self._tasks = Tasks(_report)
        self._stops = SingleFlight()
        self._vms: dict[VmId, LiveVm] = {}
        self._launching: set[VmId] = set()
        self._parts: Parts | None = None
        self._held = AsyncExitStack()

    @property
    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        return Capabilities(
            name="gvisor",
            isolation="application-kernel",
            suspend=False,
            live_fork=False,
            template=False,
            special_files_kept=False,
            max_vcpus=len(os.sched_getaffinity(0)),
            needs_root=True,
        )

    async def prepare(self) -> None:
        """Check runsc and the host, make the folders. Idempotent. Raises `LaunchError`."""
        if self._parts is not None:
            return
        if os.geteuid() != 0:
            raise LaunchError("sandboxes need root: start magsd as root")
        runsc, version = await find_runsc(self._settings.runsc)
        try:
            async with AsyncExitStack() as undo:
                self._parts = await self._make_parts(runsc, version, undo)
                self._held = undo.pop_all()
        except OSError as error:
            raise LaunchError(
                f"the data directory cannot be used: {error.strerror}", str(error)
            ) from error

    async def _make_parts(self, runsc: Path, version: str, undo: AsyncExitStack) -> Parts:
        settings = self._settings
        directory = settings.data_directory.resolve()
        self._run.mkdir(mode=0o700, parents=True, exist_ok=True)
        cgroups = CgroupTree.of_host(settings.instance)
        cgroups.prepare()
        undo.callback(cgroups.remove)
        disks = Disks(
            directory / "disks",
            spare_gb=settings.spare_disk_gb,
            spare_count=settings.spare_disks,
            tasks=self._tasks,
        )
        disks.prepare()
        layers = Layers()
        undo.push_async_callback(layers.aclose)
        nothing = await asyncio.to_thread(empty_namespace)
        undo.callback(os.close, nothing)
        if not settings.shim_program.is_file():
            raise LaunchError("mags-shim is missing: run `make setup`", str(settings.shim_program))
        return Parts(
            clock=self._clock,
            disks=disks,
            layers=layers,
            cgroups=cgroups,
            network=self._network,
            runsc=runsc,
            runsc_version=version,
            shim_program=settings.shim_program,
            agent_directory=install_agent(settings.agent_program, directory / "guest"),
            empty_namespace=nothing,
            vm_uid_base=settings.vm_uid_base,
            guest_files=self._guest_files,
        )

    # --- the beginning of a VM ---------------------------------------------------

    async def launch(self, plan: Plan) -> Handle:
        """Start a VM; see `Engine.launch`."""
        parts = self._ready_parts()
        if plan.vm in self._vms or plan.vm in self._launching:
            raise LaunchError(f"there is a VM {plan.vm} already")
        if not plan.layers:
            raise LaunchError("an image without layers cannot be started")
        handle = Handle(plan.vm, plan.epoch, self._run / plan.vm)
        self._launching.add(plan.vm)
        undo = AsyncExitStack()
        undo.callback(self._launching.discard, plan.vm)
        try:
            undo.callback(run_directory.make(handle.run_directory))
            launch = Launch(parts, plan, handle.run_directory, self._uid_of_offline(plan.vm))
            launched = await launch.run(undo)
        except BaseException as error:
            await finish(undo.aclose())
            if isinstance(error, OSError):
                raise failure("the host refused a sandbox", str(error)) from error
            raise
        vm = LiveVm(launched.record, launched.shim, launched.cgroup, launched.connection)
        self._keep(handle, vm)
        self._launching.discard(plan.vm)
        parts.disks.refill()
        return handle

    def _keep(self, handle: Handle, vm: LiveVm) -> None:
        self._vms[handle.vm] = vm
        vm.watch(self._tasks)

    def _ready_parts(self) -> Parts:
        if self._parts is None:
            raise LaunchError("the engine is not prepared")
        return self._parts

    def _uid_of_offline(self, vm: VmId) -> int:
        taken = {live.record.uid for live in self._vms.values()}
        first = self._settings.vm_uid_base + _OFFLINE_FIRST
        wanted = int(vm, 16) % _OFFLINE_FIRST
        return next(
            uid
            for i in range(_OFFLINE_FIRST)
            if (uid := first + (wanted + i) % _OFFLINE_FIRST) not in taken
        )

    # --- a VM of an earlier daemon -------------------------------------------------

    async def adopt(self, run_directory: Path) -> Handle | None:
        """Find the VM of an earlier daemon; see `Engine.adopt`."""
        parts = self._ready_parts()
        directory = run_directory.resolve()
        record = VmRecord.read(directory)
        if record is None or record.boot_id != boot_id():
            return None
        handle = Handle(record.vm, record.epoch, directory)
        if (kept := self._vms.get(record.vm)) is not None:
            return None if kept.has_ended else handle
        shim = Detached.find(record.shim_pid, record.shim_start_time)
        if shim is None:
            return None
        try:
            async with asyncio.timeout(_GREETING_S):
                connection = await ShimConnection.open(directory, record.vm, record.epoch)
        except (ShimError, TimeoutError) as error:
            _log.info("no VM to adopt", vm=record.vm, reason=repr(error))
            shim.close()
            return None
        except BaseException:
            shim.close()
            raise
        if record.slot:
            self._network.adopt(record.slot)
        self._keep(handle, LiveVm(record, shim, parts.cgroups.group(record.vm), connection))
        return handle

    # --- the end of a VM -----------------------------------------------------------

    async def wait(self, handle: Handle) -> VmEnd:
        """Return when the VM has ended; see `Engine.wait`."""
        if (vm := self._vms.get(handle.vm)) is not None:
            await vm.ended()
        elif (shim := _living_shim(VmRecord.read(handle.run_directory))) is not None:
            try:
                await shim.wait()
            finally:
                shim.close()
        return read_end(handle.run_directory, VmRecord.read(handle.run_directory))

    async def stop(self, handle: Handle) -> VmEnd:
        """End the VM and give back what it held; see `Engine.stop`."""
        stopped: VmEnd = await self._stops.do(handle.vm, lambda: finish(self._stop(handle)))
        return stopped

    async def _stop(self, handle: Handle) -> VmEnd:
        record = await self._end_shim(handle)
        await self._give_back(handle.vm, record.slot if record is not None else 0)
        (handle.run_directory / "sock").unlink(missing_ok=True)
        run_directory.remove(handle.run_directory / spec.MACHINE)
        return read_end(handle.run_directory, record)

    async def _end_shim(self, handle: Handle) -> VmRecord | None:
        if (vm := self._vms.pop(handle.vm, None)) is not None:
            record, shim, connection = vm.record, vm.shim, vm.let_go()
            await _ask_to_end(connection)
        else:
            found = VmRecord.read(handle.run_directory)
            living = _living_shim(found)
            if found is None or living is None:
                return found
            record, shim = found, living
            await _tell_to_end(Handle(found.vm, found.epoch, handle.run_directory))
        # A shim that was killed while its VM was frozen waits for processes that cannot die.
        self._ready_parts().cgroups.group(handle.vm).thaw()
        try:
            async with asyncio.timeout(_KILL_S):
                await shim.wait()
        except TimeoutError:
            record = replace(record, is_stopped=True)
            record.write(handle.run_directory)
        await end(shim)
        return record

    async def _give_back(self, vm: VmId, slot: int) -> None:
        """Return a VM's network, disk and control group. Its processes are gone."""
        parts = self._ready_parts()
        async with AsyncExitStack() as undo:
            # As a stack: one that fails keeps none of the others from being given back.
            undo.push_async_callback(parts.disks.delete, vm)
            if slot:
                undo.push_async_callback(self._network.release, slot)
            undo.push_async_callback(parts.cgroups.group(vm).remove, self._clock)

    async def stats(self, handle: Handle) -> Stats:
        """Measure a live VM. Raises `LookupError` when it has ended."""
        usage = self._ready_parts().cgroups.group(handle.vm).usage()
        if not usage.processes:
            raise LookupError("this VM has ended")
        return Stats(usage.memory_bytes, usage.cpu_ns, usage.processes)

    async def sweep(self, keep: frozenset[VmId]) -> list[str]:
        """Give back what other VMs than `keep` left behind; see `Engine.sweep`."""
        parts = self._ready_parts()
        kept = keep | self._vms.keys() | self._launching
        directories = {VmId(path.name) for path in self._run.iterdir() if is_vm_id(path.name)}
        groups = {VmId(name) for name in parts.cgroups.names()}
        left = {
            "run directory": directories,
            "control group": groups,
            "disk": frozenset(parts.disks.names()),
        }
        removed = []
        for vm in sorted(frozenset().union(*left.values()) - kept):
            directory = self._run / vm
            await self.stop(Handle(vm, 0, directory))
            await finish(asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True))
            found = ", ".join(kind for kind, names in left.items() if vm in names)
            removed.append(f"VM {vm}: {found}")
        return removed + await self._sweep_network(keep)

    async def _sweep_network(self, keep: frozenset[VmId]) -> list[str]:
        for vm in keep:
            if (record := VmRecord.read(self._run / vm)) is not None and record.slot:
                self._network.adopt(record.slot)
        return [f"network interface {name}" for name in await self._network.remove_leftovers()]

    async def aclose(self) -> None:
        """Let go of everything; VMs live on and can be adopted. Idempotent."""
        vms, self._vms = self._vms, {}
        for vm in vms.values():
            await vm.let_go().aclose()
            vm.shim.close()
        await self._tasks.aclose()
        held, self._held = self._held, AsyncExitStack()
        self._parts = None
        await held.aclose()


def _report(name: str, error: BaseException) -> None:
    detail = error.detail if isinstance(error, MagsError) else ""
    _log.error("a task of the engine failed", task=name, error=repr(error), detail=detail)


def _living_shim(record: VmRecord | None) -> Detached | None:
    if record is None or record.boot_id != boot_id():
        return None
    return Detached.find(record.shim_pid, record.shim_start_time)


async def _tell_to_end(handle: Handle) -> None:
    """Ask a shim that we hold no connection to."""
    try:
        async with asyncio.timeout(_KILL_S):
            connection = await ShimConnection.open(handle.run_directory, handle.vm, handle.epoch)
    except (ShimError, TimeoutError):
        return
    await _ask_to_end(connection)


async def _ask_to_end(connection: ShimConnection) -> None:
    """Send the verb `kill`, whose answer is the end of the connection."""
    try:
        async with asyncio.timeout(_KILL_S):
            await connection.request("kill")
    except (ShimError, TimeoutError):
        pass
    finally:
        await connection.aclose()
