"""Tries KVM, with real machines: a boot, a program, a template, machines that go on from it.

Owns what is tried and for how long. The machines are the engine's own, in a
folder of their own; they have no network, no image, and end with this process.
The verdict is kept, see `accelerator`.
"""

import asyncio
import fcntl
import os
import platform
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog
from typing_extensions import override

from magsd.aio import Clock, Tasks, finish
from magsd.engine import accelerator, process, qemu_machine
from magsd.engine.accelerator import Facts, Finding, Verdict
from magsd.engine.base import Plan
from magsd.engine.kernel import Kernel
from magsd.engine.network import Network, NetworkSettings, instance_of
from magsd.engine.qemu import QemuEngine, QemuSettings
from magsd.engine.qemu_boot import tried
from magsd.engine.qemu_host import find_qemu
from magsd.engine.qemu_launch import CloneLaunch, QemuLaunch
from magsd.engine.record import boot_id
from magsd.engine.template_files import Template
from magsd.engine.vm_host import PROGRAMS, VmHost, VmHostSettings
from magsd.engine.vm_launch import Launched
from magsd.guest import streams
from magsd.guest.shim import ShimConnection, ShimError
from magsd.model.errors import JobCode, LaunchError, MagsError
from magsd.model.names import new_vm_id

_log: Final = structlog.get_logger()

STEP_S: Final = 10.0
"""For a machine to come up, run a program and end. Where KVM works it is a second or two."""
_FOLDER: Final = "tmp/kvm"
"""The same at each start, and emptied by each: nothing is left of one that was killed."""
_PROGRAM: Final = "mags-tsc"
"""A small static one that is there anyway: a root that holds nothing else needs no image."""
_SQUASH_S: Final = 30.0
_MEMORY_MB: Final = 256
_WHY_CHARS: Final = 300


class _StepError(MagsError):
    """A machine did not do what it must."""


async def known_verdict(directory: Path) -> Verdict:
    """Return what is known of KVM, without trying it; `directory`: the data directory."""
    if (seen := accelerator.seen_without_trying()) is not None:
        return seen
    try:
        facts = await _facts(directory)
    except LaunchError as error:
        return Verdict(Finding.UNTRIED, error.message)
    kept = accelerator.remembered(directory, facts)
    return kept or Verdict(Finding.UNTRIED, "it is tried when the service starts")


async def verdict(settings: VmHostSettings, clock: Clock) -> Verdict:
    """Return the verdict on KVM; try it when there is none for this host as it is.

    Takes a few seconds then, and `STEP_S` where KVM hangs. Only for the one
    daemon of the data directory. Raises nothing: what keeps it from being tried
    is a reason not to use it.
    """
    known = await known_verdict(settings.data_directory)
    if known.finding is not Finding.UNTRIED:
        return known
    try:
        facts = await _facts(settings.data_directory)
    except LaunchError:
        return known
    began = clock.monotonic()
    found = await try_out(settings, clock)
    if found.finding is not Finding.UNTRIED:
        accelerator.remember(settings.data_directory, facts, found)
    took_s = round(clock.monotonic() - began, 2)
    _log.info("kvm_tried", finding=found.finding.value, why=found.why, took_s=took_s)
    return found


async def _facts(directory: Path) -> Facts:
    emulator = await find_qemu(qemu_machine.of_host())
    kernel = Kernel.read(directory / "kernel")
    return Facts(kernel.digest, emulator.build, platform.release(), boot_id())


async def try_out(
    settings: VmHostSettings, clock: Clock, name: str = accelerator.KVM, step_s: float = STEP_S
) -> Verdict:
    """Try machines with an accelerator, each step for `step_s`; keep nothing of it.

    Where it works that is a few seconds. Raises nothing but a cancellation.
    """
    folder = settings.data_directory / _FOLDER
    async with AsyncExitStack() as undo:
        undo.push_async_callback(_remove, folder)
        try:
            await _remove(folder)
            layer = await _furnish(folder, settings.data_directory)
            undo.callback(os.close, _lock(folder))
            host = await _host(replace(settings, data_directory=folder), clock, undo)
            await _smoke(host, layer, name, step_s)
        except _StepError as error:
            return Verdict(Finding.FAILS, _text_of(error))
        except Exception as error:  # noqa: BLE001 - a service starts, whatever is wrong here
            return Verdict(Finding.UNTRIED, f"it could not be tried: {_text_of(error)}")
    return Verdict(Finding.WORKS, "machines booted, were saved, and went on from what was saved")


async def _furnish(folder: Path, data_directory: Path) -> Path:
    """Make the data directory of the machines; return the layer that they boot from."""
    root = folder / "root"
    for name in ("root", "bin"):
        (root / name).mkdir(parents=True, mode=0o755)
    (folder / "kernel").symlink_to((data_directory / "kernel").resolve())
    shutil.copy2(PROGRAMS / _PROGRAM, root / "bin" / _PROGRAM)
    layer = folder / "probe.sqfs"
    squash = ["mksquashfs", str(root), str(layer), "-quiet", "-no-progress", "-all-root"]
    await process.run(squash, timeout_s=_SQUASH_S)
    return layer


def _lock(folder: Path) -> int:
    """Show that somebody works here, as a daemon does: what it makes is nobody's leftover."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


async def _host(settings: VmHostSettings, clock: Clock, undo: AsyncExitStack) -> VmHost:
    instance = instance_of(settings.data_directory)
    tasks = Tasks(_report)
    undo.push_async_callback(tasks.aclose)
    # Never opened: no machine here has one.
    network = Network(NetworkSettings(instance, settings.data_directory), tasks, clock)
    host = VmHost(replace(settings, instance=instance, spare_disks=0), network, clock)
    undo.push_async_callback(host.aclose)
    await host.prepare()
    for left in host.cgroups.names():  # By a service that was killed meanwhile.
        await host.cgroups.group(left).remove(clock)
    return host


async def _smoke(host: VmHost, layer: Path, name: str, step_s: float) -> None:
    """Take all steps. Raises `_StepError` where a machine does not work, else what it may be."""
    settings = QemuSettings(accelerator=name, boot_s=step_s, clone_s=step_s)

    async def step(what: str, engine: QemuEngine) -> None:
        try:
            async with asyncio.timeout(step_s):
                await _run_program(engine, layer)
        except TimeoutError as error:
            text = f"{what} did not come up, run a program and end within {step_s:g} s"
            raise _StepError(text) from error
        except LaunchError as error:
            if error.job_code is JobCode.HOST_DISK_FULL:
                raise
            raise _StepError(f"{what} failed: {error.message}", error.detail) from error

    async with _prepared(_Booting(settings, host, {})) as engine:
        await step("a machine that boots", engine)
    async with _prepared(_Cloning(settings, host, {})) as engine:
        await step("a template and a machine that goes on from it", engine)
        await step("another machine that goes on from it", engine)


@asynccontextmanager
async def _prepared(engine: QemuEngine) -> AsyncIterator[QemuEngine]:
    try:
        await engine.prepare()
        yield engine
    finally:
        await finish(engine.aclose())


async def _run_program(engine: QemuEngine, layer: Path) -> None:
    """Run the program in a machine of its own. Raises `LaunchError`."""
    # It waits: so its shim ends it when this process ends.
    plan = Plan(
        vm=new_vm_id(),
        epoch=1,
        image="probe",
        layers=(layer,),
        hostname="probe",
        vcpus=1.0,
        memory_mb=_MEMORY_MB,
        disk_gb=1,
        pids_limit=64,
        waits=True,
        network=False,
    )
    handle = await engine.launch(plan)
    try:
        connection = await ShimConnection.open(handle.run_directory, handle.vm, handle.epoch)
        try:
            ran = await streams.run(connection, [f"/bin/{_PROGRAM}"], environment={}, cwd="/")
        finally:
            await connection.aclose()
    except ShimError as error:
        raise LaunchError("its agent does not answer", repr(error)) from error
    finally:
        await finish(engine.stop(handle))
    if ran.wait_status != 0 or not ran.stdout.strip().isdigit():
        raise LaunchError("a program did not run as it should", repr(ran))


class _Booting(QemuEngine):
    """The engine, with machines that boot although they could go on from a template."""

    @override
    async def _launch(self, plan: Plan, directory: Path, undo: AsyncExitStack) -> Launched:
        return await tried(QemuLaunch(self._host, self._parts, plan, directory), undo)


class _Cloning(QemuEngine):
    """The engine, with machines that do not boot where they cannot go on from a template."""

    @override
    async def _launch(self, plan: Plan, directory: Path, undo: AsyncExitStack) -> Launched:
        async def clone(template: Template) -> Launched:
            launch = CloneLaunch(self._host, self._parts, plan, directory, template)
            return await tried(launch, undo)

        if (launched := await self._templates.cloned(plan, clone)) is None:
            raise LaunchError("no template was made, or no machine went on from it: see the log")
        return launched


async def _remove(folder: Path) -> None:
    await finish(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))


def _text_of(error: Exception) -> str:
    text = f"{error.message} ({error.detail})" if isinstance(error, MagsError) else repr(error)
    return " ".join(text.split()).removesuffix(" ()")[:_WHY_CHARS]


def _report(name: str, error: BaseException) -> None:
    _log.error("a task of the probe failed", task=name, error=repr(error))
