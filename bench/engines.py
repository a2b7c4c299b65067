"""The engine on its own: no API, no database, no daemon."""

import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from magsd.aio import SystemClock, Tasks
from magsd.config import Settings
from magsd.engine.base import Engine, Handle, Plan
from magsd.engine.gvisor import GvisorEngine
from magsd.engine.network import Network
from magsd.model.names import VmId
from magsd.storage.host_files import guest_files
from magsd.storage.images import Image

SLOT_NET = IPv4Network("198.19.252.0/24")
VCPUS, MEMORY_MB, DISK_GB, PIDS = 1, 512, 2, 4096


@dataclass(frozen=True)
class Bare:
    """An engine that is prepared, and what its VMs are."""

    engine: Engine
    image: Image

    def plan(self, vm: str) -> Plan:
        """Return what a VM is: the sizes that a job has that asks for none."""
        return Plan(
            vm=VmId(vm),
            epoch=1,
            image=self.image.name,
            layers=self.image.layers,
            hostname=f"mags-{vm}",
            vcpus=VCPUS,
            memory_mb=MEMORY_MB,
            disk_gb=DISK_GB,
            pids_limit=PIDS,
        )

    def forget(self, handle: Handle) -> None:
        """Remove what is left of a VM that was stopped: its journal and record."""
        shutil.rmtree(handle.run_directory)

    @asynccontextmanager
    async def vm(self) -> AsyncIterator[Handle]:
        """Have a VM inside the block."""
        handle = await self.engine.launch(self.plan(secrets.token_hex(4)))
        try:
            yield handle
        finally:
            await self.engine.stop(handle)
            self.forget(handle)


@asynccontextmanager
async def bare(folder: Path, image: Image) -> AsyncIterator[Bare]:
    """Have an engine of the bench's own inside the block; `image` is of another directory."""
    settings = Settings(data_dir=folder, slot_net=SLOT_NET)
    (folder / "run").mkdir(mode=0o700, parents=True)
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        tasks = Tasks(_report)
        stack.push_async_callback(tasks.aclose)
        network = await Network.open(settings.network(), tasks, clock)
        stack.push_async_callback(network.aclose, remove=True)
        engine = GvisorEngine(settings.gvisor(), network, clock, guest_files())
        await engine.prepare()
        stack.push_async_callback(engine.aclose)
        yield Bare(engine, image)


def _report(name: str, error: BaseException) -> None:
    raise SystemExit(f"bench: {name} failed: {error!r}")
