"""Saving a microVM that runs: memory, devices, streams and disk, all of one moment.

Owns the order. Inside, what runs is halted and the disk is held; shim and agent have
nothing under way; then the machine is stopped and read. All of that hangs on one
connection to the shim, which undoes it when that ends, whoever has died: so the VM
goes on after every failure. What takes long is done before, or after it went on.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import structlog

from magsd.aio import finish
from magsd.engine import mounts, snapshot_files
from magsd.engine.base import Handle
from magsd.engine.live_vm import LiveVm
from magsd.engine.memory_image import MachineMemory
from magsd.engine.qemu_monitor import Monitor
from magsd.engine.qemu_still import DiskHolding, held_by_agent
from magsd.engine.snapshot_files import MEMORY, STATE, STREAMS, Manifest, Mark
from magsd.engine.vm_host import VmHost
from magsd.guest.shim import ShimConnection, ShimError
from magsd.guest.wire import pack_fields
from magsd.model.errors import LaunchError
from magsd.model.names import new_vm_id

_log: Final = structlog.get_logger()

_ANSWER_S: Final = 5.0
_WRITE_OUT_S: Final = 120.0
_HOLD_MS: Final = 60_000
"""By the guest's clock, which stands still while the machine is stopped."""
_STREAMS_BYTES_MAX: Final = 4 << 20
_HALT: Final = b"h"


class Suspension:
    """One VM that is being saved. `run` once."""

    def __init__(self, host: VmHost, vm: LiveVm, handle: Handle, into: Path) -> None:
        self._host = host
        self._vm = vm
        self._handle = handle
        self._into = into
        self._disk = handle.vm
        self._disk_mark: Mark
        self._connection: ShimConnection
        self._holding: DiskHolding

    async def run(self, end: Callable[[], Awaitable[object]] | None) -> None:
        """Save it. `end` ends the VM and leaves its disk; without, it goes on.

        Raises `LookupError`, `LaunchError`, `OSError`; it goes on then.
        """
        try:
            async with AsyncExitStack() as held:
                aside = await self._aside(held)
                image = self._host.disks.open(self._handle.vm)
                held.callback(os.close, image)
                if end is None:
                    self._disk = new_vm_id()
                    held.push_async_callback(self._forget_disk)
                    self._host.disks.being_kept.add(self._disk)
                async with self._connected(), self._held_inside(image, aside) as memory:
                    await self._stopped(image, aside, memory, goes_on=end is None)
                    if end is not None:
                        await self._finish(aside)
                        await finish(end())
                        return
                await self._finish(aside)
        except (ShimError, TimeoutError) as error:
            raise LaunchError(
                "the sandbox could not be saved, and goes on: try again later", repr(error)
            ) from error

    async def _aside(self, held: AsyncExitStack) -> Path:
        own = ExitStack()
        aside = own.enter_context(snapshot_files.written_aside(self._into))
        held.push_async_callback(_in_thread, own.close)
        return aside

    async def _forget_disk(self) -> None:
        """Give back the disk of a snapshot that did not come to be."""
        self._host.disks.being_kept.discard(self._disk)
        if not snapshot_files.exists(self._into):
            await self._host.disks.delete(self._disk)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        async with asyncio.timeout(_ANSWER_S):
            self._connection = await ShimConnection.open(
                self._handle.run_directory, self._handle.vm, self._handle.epoch
            )
        try:
            yield
        finally:
            # Whatever was not undone is so by this: it is all the shim waits for.
            await finish(self._connection.aclose())

    @asynccontextmanager
    async def _held_inside(self, image: int, aside: Path) -> AsyncIterator[MachineMemory]:
        """Have nothing run inside, and nothing written, in the block."""
        async with held_by_agent(self._connection, _HOLD_MS) as holding:
            async with asyncio.timeout(_WRITE_OUT_S):
                await holding.write_out()
                await _in_thread(lambda: mounts.write_out(image))
            memory = await self._memory(aside)
            try:
                async with await self._connection.open_stream(pack_fields("halt", [])) as halt:
                    async with asyncio.timeout(_ANSWER_S):
                        await halt.write(_HALT)
                        if await halt.read() != _HALT:
                            (await halt.exit()).check("halt")
                            raise ShimError("halt: another answer than was asked for")
                        await holding.hold()
                    self._holding = holding
                    yield memory
            finally:
                memory.close()

    async def _memory(self, aside: Path) -> MachineMemory:
        """Return the machine's memory; what does not change any more is copied already."""
        processes = self._vm.cgroup.pids()
        if len(processes) != 1:
            raise LaunchError("the sandbox has no emulator, or several", str(processes))
        size_bytes = self._vm.record.memory_mb << 20
        memory = await finish(asyncio.to_thread(MachineMemory.of, processes[0], size_bytes))
        try:
            await self._write_memory(aside, memory.copy_ahead, os.O_CREAT | os.O_EXCL)
        except BaseException:
            memory.close()
            raise
        return memory

    async def _write_memory(self, aside: Path, copy: Callable[[int], None], flags: int = 0) -> None:
        def write() -> None:
            file = os.open(aside / MEMORY, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
            try:
                copy(file)
            finally:
                os.close(file)

        await _in_thread(write)

    async def _stopped(
        self, image: int, aside: Path, memory: MachineMemory, *, goes_on: bool
    ) -> None:
        """Read the machine while it stands still; it goes on afterwards, where it is to."""
        clock = self._host.clock
        began = clock.monotonic()
        async with asyncio.timeout(_ANSWER_S):
            await self._connection.request("quiesce")
        with ExitStack() as undo:
            state = os.memfd_create("state", os.MFD_CLOEXEC)
            undo.callback(os.close, state)
            async with Monitor.of(self._handle.run_directory, clock) as monitor:
                async with asyncio.timeout(_ANSWER_S):
                    await monitor.save_devices(state)
            content = os.pread(state, os.fstat(state).st_size, 0)
        streams = (self._handle.run_directory / STATE).read_bytes()
        if len(streams) > _STREAMS_BYTES_MAX:
            raise LaunchError("the sandbox has had too many streams to be saved")
        await self._write_memory(aside, memory.copy_rest)
        if goes_on:
            copy = self._host.disks.keep_copy
            await _in_thread(lambda: copy(self._disk, image, self._into))
            await self._go_on()
        _log.debug("saved", vm=self._handle.vm, stood_s=round(clock.monotonic() - began, 4))
        await _in_thread(lambda: _write_small(aside, content, streams))

    async def _go_on(self) -> None:
        async with asyncio.timeout(_ANSWER_S):
            await self._connection.request("proceed")
            await self._holding.let_go()

    async def _finish(self, aside: Path) -> None:
        """Make what was written durable, and put it in its place."""
        await _in_thread(lambda: self._sync(aside))
        if self._disk == self._handle.vm:
            # Only as long as this connection lives does the VM stand still.
            async with asyncio.timeout(_ANSWER_S):
                await self._connection.request("hello", version="1")
        await _in_thread(lambda: snapshot_files.commit(aside, self._into))

    def _sync(self, aside: Path) -> None:
        marks = []
        for path in (aside / MEMORY, self._host.disks.path(self._disk)):
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.fsync(file)
                marks.append(Mark.of(file))
            finally:
                os.close(file)
        facts = self._vm.record.facts
        assert facts is not None
        is_fork = self._disk != self._handle.vm
        manifest = Manifest(self._handle.vm, is_fork, facts, self._disk, marks[1], marks[0])
        snapshot_files.write_manifest(aside, manifest)


def _write_small(aside: Path, state: bytes, streams: bytes) -> None:
    snapshot_files.write_whole(aside / STATE, state)
    snapshot_files.write_whole(aside / STREAMS, streams)


async def _in_thread(act: Callable[[], None]) -> None:
    await finish(asyncio.to_thread(act))


def check(vm: LiveVm | None, into: Path) -> LiveVm:
    """Return a VM that can be saved there. Raises `LookupError`, `LaunchError`."""
    if vm is None or vm.has_ended:
        raise LookupError("there is no such VM, or it has ended")
    if vm.record.facts is None:
        raise LaunchError("an older magsd started this sandbox: only its disk can be kept")
    if vm.cgroup.is_frozen:
        raise LaunchError("the sandbox is frozen: it cannot be saved now")
    if into.exists():
        raise LaunchError("the snapshot is there already", str(into))
    return vm
