"""A host for engines whose VMs have a shim: network, image, control groups."""

import contextlib
import itertools
import os
import signal
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from magsd.aio import Tasks
from magsd.engine.base import Handle, Plan
from magsd.engine.cgroup import CgroupTree
from magsd.engine.network import Network, NetworkSettings, instance_of
from magsd.engine.shim_engine import ShimEngine
from magsd.engine.vm_host import VmHost, VmHostSettings
from magsd.model.names import VmId
from magsd.storage.images import Image
from tests.conformance.host import Host
from tests.conformance.roots import ROOTS
from tests.conformance.vm import record_of

_turns: dict[type, Iterator[str]] = {}
GUEST_FILES = {"etc/pip.conf": b"[global]\ntimeout = 7\n"}


class ShimHost(Host):
    slot_nets: Iterable[str] = tuple(f"198.19.{number}.0/24" for number in range(100, 140))
    hog = """awk 'BEGIN { x = "x"; while (i++ < 20) x = x x; for (;;) a[n++] = x n }'"""
    bomb = "while :; do sleep 60 & done"
    work = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"
    swept = "run directory, control group, disk"
    steps = ("at once", "run directory", "disk", "journal", "shim", "record", "engine")
    spare_taps = 0

    def __init__(self, data: Path, image: Image) -> None:
        super().__init__(data)
        self.image = image
        self.root = ROOTS[image.name]
        self.has_machine_id = self.root.has_machine_id
        self.slot_net = next(_turns.setdefault(type(self), itertools.cycle(self.slot_nets)))
        self.settings = VmHostSettings(data, instance_of(data), spare_disks=1)
        self.errors: list[str] = []
        self._network: Network | None = None
        self._vm_host: VmHost | None = None
        self._undo = AsyncExitStack()

    @abstractmethod
    def make(self, vm_host: VmHost, **settings: Any) -> ShimEngine:
        """An engine that is not prepared yet."""

    @property
    def network(self) -> Network:
        assert self._network is not None
        return self._network

    def disk(self, vm: VmId) -> Path:
        """Where the newest daemon here has a VM's disk, if it has one."""
        assert self._vm_host is not None
        return self._vm_host.disks.path(vm)

    @override
    async def open(self, **settings: Any) -> None:
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
    async def unprepared(self, **settings: Any) -> AsyncIterator[ShimEngine]:
        """An engine, with settings of its own or of all VMs."""
        common = {field.name for field in fields(VmHostSettings)} & settings.keys()
        wanted = replace(self.settings, **{name: settings.pop(name) for name in common})
        async with AsyncExitStack() as stack:
            vm_host = self._vm_host = VmHost(wanted, self.network, self.clock)
            stack.push_async_callback(vm_host.aclose)
            engine = self.make(vm_host, **settings)
            stack.push_async_callback(engine.aclose)
            yield engine

    @override
    @asynccontextmanager
    async def engine(self, **settings: Any) -> AsyncIterator[ShimEngine]:
        async with self.unprepared(**settings) as engine:
            await engine.prepare()
            yield engine

    @override
    def plan(self, **changes: Any) -> Plan:
        return self._plan(self.image.name, self.image.layers, changes)

    @override
    async def lose_shim(self, handle: Handle) -> None:
        os.kill(record_of(handle)["shim_pid"], signal.SIGKILL)

    @override
    def has_reached(self, step: str, plan: Plan) -> bool:
        run = self.data / "run" / plan.vm
        match step:
            case "run directory":
                return run.exists()
            case "disk":
                return self.disk(plan.vm).exists()
            case "journal":
                return (run / "journal.head").exists()
            case "shim":
                return "sock" in self.files(plan)
            case "record":
                return "record.json" in self.files(plan)
            case "engine":
                return self.is_running(plan)
            case _:
                return True

    @override
    def linger_at(self, step: str) -> None:
        """Each takes long enough."""

    def is_running(self, plan: Plan) -> bool:
        group = Path("/sys/fs/cgroup/pids") / f"mags-{self.settings.instance}" / plan.vm
        with contextlib.suppress(FileNotFoundError):
            return bool((group / "cgroup.procs").read_text())
        return False

    def processes(self, handle: Handle) -> dict[str, int]:
        """The VM's processes on the host by name, from its control group."""
        group = CgroupTree.of_host(self.settings.instance).group(handle.vm)
        found: dict[str, int] = {}
        for pid in group.pids():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                found.setdefault(Path(words[0]).name, pid)
        return found

    @override
    async def aclose(self) -> None:
        if self._network is not None:
            await self._network.aclose(remove=True)
        await self._undo.aclose()
        assert not self.errors
