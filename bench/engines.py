"""The engine on its own: no API, no database, no daemon.

What is told to a VM, how one that waits is warmed and how it is claimed are
the core's own functions, so that what is measured here is what runs there.
"""

import shutil
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.server import add_kernel
from magsd import engines
from magsd.aio import Clock, SystemClock, Tasks
from magsd.config import Settings
from magsd.core import launch
from magsd.core.launch import SCRIPT_STREAM
from magsd.engine.base import Engine, Handle, Plan
from magsd.guest.shim import ShimConnection
from magsd.model.names import new_vm_id
from magsd.model.quota import Limits, completed
from magsd.model.records import JobSpec
from magsd.storage.images import Image

HELLO: Final = completed(JobSpec("echo hello"), Limits())
"""The script of most samples, in a VM of the sizes that a job has that asks for none."""
_PIDS: Final = 4096
_STOCK: Final = 2
"""As many VMs as wait in the pool: the one that is claimed has waited as long as one of those."""


@dataclass(frozen=True)
class Waiting:
    """A VM that was warmed and is held, frozen, by a connection."""

    handle: Handle
    connection: ShimConnection


class Bare:
    """An engine that is prepared, and VMs of it."""

    def __init__(self, engine: Engine, image: Image, folder: Path, clock: Clock) -> None:
        self.engine = engine
        self.folder = folder
        self._image = image
        self._clock = clock
        self._stock: deque[Waiting] = deque()

    def plan(self, *, waits: bool = False, memory_mb: int = HELLO.memory_mb) -> Plan:
        """Return what a VM is; `waits`: as the pool wants it."""
        vm = new_vm_id()
        return Plan(
            vm=vm,
            epoch=1,
            image=self._image.name,
            layers=self._image.layers,
            hostname=f"mags-{vm}",
            vcpus=HELLO.vcpus,
            memory_mb=memory_mb,
            disk_gb=HELLO.disk_gb,
            pids_limit=_PIDS,
            waits=waits,
        )

    async def end(self, handle: Handle) -> None:
        """End a VM; nothing of it is left."""
        await self.engine.stop(handle)
        shutil.rmtree(handle.run_directory)

    @asynccontextmanager
    async def vm(self) -> AsyncIterator[Handle]:
        """Have a VM inside the block."""
        handle = await self.engine.launch(self.plan())
        try:
            yield handle
        finally:
            await self.end(handle)

    async def launch_to_done(self) -> float:
        """Launch a VM for a script and have its exit; return how many milliseconds it took."""
        started = time.perf_counter()
        handle, connection = await self.launched()
        await exited(connection)
        took_ms = (time.perf_counter() - started) * 1000
        await connection.aclose()
        await self.end(handle)
        return took_ms

    async def launched(self) -> tuple[Handle, ShimConnection]:
        """Launch a VM and begin the script in it."""
        plan = self.plan()
        connection = await launch.start(self.engine, plan, HELLO, self._clock)
        return Handle(plan.vm, plan.epoch, self.folder / "run" / plan.vm), connection

    async def claim_to_done(self) -> float:
        """Claim the VM that waits longest for a script and have its exit; then make another.

        Returns how many milliseconds it took from the claim to the exit.
        """
        while len(self._stock) < _STOCK:
            self._stock.append(await self.waiting())
        vm = self._stock.popleft()
        started = time.perf_counter()
        await launch.begin(self.engine, vm.handle, vm.connection, HELLO, self._clock)
        await exited(vm.connection)
        took_ms = (time.perf_counter() - started) * 1000
        await vm.connection.aclose()
        await self.end(vm.handle)
        self._stock.append(await self.waiting())
        return took_ms

    async def held(self) -> Waiting:
        """Launch a VM that is fit for a script, as the pool does."""
        plan = self.plan(waits=True)
        handle = await launch.launched(self.engine, plan)
        connection = await ShimConnection.open(handle.run_directory)
        await launch.hold(connection, plan.hostname, self._clock)
        return Waiting(handle, connection)

    async def warm(self, vm: Waiting) -> None:
        """Warm and freeze one, as the pool does when nothing else is to be done."""
        await launch.warm(vm.connection, self.engine.capabilities)

    async def waiting(self) -> Waiting:
        """Launch a VM, warm and freeze it."""
        vm = await self.held()
        await self.warm(vm)
        return vm

    async def let_go(self, vm: Waiting) -> None:
        """End a VM that waits."""
        await vm.connection.aclose()
        await self.end(vm.handle)

    async def aclose(self) -> None:
        """End the VMs that wait. Idempotent."""
        while self._stock:
            await self.let_go(self._stock.popleft())


@asynccontextmanager
async def bare(folder: Path, engine: str, slot_net: str, image: Image) -> AsyncIterator[Bare]:
    """Have an engine of the bench's own inside the block; `image` is of another directory."""
    settings = Settings.model_validate({"data_dir": folder, "slot_net": slot_net, "engine": engine})
    (folder / "run").mkdir(mode=0o700, parents=True, exist_ok=True)
    add_kernel(folder, engine)
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        tasks = Tasks(_report)
        stack.push_async_callback(tasks.aclose)
        opened = await stack.enter_async_context(engines.opened(settings, tasks, clock))
        chosen = opened.by_name[engine]
        await chosen.prepare()
        bare = Bare(chosen, image, folder, clock)
        stack.push_async_callback(bare.aclose)
        yield bare


async def exited(connection: ShimConnection) -> None:
    """Return when the script has ended; end the bench when it did not do its part."""
    ended = await connection.exited(SCRIPT_STREAM)
    if ended.wait_status != 0:
        raise SystemExit(f"bench: `echo hello` ended with {ended}")


def _report(name: str, error: BaseException) -> None:
    raise SystemExit(f"bench: {name} failed: {error!r}")
