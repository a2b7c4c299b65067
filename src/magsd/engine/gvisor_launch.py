"""One launch with gVisor: its root filesystem on the host, its bundle, its processors.

What every engine does is `vm_launch`, what runsc is told `gvisor_spec`.
"""

import itertools
import os
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from typing_extensions import override

from magsd.engine import gvisor_spec as spec
from magsd.engine.base import Plan
from magsd.engine.launch_shim import ShimPlan, StartingShim, memory_file
from magsd.engine.layers import Layers
from magsd.engine.places import AGENT_PLACES
from magsd.engine.vm_host import VmHost
from magsd.engine.vm_launch import Overhead, VmLaunch

_CPU_TURN: Final = itertools.count()


@dataclass(frozen=True)
class Parts:
    """What all launches with gVisor share."""

    layers: Layers
    runsc: Path
    runsc_version: str
    agent_directory: Path
    guest_files: Mapping[str, bytes]


class GvisorLaunch(VmLaunch):
    """A launch by `runsc run`."""

    engine = "gvisor"
    overhead = Overhead(spec.OVERHEAD_MB, spec.OVERHEAD_TASKS)

    def __init__(self, host: VmHost, parts: Parts, plan: Plan, run_directory: Path) -> None:
        super().__init__(
            host,
            plan,
            run_directory,
            version=parts.runsc_version,
            guest_files=parts.guest_files,
        )
        self._parts = parts
        self._layers: dict[int, int] = {}
        self._meminfo = -1

    @override
    def steps(self, undo: AsyncExitStack, held: AsyncExitStack) -> list[Coroutine[Any, Any, None]]:
        layers = (
            self._clone_layer(number, path, held) for number, path in enumerate(self.plan.layers)
        )
        return [*super().steps(undo, held), self._clone_meminfo(held), *layers]

    async def _clone_layer(self, number: int, path: Path, held: AsyncExitStack) -> None:
        self._layers[number] = await self._parts.layers.clone(path)
        held.callback(os.close, self._layers[number])

    async def _clone_meminfo(self, held: AsyncExitStack) -> None:
        self._meminfo = await self._parts.layers.clone_file(spec.meminfo(self.plan))
        held.callback(os.close, self._meminfo)

    @override
    def add_engine(self, plan: ShimPlan, held: AsyncExitStack) -> None:
        # runsc takes a namespace where this can be read for the host's own and
        # refuses to run; since Linux 6.11 it can be read in all. google/gvisor#10704.
        plan.add("hide", "/proc/sys/net")
        plan.add_descriptor("layer", self._meminfo, "/proc/meminfo")
        places = [spec.layer_place(number) for number in self._layers]
        plan.add_each("mkdir", [spec.ROOT, spec.DISK, spec.BUNDLE, spec.STATE, *places])
        plan.add("mkdir", spec.PLACES)
        plan.add_each("mkdir", [f"{spec.PLACES}/{place}" for place in AGENT_PLACES])
        places_agent = spec.Places(self.run_directory, self._parts.agent_directory)
        config = memory_file("config", spec.config(self.plan, places_agent), held)
        plan.add_descriptor("copy", config, f"600:{spec.BUNDLE}/config.json")
        for number, descriptor in self._layers.items():
            plan.add_descriptor("layer", descriptor, spec.layer_place(number))
        plan.add_descriptor("disk", self.disk, spec.DISK)
        plan.add_each("mkdir", [spec.UPPER, spec.WORK])
        plan.add("overlay", spec.overlay(self.plan))
        plan.add_each("arg", spec.command(self._parts.runsc, self.plan))
        plan.add_each("engine_failed", spec.FAILED_STATUSES)

    @override
    async def start(self, shim: StartingShim) -> None:
        """Run the engine, on as many CPUs as the guest is to see.

        The sentry counts the CPUs it may use, once, when it begins. After
        that its threads go where the scheduler wants; the quota is what limits.
        """
        everywhere = os.sched_getaffinity(0)
        os.sched_setaffinity(shim.process.pid, _some(everywhere, spec.cpu_count(self.plan)))
        await shim.start(is_held=self.plan.waits)
        os.sched_setaffinity(shim.process.pid, everywhere)
        self.cgroup.spread(everywhere)


def _some(cpus: set[int], count: int) -> set[int]:
    """Return `count` of `cpus`, others each time."""
    ordered = sorted(cpus)
    first = next(_CPU_TURN)
    return {ordered[(first + i) % len(ordered)] for i in range(min(count, len(ordered)))}
