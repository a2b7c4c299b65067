"""What all VMs of one data directory share, whatever engine runs them.

Owns the disks, the control groups and the list of VMs that live; engines take
parts from here, so that two of them on one machine do not count apart. The
network is made before and outlives this.
"""

import asyncio
import os
import platform
import threading
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from magsd.aio import Clock, Tasks
from magsd.engine.cgroup import CgroupTree
from magsd.engine.disk_pool import PoolSettings
from magsd.engine.disks import Disks
from magsd.engine.live_vm import LiveVm
from magsd.engine.network import Network
from magsd.engine.network.namespaces import enter_new_namespace
from magsd.model.errors import LaunchError, MagsError
from magsd.model.names import VmId

_log: Final = structlog.get_logger()

PROGRAMS: Final = Path(__file__).parent.parent / "guest/programs" / platform.machine()
_OFFLINE_FIRST: Final = 20_000
"""VMs without network take their uids behind those of all slots."""


@dataclass(frozen=True)
class VmHostSettings:
    """What an operator decides about all VMs."""

    data_directory: Path
    instance: str
    """Four hex digits, see `network.instance_of`: in the name of everything on the host."""
    vm_uid_base: int = 2_000_000
    spare_disk_gb: int = 2
    """The usual size: images of this size are made ahead of need."""
    spare_disks: int = 2
    disk_pool: PoolSettings = field(default_factory=PoolSettings)
    shim_program: Path = PROGRAMS / "mags-shim"


class VmHost:
    """The parts. `prepare` comes first; `aclose` leaves the VMs alone."""

    def __init__(self, settings: VmHostSettings, network: Network, clock: Clock) -> None:
        self.settings = settings
        self.network = network
        self.clock = clock
        self.directory = settings.data_directory.resolve()
        self.run = self.directory / "run"
        self.tasks = Tasks(_report)
        self.cgroups = CgroupTree.of_host(settings.instance)
        self.disks = Disks(
            self.directory / "disks",
            spare_gb=settings.spare_disk_gb,
            spare_count=settings.spare_disks,
            tasks=self.tasks,
            pool=settings.disk_pool,
        )
        self.empty_namespace = -1
        """A network namespace with nothing in it, for the shims of VMs without network."""
        self.vms: dict[VmId, LiveVm] = {}
        self.launching: set[VmId] = set()
        self._preparing = asyncio.Lock()
        self._held: AsyncExitStack | None = None

    def check_root(self) -> None:
        """Raise `LaunchError` unless this process is root."""
        if os.geteuid() != 0:
            raise LaunchError("sandboxes need root: start magsd as root")

    async def prepare(self) -> None:
        """Check the host and make the folders. Idempotent. Raises `LaunchError`."""
        self.check_root()
        async with self._preparing:
            if self._held is not None:
                return
            async with AsyncExitStack() as undo:
                await self._prepare(undo)
                self._held = undo.pop_all()

    async def _prepare(self, undo: AsyncExitStack) -> None:
        if not self.settings.shim_program.is_file():
            text = "mags-shim is missing: run `make setup`"
            raise LaunchError(text, str(self.settings.shim_program))
        try:
            self.run.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.cgroups.prepare()
            undo.callback(self.cgroups.remove)
            undo.push_async_callback(self.disks.aclose)
            await self.disks.prepare()
            self.empty_namespace = await asyncio.to_thread(_empty_namespace)
            undo.callback(os.close, self.empty_namespace)
        except OSError as error:
            raise LaunchError(
                f"the data directory cannot be used: {error.strerror}", str(error)
            ) from error

    def uid_of_offline(self, vm: VmId) -> int:
        """Return a uid, which nobody has, for a VM without network."""
        taken = {live.record.uid for live in self.vms.values()}
        first = self.settings.vm_uid_base + _OFFLINE_FIRST
        wanted = int(vm, 16) % _OFFLINE_FIRST
        return next(
            uid
            for i in range(_OFFLINE_FIRST)
            if (uid := first + (wanted + i) % _OFFLINE_FIRST) not in taken
        )

    async def aclose(self) -> None:
        """Let go of everything; VMs live on and can be adopted. Idempotent."""
        vms, self.vms = self.vms, {}
        for vm in vms.values():
            await vm.let_go().aclose()
            vm.shim.close()
        await self.tasks.aclose()
        held, self._held = self._held, None
        if held is not None:
            await held.aclose()


def _empty_namespace() -> int:
    """Return a network namespace with nothing in it, made in a thread that ends with it."""
    made: list[int] = []
    thread = threading.Thread(target=lambda: made.append(enter_new_namespace()))
    thread.start()
    thread.join()
    if not made:
        raise LaunchError("a network namespace cannot be made: is this process root?")
    return made[0]


def _report(name: str, error: BaseException) -> None:
    detail = error.detail if isinstance(error, MagsError) else ""
    _log.error("a task of the engine failed", task=name, error=repr(error), detail=detail)
