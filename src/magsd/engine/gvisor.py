"""`GvisorEngine`: VMs as gVisor sandboxes, an application kernel for each.

Owns what the engine needs of the host. How one VM comes to be is
`gvisor_launch`'s part, what runsc is told `gvisor_spec`'s, all the rest
`shim_engine`'s.
"""

import functools
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from magsd.engine.base import Capabilities, Capture, Plan
from magsd.engine.gvisor_host import find_runsc, install_agent
from magsd.engine.gvisor_launch import GvisorLaunch, Parts
from magsd.engine.gvisor_still import held_by_freezer, upper_of
from magsd.engine.layers import Layers
from magsd.engine.moment import Hold
from magsd.engine.record import VmRecord
from magsd.engine.shim_engine import ShimEngine
from magsd.engine.vm_host import PROGRAMS, VmHost
from magsd.engine.vm_launch import Launched
from magsd.model.errors import LaunchError


@dataclass(frozen=True)
class GvisorSettings:
    """What an operator decides about the engine."""

    runsc: Path | None = None
    """None: the one in PATH."""
    agent_program: Path = PROGRAMS / "mags-agent"


class GvisorEngine(ShimEngine):
    """The Engine contract with gVisor."""

    has_guest_memory_watch = True

    def __init__(
        self, settings: GvisorSettings, host: VmHost, guest_files: Mapping[str, bytes]
    ) -> None:
        """`guest_files`: by path without a leading slash, shown inside where the image has one."""
        super().__init__(host)
        self._settings = settings
        self._guest_files = dict(guest_files)
        self._held = AsyncExitStack()
        self._parts: Parts

    @property
    @override
    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        return Capabilities(
            name="gvisor",
            isolation="application-kernel",
            suspend=False,
            live_fork=False,
            template=False,
            special_files_kept=False,
            max_vcpus=len(os.sched_getaffinity(0)),
            needs_root=True,
        )

    @override
    async def prepare(self) -> None:
        """Check runsc and the host, make the folders. Idempotent. Raises `LaunchError`."""
        if self._is_prepared:
            return
        self._host.check_root()
        runsc, version = await find_runsc(self._settings.runsc)
        try:
            agent = install_agent(self._settings.agent_program, self._host.directory / "guest")
        except OSError as error:
            raise LaunchError(
                f"the data directory cannot be used: {error.strerror}", str(error)
            ) from error
        await self._host.prepare()
        layers = Layers()
        self._held.push_async_callback(layers.aclose)
        self._parts = Parts(layers, runsc, version, agent, self._guest_files)
        self._is_prepared = True

    @override
    async def _launch(self, plan: Plan, directory: Path, undo: AsyncExitStack) -> Launched:
        return await GvisorLaunch(self._host, self._parts, plan, directory).run(undo)

    @override
    def _hold(self, record: VmRecord) -> Hold:
        return functools.partial(held_by_freezer, record)

    @override
    async def _read(self, disk: int, held: AsyncExitStack) -> Capture:
        return await upper_of(disk, held)

    @override
    async def aclose(self) -> None:
        """Let go of the layers; VMs live on and can be adopted. Idempotent."""
        self._is_prepared = False
        held, self._held = self._held, AsyncExitStack()
        await held.aclose()
