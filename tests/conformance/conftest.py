"""An engine of each kind, prepared on a data directory of its own, and a census around it."""

import asyncio
import itertools
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from magsd.aio import SystemClock, Tasks
from magsd.engine.base import Handle, Plan
from magsd.engine.gvisor import EngineSettings, GvisorEngine
from magsd.engine.network import Network, NetworkSettings, instance_of
from magsd.guest import streams
from magsd.guest.shim import ShimConnection
from magsd.model.names import new_vm_id
from magsd.storage.build import build_standard
from magsd.storage.images import Image, ImageStore
from tests import census

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
}
GUEST_FILES = {"etc/pip.conf": b"[global]\ntimeout = 7\n"}
_slot_nets = itertools.cycle(range(100, 140))


class Host:
    """What a daemon would hold: one network and one engine, made again at will."""

    def __init__(self, data: Path, image: Image) -> None:
        self.data = data
        self.image = image
        self.slot_net = f"198.19.{next(_slot_nets)}.0/24"
        self.settings = EngineSettings(data, instance_of(data), spare_disks=1)
        self.clock = SystemClock()
        self.errors: list[str] = []
        self._network: Network | None = None
        self._undo = AsyncExitStack()

    @property
    def network(self) -> Network:
        assert self._network is not None
        return self._network

    async def open_network(self, **settings: Any) -> None:
        tasks = Tasks(lambda name, error: self.errors.append(f"{name}: {error!r}"))
        self._undo.push_async_callback(tasks.aclose)
        directory = self.data / "network"
        directory.mkdir(exist_ok=True)
        wanted = NetworkSettings(
            instance=instance_of(self.data),
            run_directory=directory,
            slot_net=self.slot_net,
        )
        self._network = await Network.open(replace(wanted, **settings), tasks, self.clock)

    @asynccontextmanager
    async def engine(self, **settings: Any) -> AsyncIterator[GvisorEngine]:
        """A prepared engine; leaving it leaves the VMs alone, as the end of a daemon does."""
        wanted = replace(self.settings, **settings)
        engine = GvisorEngine(wanted, self.network, self.clock, GUEST_FILES)
        try:
            await engine.prepare()
            yield engine
        finally:
            await engine.aclose()

    def plan(self, **changes: Any) -> Plan:
        plan = Plan(
            vm=new_vm_id(),
            epoch=1,
            image=self.image.name,
            layers=self.image.layers,
            hostname="mags-conformance",
            vcpus=1.0,
            memory_mb=512,
            disk_gb=2,
            pids_limit=4096,
        )
        return replace(plan, **changes)

    def files(self, plan_or_handle: Plan | Handle) -> set[str]:
        """The names in a VM's run directory, without the many of the journal."""
        directory = self.data / "run" / plan_or_handle.vm
        if not directory.exists():
            return set()
        return {path.name for path in directory.iterdir() if not path.name.startswith("journal.")}

    async def aclose(self) -> None:
        if self._network is not None:
            await self._network.aclose(remove=True)
        await self._undo.aclose()


@pytest.fixture(scope="session")
def image_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data directory that holds image `standard` and nothing else."""
    directory = tmp_path_factory.mktemp("image")
    build_standard(ImageStore(directory), REPOSITORY / "build/images", False, print)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def data(tmp_path: Path, image_directory: Path) -> Path:
    """A data directory with the image, its layer shared by a hard link."""
    directory = tmp_path / "data"
    shutil.copytree(image_directory, directory, copy_function=lambda a, b: Path(b).hardlink_to(a))
    return directory


@pytest.fixture
async def host(data: Path) -> AsyncIterator[Host]:
    """A host with its network open; whatever a test leaves running is an error."""
    before = census.take(data)
    image = ImageStore(data).get("standard")
    host = Host(data, image)
    try:
        await host.open_network()
        yield host
    finally:
        if (data / "run").exists():
            await _sweep(host)
        await host.aclose()
    assert not host.errors
    assert not census.left_behind(before, data, ignoring=("file run/",))


async def _sweep(host: Host) -> None:
    """End what a failed test left."""
    async with host.engine() as engine:
        await engine.sweep(frozenset())


@pytest.fixture
async def engine(host: Host) -> AsyncIterator[GvisorEngine]:
    """The engine of a daemon that lives for the whole test."""
    async with host.engine() as engine:
        yield engine


@asynccontextmanager
async def connected(handle: Handle) -> AsyncIterator[ShimConnection]:
    connection = await ShimConnection.open(handle.run_directory)
    try:
        yield connection
    finally:
        await connection.aclose()


async def shell(handle: Handle, script: str) -> streams.ExecResult:
    """Run a shell script in a VM."""
    async with connected(handle) as connection:
        argv = ["/bin/sh", "-c", script]
        return await streams.run(connection, argv, environment=ENVIRONMENT)


async def printed(handle: Handle, script: str) -> str:
    """Run a shell script that must succeed; return what it printed."""
    result = await shell(handle, script)
    assert result.wait_status == 0, (script, result)
    return result.stdout.decode()


async def eventually(check: Callable[[], Any], within_s: float = 20.0) -> Any:
    """Return the first true result of `check`; give way to others in between."""
    deadline = time.monotonic() + within_s
    while not (result := check()):
        assert time.monotonic() < deadline, f"not so within {within_s} s: {check}"
        await asyncio.sleep(0)
    return result


async def within(seconds: float, work: Awaitable[Any]) -> Any:
    """Return `await work`, or fail when it takes longer: for what must not hang."""
    async with asyncio.timeout(seconds):
        return await work
