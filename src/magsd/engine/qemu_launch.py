"""One launch with QEMU: what the emulator inherits and sees, and the guest's root.

What every engine does is `vm_launch`, what QEMU is told `qemu_spec`.
"""

import asyncio
import os
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from typing_extensions import override

from magsd.engine import mounts, qemu_facts, template_files
from magsd.engine import qemu_spec as spec
from magsd.engine.accelerator import KVM
from magsd.engine.accelerator_device import device_folder
from magsd.engine.base import Plan
from magsd.engine.kernel import Kernel
from magsd.engine.launch_shim import ShimPlan, StartingShim, memory_file
from magsd.engine.network import Slot
from magsd.engine.process import Detached
from magsd.engine.qemu_boot import CloneError, deadline
from magsd.engine.qemu_machine import Machine
from magsd.engine.qemu_monitor import Monitor
from magsd.engine.qemu_sockets import listening
from magsd.engine.record import VmRecord
from magsd.engine.template_files import Template
from magsd.engine.vm_host import VmHost
from magsd.engine.vm_launch import Overhead, VmLaunch, opened, together
from magsd.guest import identity, streams
from magsd.guest.shim import ShimConnection, ShimError
from magsd.model.errors import JobCode, LaunchError

_EMULATOR_UIDS: Final = 45_000
"""The emulator's uid is so far behind its shim's, which it must not be able to signal."""
_LAST_WORDS_S: Final = 1.0


@dataclass(frozen=True)
class Parts:
    """What all launches with QEMU share."""

    machine: Machine
    accelerator: spec.Accelerator
    version: str
    """Of the emulator."""
    facts: Mapping[str, Any]
    """What a machine that was saved depends on, but for its plan: see `qemu_facts`."""
    kernel: Kernel
    initramfs: int
    """A descriptor."""
    command_line: str
    """The kernel's."""
    guest_files: Mapping[str, bytes]
    boot_s: float
    """A machine that boots must be up by then."""
    clone_s: float
    """A machine that goes on from a template must answer by then."""


class QemuLaunch(VmLaunch):
    """A launch that boots the guest."""

    engine = "qemu"
    overhead = Overhead(spec.OVERHEAD_MB, spec.OVERHEAD_TASKS)

    def __init__(self, host: VmHost, parts: Parts, plan: Plan, run_directory: Path) -> None:
        super().__init__(
            host,
            plan,
            run_directory,
            version=f"{parts.version} {parts.accelerator.name}, kernel {parts.kernel.version}",
            guest_files=parts.guest_files,
        )
        self.parts = parts
        self._slots = 0

    @override
    async def acquire_slot(self) -> Slot:
        return await self.host.network.acquire(tap=True)

    @override
    def add_engine(self, plan: ShimPlan, held: AsyncExitStack) -> None:
        self._add_tree(plan, held)
        inherited = self.descriptors(held)
        self._slots = len(inherited.layers)
        arguments = self.arguments(inherited, plan, held)
        for descriptor in inherited.all:
            plan.add_descriptor("pass", descriptor)
        plan.add_each("arg", [*arguments, *self._shims_monitor(plan, held)])
        plan.add("root", spec.ROOT)
        plan.add("user", f"{self.emulator_uid}:{self.emulator_uid}")
        plan.add("file_size", max(self.plan.disk_gb, 1) << 30)
        plan.add_each("engine_failed", spec.FAILED_STATUSES)

    @property
    def emulator_uid(self) -> int:
        """Whose process the emulator is, once there is a slot."""
        user = self.host.settings.vm_uid_base + _EMULATOR_UIDS
        return user + (self.slot.index if self.slot else 0)

    def _shims_monitor(self, plan: ShimPlan, held: AsyncExitStack) -> list[str]:
        """Give the shim a monitor: a machine that was stopped by who has died it lets go on."""
        ours, theirs = socket.socketpair()
        for end, field in ((ours, "monitor"), (theirs, "pass")):
            held.callback(end.close)
            plan.add_descriptor(field, end.fileno())
        return spec.second_monitor(theirs.fileno())

    @override
    def _record(self, shim: Detached) -> VmRecord:
        facts = {**self.parts.facts, **qemu_facts.of_plan(self.plan), "slots": self._slots}
        return replace(super()._record(shim), facts=facts)

    def arguments(
        self, inherited: spec.Descriptors, plan: ShimPlan, held: AsyncExitStack
    ) -> list[str]:
        """Return the emulator's command line; what else it needs it is passed."""
        return spec.command(
            self.parts.machine,
            self.parts.accelerator,
            spec.Size.of(self.plan),
            inherited,
            self.memory(plan, held),
            self.beginning(plan, held),
        )

    def memory(self, plan: ShimPlan, held: AsyncExitStack) -> list[str]:
        """Return where the guest's memory is."""
        # A file, so that it can be found from outside when the machine is saved.
        memory = template_files.new_memory(self.plan.memory_mb << 20)
        held.callback(os.close, memory)
        return spec.file_memory(passed(memory, plan, held), is_shared=True)

    def beginning(self, plan: ShimPlan, held: AsyncExitStack) -> list[str]:
        """Return how the machine begins."""
        kernel = opened(self.parts.kernel.image, os.O_RDONLY, held)
        plan.add_descriptor("pass", kernel)
        initramfs = passed(self.parts.initramfs, plan, held)
        return spec.boot(kernel, initramfs, self.parts.command_line)

    def _add_tree(self, plan: ShimPlan, held: AsyncExitStack) -> None:
        """Show the emulator its own program, libraries and firmware, and nothing else."""
        plan.add_each("mkdir", [spec.ROOT, f"{spec.ROOT}/usr", f"{spec.ROOT}/proc"])
        for name in ("lib", "lib64"):
            path = Path("/", name)
            if path.is_symlink():
                plan.add("symlink", f"{os.readlink(path).lstrip('/')}:{spec.ROOT}/{name}")
            elif path.is_dir():
                plan.add("mkdir", f"{spec.ROOT}/{name}")
                self._show(path, plan, held)
        self._show(Path("/usr"), plan, held)
        # For trying out what locks there are, which guard disks against a second emulator.
        plan.add("mkdir", f"{spec.ROOT}/dev")
        if self.parts.accelerator.name == KVM:
            devices = device_folder()
            held.callback(os.close, devices)
            plan.add_descriptor("layer", devices, f"{spec.ROOT}/dev")
        empty = memory_file("null", b"", held)
        plan.add_descriptor("copy", empty, f"644:{spec.ROOT}/dev/null")
        self._show(Path("/dev/null"), plan, held)
        plan.add("proc", f"{spec.ROOT}/proc")

    def _show(self, path: Path, plan: ShimPlan, held: AsyncExitStack) -> None:
        descriptor = mounts.clone_mount(path)
        held.callback(os.close, descriptor)
        plan.add_descriptor("layer", descriptor, f"{spec.ROOT}{path}")

    def descriptors(self, held: AsyncExitStack) -> spec.Descriptors:
        """Return what the emulator inherits."""
        monitor = listening(self.run_directory, held)
        layers = tuple(self._layer(path, held) for path in self.plan.layers)
        tap = self.slot.tap_fd if self.slot else None
        return spec.Descriptors(monitor, layers, self.disk, tap)

    def _layer(self, path: Path, held: AsyncExitStack) -> int:
        try:
            return opened(path, os.O_RDONLY, held)
        except OSError as error:
            raise LaunchError(
                f"the image layer {path.name} cannot be read: build or add its image again",
                str(error),
                JobCode.IMAGE_DAMAGED,
            ) from error

    @override
    async def start(self, shim: StartingShim) -> None:
        await shim.start(is_held=self.plan.waits)
        await self.furnish(shim)

    async def furnish(self, shim: StartingShim) -> None:
        """Give a guest whose agent has joined its network and its root."""
        plan, connection = self.plan, shim.connection
        try:
            await streams.control(connection, "network", **spec.network_fields(plan))
            await streams.control(connection, "root", **self.root_fields())
        except ShimError as error:
            raise LaunchError(
                "the sandbox could not use its image: build or add it again",
                repr(error),
                JobCode.IMAGE_DAMAGED,
            ) from error

    def root_fields(self) -> dict[str, str | list[str]]:
        """Return what the agent is told to make its root of."""
        return spec.root_fields(self.plan, slots=len(self.plan.layers))


class TemplateLaunch(QemuLaunch):
    """A launch of a machine that is to be saved: its memory is a file."""

    def __init__(
        self, host: VmHost, parts: Parts, plan: Plan, run_directory: Path, memory: int
    ) -> None:
        super().__init__(host, parts, plan, run_directory)
        self._memory = memory

    @override
    async def take_network(self, undo: AsyncExitStack, held: AsyncExitStack) -> None:
        # It has the interface of those that come of it, which leads nowhere.
        self.netns = self.host.empty_namespace

    @override
    def memory(self, plan: ShimPlan, held: AsyncExitStack) -> list[str]:
        return spec.file_memory(passed(self._memory, plan, held), is_shared=True)

    @override
    async def furnish(self, shim: StartingShim) -> None:
        await super().furnish(shim)
        try:
            # Each that comes of it gets another in its place, for which less is left to do.
            await identity.introduce(shim.connection, self.plan.hostname, self.host.clock.now())
        except ShimError as error:
            raise LaunchError("the template's agent does not answer", repr(error)) from error


class CloneLaunch(QemuLaunch):
    """A launch that goes on from a template."""

    def __init__(
        self, host: VmHost, parts: Parts, plan: Plan, run_directory: Path, template: Template
    ) -> None:
        super().__init__(host, parts, plan, run_directory)
        self.template = template
        self._state = -1
        # A page that the template leaves empty is made in its file first, at the expense of who
        # touches it, and then copied.
        self.overhead = Overhead(spec.OVERHEAD_MB + plan.memory_mb, spec.OVERHEAD_TASKS)

    @override
    def memory(self, plan: ShimPlan, held: AsyncExitStack) -> list[str]:
        return spec.file_memory(passed(self.template.memory, plan, held), is_shared=False)

    @override
    def beginning(self, plan: ShimPlan, held: AsyncExitStack) -> list[str]:
        # Of its own: whoever reads a descriptor moves all copies of it on.
        state = memory_file("state", self.template.state, held)
        os.lseek(state, 0, os.SEEK_SET)
        self._state = passed(state, plan, held)
        return spec.going_on(has_configuration=True)

    @property
    def is_held(self) -> bool:
        """Whether the VM ends with its maker until somebody claims it."""
        return self.plan.waits

    @override
    async def start(self, shim: StartingShim) -> None:
        try:
            async with deadline(self.parts.clone_s):
                await together([self._go_on(shim)])
        except LaunchError as error:
            # What a boot would meet with too says so by its code.
            if error.job_code is not JobCode.LAUNCH_FAILED:
                raise
            raise CloneError(error.message, error.detail) from error

    async def _go_on(self, shim: StartingShim) -> None:
        async with asyncio.TaskGroup() as group:
            starting = group.create_task(shim.start(is_held=self.is_held))
            group.create_task(self._loaded(starting))
        await self.settle_in(shim)

    async def settle_in(self, shim: StartingShim) -> None:
        """Give a guest that goes on what the template's had not."""

    async def _loaded(self, starting: asyncio.Task[None]) -> None:
        try:
            await self._load()
        except LaunchError:
            # An emulator that has ended is told of by its shim, and says why.
            await asyncio.wait([starting], timeout=_LAST_WORDS_S)
            if starting.done() and starting.exception() is not None:
                return
            raise

    async def _load(self) -> None:
        async with Monitor.of(self.run_directory, self.host.clock) as monitor:
            await monitor.load(self._state)

    @override
    async def create_disk(self) -> Path:
        return await self.host.disks.create_copy(self.plan.vm, self.template.disk)

    @override
    async def push_files(self, connection: ShimConnection) -> None:
        """They came with the template."""


def passed(descriptor: int, plan: ShimPlan, held: AsyncExitStack) -> int:
    """Have the emulator inherit a copy of a descriptor; return its number."""
    copy = os.dup(descriptor)
    held.callback(os.close, copy)
    plan.add_descriptor("pass", copy)
    return copy
