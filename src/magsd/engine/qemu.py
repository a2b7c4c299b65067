"""`QemuEngine`: VMs as microVMs, a Linux kernel for each, with KVM or without.

Owns what the engine needs of the host. How one VM comes to be is
`qemu_launch`'s part, what QEMU is told `qemu_spec`'s, all the rest
`shim_engine`'s.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog
from typing_extensions import override

from magsd.engine import (
    accelerator,
    initramfs,
    qemu_facts,
    qemu_machine,
    qemu_spec,
    qemu_suspend,
)
from magsd.engine.base import Capabilities, Capture, Handle, Plan
from magsd.engine.disks import failure
from magsd.engine.kernel import Kernel
from magsd.engine.launch_shim import memory_file
from magsd.engine.moment import Hold
from magsd.engine.qemu_bare import LAYERS_MAX, BareLaunch, is_bare
from magsd.engine.qemu_boot import booted, tried
from magsd.engine.qemu_host import find_qemu
from magsd.engine.qemu_launch import CloneLaunch, Parts, QemuLaunch
from magsd.engine.qemu_restore import Snapshots
from magsd.engine.qemu_still import at_rest, held_by_agent, tar_of
from magsd.engine.record import VmRecord
from magsd.engine.shim_engine import ShimEngine
from magsd.engine.template_files import Template
from magsd.engine.templates import Templates
from magsd.engine.tsc import tsc_khz
from magsd.engine.vm_host import PROGRAMS, VmHost
from magsd.engine.vm_launch import Launched
from magsd.model.errors import LaunchError

_log: Final = structlog.get_logger()


@dataclass(frozen=True)
class QemuSettings:
    """What an operator decides about the engine."""

    accelerator: str = accelerator.TCG
    """`kvm` or `tcg`; see `accelerator.chosen`."""
    refusal: str = ""
    """Why the engine is not to be used here; empty: it may."""
    boot_s: float = 20.0
    """A machine that has not booted by then hangs: it is ended, and booted once more."""
    clone_s: float = 5.0
    """One that goes on from a template and does not answer by then is ended, and boots."""
    agent_program: Path = PROGRAMS / "mags-agent"
    tsc_program: Path = PROGRAMS / "mags-tsc"


class QemuEngine(ShimEngine):
    """The Engine contract with QEMU."""

    def __init__(
        self, settings: QemuSettings, host: VmHost, guest_files: Mapping[str, bytes]
    ) -> None:
        """`guest_files`: by path without a leading slash, shown inside where the image has one."""
        super().__init__(host)
        self._settings = settings
        self._guest_files = dict(guest_files)
        self._held = AsyncExitStack()
        self._parts: Parts
        self._templates: Templates
        self._snapshots: Snapshots

    @property
    @override
    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        return Capabilities(
            name="qemu",
            isolation="microvm",
            suspend=True,
            live_fork=True,
            template=True,
            special_files_kept=True,
            max_vcpus=len(os.sched_getaffinity(0)),
            needs_root=True,
            accelerator=self._settings.accelerator,
        )

    @override
    async def prepare(self) -> None:
        """Check QEMU, the kernel and the host. Idempotent. Raises `LaunchError`."""
        if self._is_prepared:
            return
        if self._settings.refusal:
            raise LaunchError(self._settings.refusal)
        self._host.check_root()
        settings, machine = self._settings, qemu_machine.of_host()
        emulator = await find_qemu(machine)
        kernel = Kernel.read(self._host.directory / "kernel")
        if not settings.agent_program.is_file():
            text = "mags-agent is missing: run `make setup`"
            raise LaunchError(text, str(settings.agent_program))
        frequency = None
        if machine.has_tsc and settings.accelerator == accelerator.TCG:
            frequency = await tsc_khz(settings.tsc_program, self._host.directory)
        await self._host.prepare()
        archive = initramfs.build(settings.agent_program, kernel.modules)
        by = qemu_spec.Accelerator(settings.accelerator)
        booted_from = memory_file("initramfs", archive, self._held)
        command_line = qemu_spec.kernel_command_line(machine, by, frequency)
        self._parts = Parts(
            machine=machine,
            accelerator=by,
            version=emulator.version,
            facts=qemu_facts.of_host(
                build=emulator.build,
                accelerator=by,
                machine=machine.kind,
                kernel=kernel.digest,
                initramfs=booted_from,
                command_line=command_line,
                guest_files=self._guest_files,
                nameserver=str(self._host.network.dns_address),
            ),
            kernel=kernel,
            initramfs=booted_from,
            command_line=command_line,
            guest_files=self._guest_files,
            boot_s=settings.boot_s,
            clone_s=settings.clone_s,
        )
        self._templates = Templates(self._host, self._parts)
        self._held.push_async_callback(self._templates.aclose)
        await asyncio.to_thread(self._templates.prepare)
        self._snapshots = Snapshots(self._host, self._parts)
        self._held.callback(self._snapshots.close)
        await self._host.disks.drop_orphans()
        self._is_prepared = True

    @override
    async def _launch(self, plan: Plan, directory: Path, undo: AsyncExitStack) -> Launched:
        if len(plan.layers) > LAYERS_MAX:
            raise LaunchError(f"an image of more than {LAYERS_MAX} layers cannot be started")
        host, parts = self._host, self._parts

        async def clone(template: Template) -> Launched:
            kind = BareLaunch if is_bare(plan) else CloneLaunch
            return await tried(kind(host, parts, plan, directory, template), undo)

        async def boot() -> Launched:
            return await tried(QemuLaunch(host, parts, plan, directory), undo)

        if (launched := await self._templates.cloned(plan, clone)) is not None:
            return launched
        _log.info("cold_boot", vm=plan.vm, image=plan.image)
        return await booted(boot, parts.boot_s, vm=plan.vm, image=plan.image)

    @override
    async def suspend(self, handle: Handle, into: Path, *, keep_running: bool = False) -> None:
        self._check_prepared()
        vm = qemu_suspend.check(self._host.vms.get(handle.vm), into)
        await self._host.disks.drop_orphans()
        suspension = qemu_suspend.Suspension(self._host, vm, handle, into)
        try:
            await suspension.run(None if keep_running else lambda: self._end_at_once(handle))
        except OSError as error:
            raise failure("the sandbox could not be saved, and goes on", str(error)) from error

    @override
    async def restore(self, snapshot: Path, plan: Plan) -> Handle:
        self._check_prepared()
        plan = replace(plan, waits=False)
        async with AsyncExitStack() as held:
            launch = await self._snapshots.open(snapshot, plan, held)

            async def go_on(plan: Plan, directory: Path, undo: AsyncExitStack) -> Launched:
                return await tried(launch, undo)

            return await self._begin(plan, go_on)

    @override
    def _hold(self, record: VmRecord) -> Hold:
        return held_by_agent

    @override
    @asynccontextmanager
    async def _at_rest(self, handle: Handle) -> AsyncIterator[None]:
        async with at_rest(handle):
            yield

    @override
    async def _read(self, disk: int, held: AsyncExitStack) -> Capture:
        return await tar_of(self._host, self._parts, self._templates.cloned, disk, held)

    @override
    async def aclose(self) -> None:
        """Let go of what launches need; VMs live on and can be adopted. Idempotent."""
        self._is_prepared = False
        held, self._held = self._held, AsyncExitStack()
        await held.aclose()
