"""Builds the engines, with what they need of the host around them.

The part of the composition root that names concrete engines; `app` decides
when it happens.
"""

import asyncio
import platform
import shutil
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from magsd.aio import Clock, Tasks
from magsd.config import Settings
from magsd.core.log_places import LogPlaces
from magsd.engine import accelerator, accelerator_probe, qemu_machine
from magsd.engine.accelerator import Finding, Verdict
from magsd.engine.base import Engine
from magsd.engine.fake.engine import NAME as FAKE
from magsd.engine.fake.engine import FakeEngine, FakeSettings
from magsd.engine.gvisor import GvisorEngine, GvisorSettings
from magsd.engine.network import Network
from magsd.engine.process import Detached
from magsd.engine.qemu import QemuEngine, QemuSettings
from magsd.engine.record import VmRecord, boot_id
from magsd.engine.vm_host import VmHost
from magsd.storage.host_files import guest_files
from magsd.storage.images import ImageStore
from magsd.storage.unneeded_images import UnneededImages

GVISOR: Final = "gvisor"
QEMU: Final = "qemu"
_SPARE_TAPS: Final = 4
_UNTRIED: Final = Verdict(Finding.UNTRIED, "nothing needs it")


def is_simulated(settings: Settings) -> bool:
    """Say whether no script really runs; then neither root nor an image is needed."""
    return settings.engine == FAKE


def usable_images(settings: Settings, images: ImageStore) -> ImageStore:
    """Return the images that jobs can name: those there are, or none needed."""
    if is_simulated(settings):
        return UnneededImages(settings.data_dir, settings.standard_image)
    return images


@dataclass(frozen=True)
class Engines:
    """What can run VMs here, and what does when a job does not care."""

    by_name: Mapping[str, Engine]
    default: str


@asynccontextmanager
async def opened(settings: Settings, tasks: Tasks, clock: Clock) -> AsyncIterator[Engines]:
    """Hold the engines open that the host has what it takes for; VMs live on afterwards."""
    async with AsyncExitStack() as stack:
        if is_simulated(settings):
            launch_s = settings.fake_launch_ms / 1000
            fake = FakeEngine(FakeSettings(settings.data_dir, launch_s), clock)
            stack.push_async_callback(fake.aclose)
            yield Engines({FAKE: fake}, FAKE)
            return
        there = {name for name in (GVISOR, QEMU) if _is_there(name, settings)}
        kvm = await _verdict_on_kvm(settings, tasks, clock) if QEMU in there else _UNTRIED
        default = chosen(settings, there, kvm)
        names = {default, *there}
        wanted = replace(settings.network(), spare_taps=_SPARE_TAPS if default == QEMU else 0)
        network = await Network.open(wanted, tasks, clock)
        stack.push_async_callback(_close_network, network, settings.data_dir)
        files = await asyncio.to_thread(guest_files)
        host = VmHost(settings.vm_host(), network, clock)
        stack.push_async_callback(host.aclose)
        by_name: dict[str, Engine] = {}
        if GVISOR in names:
            gvisor = GvisorEngine(GvisorSettings(), host, files)
            stack.push_async_callback(gvisor.aclose)
            by_name[GVISOR] = gvisor
        if QEMU in names:
            use = accelerator.chosen(settings.accelerator, kvm)
            qemu = QemuEngine(QemuSettings(use.name, use.refusal), host, files)
            stack.push_async_callback(qemu.aclose)
            by_name[QEMU] = qemu
        yield Engines(by_name, default)


def chosen(settings: Settings, there: Collection[str], kvm: Verdict) -> str:
    """Return the engine that `settings` name; for `auto` the best of those that are `there`.

    Pure. A microVM with KVM is that, then gVisor, then a microVM that is emulated.
    """
    if settings.engine != "auto":
        return settings.engine
    has_kvm = accelerator.chosen(settings.accelerator, kvm) == accelerator.Choice(accelerator.KVM)
    if QEMU in there and (has_kvm or GVISOR not in there):
        return QEMU
    return GVISOR


async def _verdict_on_kvm(settings: Settings, tasks: Tasks, clock: Clock) -> Verdict:
    """Return what is known of KVM, and try it first where something depends on that."""
    if settings.accelerator == accelerator.TCG:
        return _UNTRIED
    host = settings.vm_host()
    if settings.engine != GVISOR or settings.accelerator == accelerator.KVM:
        return await accelerator_probe.verdict(host, clock)
    # Nothing waits for it: gVisor is the default anyway, and what asks for the other one has
    # an emulated one until the next start.
    known = await accelerator_probe.known_verdict(settings.data_dir)
    if known.finding is Finding.UNTRIED:
        tasks.spawn("trying KVM", accelerator_probe.verdict(host, clock))
    return known


def _is_there(name: str, settings: Settings) -> bool:
    """Say whether somebody installed what an engine needs; whether it works is its own part."""
    if name == GVISOR:
        return shutil.which("runsc") is not None
    machine = qemu_machine.MACHINES.get(platform.machine())
    has_program = machine is not None and shutil.which(machine.program) is not None
    return has_program and (settings.data_dir / "kernel/current").exists()


async def lent(settings: Settings, own: Settings) -> Settings:
    """Return `own` for engines that need what another data directory has: kernel and verdict.

    Nothing is tried for them that the service itself has not tried.
    """
    (own.data_dir / "kernel").symlink_to(settings.data_dir / "kernel")
    known = await accelerator_probe.known_verdict(settings.data_dir)
    if known.finding is Finding.UNTRIED:
        return own.model_copy(update={"accelerator": accelerator.TCG})
    accelerator.hand_on(settings.data_dir, own.data_dir)
    return own


async def _close_network(network: Network, data_dir: Path) -> None:
    places = LogPlaces(data_dir)
    lives = any(_is_alive(places.run_directory(vm)) for vm in places.vms())
    await network.aclose(remove=not lives)


def _is_alive(run_directory: Path) -> bool:
    """Say whether a VM lives; a directory may wait to be put away after its VM's end."""
    record = VmRecord.read(run_directory)
    if record is None or record.boot_id != boot_id():
        return False
    shim = Detached.find(record.shim_pid, record.shim_start_time)
    if shim is None:
        return False
    shim.close()
    return True
