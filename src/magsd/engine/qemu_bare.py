"""Machines that go on from a bare template: booted, and nothing mounted.

Owns what such a machine is given when it goes on. Its drives are placeholders
in the template, as many as a guest may have layers, and one to write to. For a
VM of a workspace, whose layers differ from run to run: a template of its own
would serve it alone. And for a machine that only reads a disk.
"""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from typing_extensions import override

from magsd.engine import qemu_spec as spec
from magsd.engine.base import Plan
from magsd.engine.launch_shim import StartingShim
from magsd.engine.qemu_launch import CloneLaunch, QemuLaunch, TemplateLaunch
from magsd.engine.qemu_sockets import listening
from magsd.engine.vm_launch import VmLaunch
from magsd.guest import streams
from magsd.guest.shim import ShimConnection, ShimError
from magsd.model.errors import JobCode, LaunchError

LAYERS_MAX: Final = 16
"""So many layers a guest may have: what fits beside the other devices."""


def is_bare(plan: Plan) -> bool:
    """Whether a VM goes on from a bare template: it has layers or a disk of its own, or no layers."""
    return not plan.layers or plan.own_layers > 0 or plan.has_disk


class BareTemplateLaunch(TemplateLaunch):
    """A launch of a machine that is to be saved with nothing mounted."""

    @override
    async def make_disk(self, undo: AsyncExitStack, held: AsyncExitStack) -> None:
        """It has none."""

    @override
    def descriptors(self, held: AsyncExitStack) -> spec.Descriptors:
        return spec.Descriptors(
            listening(self.run_directory, held), (None,) * LAYERS_MAX, None, None
        )

    @override
    async def furnish(self, shim: StartingShim) -> None:
        """There is nothing in it."""

    @override
    async def push_files(self, connection: ShimConnection) -> None:
        """There is no place for them."""


class BareLaunch(CloneLaunch):
    """A launch that goes on from a bare template, with layers and a disk of its own."""

    @override
    def descriptors(self, held: AsyncExitStack) -> spec.Descriptors:
        usual = super().descriptors(held)
        rest = (None,) * (LAYERS_MAX - len(usual.layers))
        return spec.Descriptors(usual.monitor, usual.layers + rest, usual.disk, usual.tap)

    @override
    async def settle_in(self, shim: StartingShim) -> None:
        await self.furnish(shim)

    @override
    def root_fields(self) -> dict[str, str | list[str]]:
        return spec.root_fields(self.plan, slots=LAYERS_MAX)

    @override
    async def create_disk(self) -> Path:
        return await VmLaunch.create_disk(self)

    @override
    async def push_files(self, connection: ShimConnection) -> None:
        await VmLaunch.push_files(self, connection)


class _Reader(QemuLaunch):
    """What a machine has that reads a disk which another guest has written."""

    @override
    async def make_disk(self, undo: AsyncExitStack, held: AsyncExitStack) -> None:
        """It is there."""

    @override
    def descriptors(self, held: AsyncExitStack) -> spec.Descriptors:
        monitor = listening(self.run_directory, held)
        return spec.Descriptors(monitor, (None,) * LAYERS_MAX, self.disk, None)

    @override
    async def furnish(self, shim: StartingShim) -> None:
        try:
            await streams.control(shim.connection, "disk", disk=spec.disk_device(LAYERS_MAX))
        except ShimError as error:
            text = "the disk of the sandbox cannot be read: its filesystem is damaged"
            raise LaunchError(text, repr(error), JobCode.IMAGE_DAMAGED) from error

    @override
    async def push_files(self, connection: ShimConnection) -> None:
        """There is no place for them."""


class ReaderCloneLaunch(_Reader, CloneLaunch):
    """A launch of such a machine that goes on from a bare template."""

    @override
    async def settle_in(self, shim: StartingShim) -> None:
        await self.furnish(shim)


class ReaderBootLaunch(_Reader):
    """A launch of such a machine that boots."""
