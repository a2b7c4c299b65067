"""What every engine whose VMs have a shim does alike: find, end, measure, sweep.

Owns how a VM is adopted, how it ends and what is given back then. How one
comes to be is the engine's own, through `_launch`.
"""

import asyncio
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias

import structlog

from magsd.aio import SingleFlight, finish
from magsd.engine import moment, run_directory
from magsd.engine.base import Capabilities, Capture, Handle, Plan, Stats, VmEnd
from magsd.engine.disks import failure
from magsd.engine.ends import read_end
from magsd.engine.launch_shim import end
from magsd.engine.live_vm import LiveVm
from magsd.engine.moment import Hold
from magsd.engine.process import Detached
from magsd.engine.record import VmRecord, boot_id
from magsd.engine.vm_host import VmHost
from magsd.engine.vm_launch import MACHINE, Launched
from magsd.guest.shim import ShimConnection, ShimError
from magsd.model.errors import LaunchError
from magsd.model.names import VmId, is_vm_id

_log: Final = structlog.get_logger()

_KILL_S: Final = 1.0
_GREETING_S: Final = 5.0
_Launch: TypeAlias = Callable[[Plan, Path, AsyncExitStack], Awaitable[Launched]]
_GIVE_BACK_S: Final = 600.0
"""So often what was deleted in a VM is given back, if no moment of its disk was taken before."""


class ShimEngine(ABC):
    """The part of the Engine contract that knows no engine."""

    has_guest_memory_watch = False
    """The daemon looks whether a guest has used up its memory: its kernel does not."""

    def __init__(self, host: VmHost) -> None:
        self._host = host
        self._stops = SingleFlight()
        self._ends = SingleFlight()
        self._is_prepared = False
        self._giving_back: asyncio.Task[None] | None = None

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What this engine can do."""

    @abstractmethod
    async def prepare(self) -> None:
        """Check the host and build what launches need; see `Engine.prepare`."""

    @abstractmethod
    async def aclose(self) -> None:
        """Let go of everything; VMs live on and can be adopted. Idempotent."""

    @abstractmethod
    async def _launch(self, plan: Plan, directory: Path, undo: AsyncExitStack) -> Launched:
        """Start a VM; `undo` gets everything that is to be given back on failure.

        Raises `LaunchError`, or `OSError` for what the host refused.
        """

    # --- the beginning of a VM ---------------------------------------------------

    async def launch(self, plan: Plan) -> Handle:
        """Start a VM; see `Engine.launch`."""
        return await self._begin(plan, self._launch)

    async def _begin(self, plan: Plan, launch: _Launch) -> Handle:
        """Have `launch` make a VM, and keep it."""
        self._check_prepared()
        host = self._host
        if plan.vm in host.vms or plan.vm in host.launching:
            raise LaunchError(f"there is a VM {plan.vm} already")
        if not plan.layers:
            raise LaunchError("an image without layers cannot be started")
        handle = Handle(plan.vm, plan.epoch, host.run / plan.vm)
        host.launching.add(plan.vm)
        undo = AsyncExitStack()
        undo.callback(host.launching.discard, plan.vm)
        try:
            undo.callback(run_directory.make(handle.run_directory))
            launched = await launch(plan, handle.run_directory, undo)
        except BaseException as error:
            await finish(undo.aclose())
            if isinstance(error, OSError):
                raise failure("the host refused a sandbox", str(error)) from error
            raise
        vm = LiveVm(launched.record, launched.shim, launched.cgroup, launched.connection)
        self._keep(handle, vm)
        host.launching.discard(plan.vm)
        host.disks.refill()
        return handle

    def _keep(self, handle: Handle, vm: LiveVm) -> None:
        self._host.vms[handle.vm] = vm
        if self.has_guest_memory_watch:
            vm.watch(self._host.tasks)
        if self._giving_back is None or self._giving_back.done():
            work = self._give_back_room()
            self._giving_back = self._host.tasks.spawn("giving back room", work)

    async def _give_back_room(self) -> None:
        """Give the host what is free on the disks of live VMs, now and then."""
        while True:
            await self._host.clock.sleep(_GIVE_BACK_S)
            for vm in list(self._host.vms.values()):
                record = vm.record
                if record.engine != self.capabilities.name or vm.has_ended:
                    continue
                handle = Handle(record.vm, record.epoch, self._host.run / record.vm)
                try:
                    if not vm.cgroup.is_frozen:  # One that waits has nothing to give.
                        await moment.write_out(self._host, handle, self._hold(record))
                except (ShimError, OSError, TimeoutError) as error:
                    _log.debug("no_room_given_back", vm=record.vm, why=repr(error))

    def _check_prepared(self) -> None:
        if not self._is_prepared:
            raise LaunchError("the engine is not prepared")

    # --- a VM of an earlier daemon -------------------------------------------------

    async def adopt(self, run_directory: Path) -> Handle | None:
        """Find the VM of an earlier daemon; see `Engine.adopt`."""
        self._check_prepared()
        host, directory = self._host, run_directory.resolve()
        record = VmRecord.read(directory)
        if record is None or record.boot_id != boot_id():
            return None
        if record.engine != self.capabilities.name:
            return None
        handle = Handle(record.vm, record.epoch, directory)
        if (kept := host.vms.get(record.vm)) is not None:
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
            host.network.adopt(record.slot)
        self._keep(handle, LiveVm(record, shim, host.cgroups.group(record.vm), connection))
        return handle

    # --- the end of a VM -----------------------------------------------------------

    async def wait(self, handle: Handle) -> VmEnd:
        """Return when the VM has ended; see `Engine.wait`."""
        if (vm := self._host.vms.get(handle.vm)) is not None:
            await vm.ended()
        elif (shim := _living_shim(VmRecord.read(handle.run_directory))) is not None:
            try:
                await shim.wait()
            finally:
                shim.close()
        return read_end(handle.run_directory, VmRecord.read(handle.run_directory))

    async def stop(self, handle: Handle, *, keep_changes: bool = False) -> VmEnd:
        """End the VM and give back what it held; see `Engine.stop`."""
        stopped: VmEnd = await self._stops.do(
            (handle.vm, keep_changes), lambda: finish(self._stop(handle, keep_changes))
        )
        return stopped

    async def _stop(self, handle: Handle, keep_changes: bool) -> VmEnd:
        vm = self._host.vms.get(handle.vm)
        is_to_rest = keep_changes and vm is not None and not vm.has_ended
        async with self._at_rest(handle) if is_to_rest else nullcontext():
            ended = await self._end_at_once(handle)
        if not keep_changes:
            await self._host.disks.delete(handle.vm)
        return ended

    @asynccontextmanager
    async def _at_rest(self, handle: Handle) -> AsyncIterator[None]:
        """In the block all that a live VM has written is in its image, to be ended there.

        Raises nothing: one that cannot be brought to rest is ended as it is.
        """
        yield

    async def _end_at_once(self, handle: Handle) -> VmEnd:
        """End a VM as it is, and leave its disk."""
        ended: VmEnd = await self._ends.do(handle.vm, lambda: self._end(handle))
        return ended

    async def _end(self, handle: Handle) -> VmEnd:
        record = await self._end_shim(handle)
        await self._give_back(handle.vm, record.slot if record is not None else 0)
        if record is not None and record.slot:
            _forget_slot(record, handle.run_directory)
        for name in ("sock", "qmp"):
            (handle.run_directory / name).unlink(missing_ok=True)
        run_directory.remove(handle.run_directory / MACHINE)
        return read_end(handle.run_directory, record)

    async def _end_shim(self, handle: Handle) -> VmRecord | None:
        if (vm := self._host.vms.pop(handle.vm, None)) is not None:
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
        self._host.cgroups.group(handle.vm).thaw()
        try:
            async with asyncio.timeout(_KILL_S):
                await shim.wait()
        except TimeoutError:
            record = replace(record, is_stopped=True)
            _note_kill(record, handle.run_directory)
        await end(shim)
        return record

    async def _give_back(self, vm: VmId, slot: int) -> None:
        """Return a VM's network and control group. Its processes are gone."""
        self._check_prepared()
        host = self._host
        async with AsyncExitStack() as undo:
            # As a stack: one that fails keeps none of the others from being given back.
            if slot:
                undo.push_async_callback(host.network.release, slot)
            undo.push_async_callback(host.cgroups.group(vm).remove, host.clock)

    # --- what a VM has changed -------------------------------------------------------

    @asynccontextmanager
    async def still(self, handle: Handle, since: str = "") -> AsyncIterator[Capture]:
        """Have one moment of what a VM has changed; see `Engine.still`."""
        self._check_prepared()
        held = AsyncExitStack()
        try:
            try:
                disk = await self._disk_of(handle, since)
                if disk.copy is None:
                    capture = Capture(stamp=disk.stamp, is_unchanged=True)
                else:
                    held.push_async_callback(_close, disk.copy)
                    capture = replace(await self._read(disk.copy, held), stamp=disk.stamp)
            except OSError as error:
                raise failure("what the sandbox has changed cannot be read", str(error)) from error
            yield capture
        finally:
            await finish(held.aclose())

    async def _disk_of(self, handle: Handle, since: str) -> moment.Still:
        """Return a VM's disk as it was at one moment; it does not change."""
        if (vm := self._host.vms.get(handle.vm)) is not None:
            if vm.has_ended:
                raise LookupError("this VM has ended and was not stopped")
            return await moment.of(self._host, handle, self._hold(vm.record), since)
        if (shim := _living_shim(VmRecord.read(handle.run_directory))) is not None:
            shim.close()
            raise LookupError("this VM lives and was not adopted, or is being stopped")
        return moment.Still(self._host.disks.open(handle.vm))

    @abstractmethod
    def _hold(self, record: VmRecord) -> Hold:
        """Return how a live VM is held still."""

    @abstractmethod
    async def _read(self, disk: int, held: AsyncExitStack) -> Capture:
        """Show what an ext4 image, which stays the caller's, holds of a VM's changes.

        `held` is unwound when that was read. Raises `LaunchError`, `OSError`.
        """

    # --- sleep -----------------------------------------------------------------------

    async def suspend(self, handle: Handle, into: Path, *, keep_running: bool = False) -> None:
        """Write a live VM into a directory; see `Engine.suspend`."""
        raise self._no_snapshots()

    async def restore(self, snapshot: Path, plan: Plan) -> Handle:
        """Have a VM go on from such a directory; see `Engine.restore`."""
        raise self._no_snapshots()

    def _no_snapshots(self) -> LaunchError:
        return LaunchError(
            f"the engine {self.capabilities.name} cannot keep the memory of a sandbox: "
            "stop it, and start another from its disk"
        )

    # --- measures, and what is left behind ----------------------------------------------

    async def stats(self, handle: Handle) -> Stats:
        """Measure a live VM. Raises `LookupError` when it has ended."""
        self._check_prepared()
        usage = self._host.cgroups.group(handle.vm).usage()
        if not usage.processes:
            raise LookupError("this VM has ended")
        return Stats(usage.memory_bytes, usage.cpu_ns, usage.processes)

    async def sweep(self, keep: frozenset[VmId]) -> list[str]:
        """Give back what other VMs than `keep` left behind; see `Engine.sweep`."""
        self._check_prepared()
        host = self._host
        kept = keep | host.vms.keys() | host.launching | host.disks.of_snapshots()
        directories = {VmId(path.name) for path in host.run.iterdir() if is_vm_id(path.name)}
        groups = {VmId(name) for name in host.cgroups.names()}
        left = {
            "run directory": directories,
            "control group": groups,
            "disk": frozenset(host.disks.names()),
        }
        removed = []
        for vm in sorted(frozenset().union(*left.values()) - kept):
            directory = host.run / vm
            await self.stop(Handle(vm, 0, directory))
            await finish(asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True))
            found = ", ".join(kind for kind, names in left.items() if vm in names)
            removed.append(f"VM {vm}: {found}")
        return removed + await self._sweep_network(kept)

    async def _sweep_network(self, keep: frozenset[VmId]) -> list[str]:
        network = self._host.network
        for vm in keep:
            if (record := VmRecord.read(self._host.run / vm)) is not None and record.slot:
                network.adopt(record.slot)
        return [f"network interface {name}" for name in await network.remove_leftovers()]


def _note_kill(record: VmRecord, directory: Path) -> None:
    """Write down that a shim's death is our doing, for later daemons; it dies in any case."""
    try:
        record.write(directory)
    except OSError as error:
        _log.warning("record_not_written", vm=record.vm, error=str(error))


def _forget_slot(record: VmRecord, directory: Path) -> None:
    """Take note that the slot of a VM that has ended may be another's from now on."""
    try:
        replace(record, slot=0).write(directory)
    except FileNotFoundError:
        pass  # The directory is gone, and nobody will ask.
    except OSError as error:
        # The host's disk is full. Without a record nothing is given back twice.
        VmRecord.remove(directory)
        _log.warning("record_removed", vm=record.vm, error=str(error))


def _living_shim(record: VmRecord | None) -> Detached | None:
    if record is None or record.boot_id != boot_id():
        return None
    return Detached.find(record.shim_pid, record.shim_start_time)


async def _close(descriptor: int) -> None:
    """Close what may take a while to go."""
    await finish(asyncio.to_thread(os.close, descriptor))


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
