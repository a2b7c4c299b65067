"""What a daemon would hold, made again at will: the same for every engine.

A test of the contract asks the host for what differs between engines, and
names none.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from magsd.aio import SystemClock
from magsd.engine.base import Engine, Handle, Plan
from magsd.model.names import new_vm_id


class Host(ABC):
    """One data directory, and engines on it one after the other."""

    hog: str
    """A script that uses up memory."""
    bomb: str
    """A script that begins processes without end."""
    work: str
    """A script that takes processor time."""
    has_machine_id = True
    """The root has an `/etc/machine-id`, over which the guest's own can be shown."""
    is_linux = False
    """A guest's kernel is Linux: it ends what asks for too much, and goes on itself."""
    swept: str
    """What a sweep says that it found of a VM."""
    steps: tuple[str, ...]
    """Of a launch, in their order: where it may be cancelled."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.clock = SystemClock()

    @abstractmethod
    def engine(self, **settings: Any) -> AbstractAsyncContextManager[Engine]:
        """A prepared engine; leaving it leaves the VMs alone, as the end of a daemon does."""

    @abstractmethod
    async def open(self) -> None:
        """Make what an engine needs around it."""

    @abstractmethod
    async def aclose(self) -> None:
        """Take that away."""

    @abstractmethod
    def plan(self, **changes: Any) -> Plan:
        """What a VM is to be, as tests usually have it."""

    @abstractmethod
    def processors(self, vcpus: float) -> int:
        """How many processors a guest sees."""

    @abstractmethod
    async def lose_shim(self, handle: Handle) -> None:
        """End a VM's shim as a crash would."""

    @abstractmethod
    def has_reached(self, step: str, plan: Plan) -> bool:
        """Whether a launch has come to a step."""

    @abstractmethod
    def linger_at(self, step: str) -> None:
        """Have the next launch take its time at a step, where it would be too quick."""

    def _plan(self, image: str, layers: tuple[Path, ...], changes: dict[str, Any]) -> Plan:
        plan = Plan(
            vm=new_vm_id(),
            epoch=1,
            image=image,
            layers=layers,
            hostname="mags-conformance",
            vcpus=1.0,
            memory_mb=512,
            disk_gb=2,
            # So few that a test can use them up without a size of its own.
            pids_limit=150,
        )
        return replace(plan, **changes)

    def files(self, plan_or_handle: Plan | Handle) -> set[str]:
        """The names in a VM's run directory, without the many of the journal."""
        directory = self.data / "run" / plan_or_handle.vm
        if not directory.exists():
            return set()
        return {path.name for path in directory.iterdir() if not path.name.startswith("journal.")}
