"""A host for the engine `fake`: nothing but a data directory."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from magsd.engine.base import Handle, Plan
from magsd.engine.fake.engine import FakeEngine, FakeSettings
from magsd.engine.fake.faults import Fault, FaultPlan, Moment
from tests.conformance.host import Host
from tests.conformance.vm import shell_to_the_end

_LONG_S = 600.0


class FakeHost(Host):
    hog = "fake out_of_memory"
    bomb = "fake too_many_processes"
    work = "for i in $(seq 1 1000); do true; done"
    swept = "run directory, fake VM"
    steps = ("at once", "record", "engine")

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        data.mkdir()
        self.faults = FaultPlan()
        self.settings = FakeSettings(data, faults=self.faults)

    @override
    async def open(self) -> None:
        (self.data / "run").mkdir()

    @override
    @asynccontextmanager
    async def engine(self, **settings: Any) -> AsyncIterator[FakeEngine]:
        engine = FakeEngine(replace(self.settings, **settings), self.clock)
        try:
            await engine.prepare()
            yield engine
        finally:
            await engine.aclose()

    @override
    def plan(self, **changes: Any) -> Plan:
        return self._plan("standard", (), changes)

    @override
    def processors(self, vcpus: float) -> int:
        return -int(-vcpus // 1)

    @override
    async def lose_shim(self, handle: Handle) -> None:
        await shell_to_the_end(handle, "fake shim_died")

    @override
    def linger_at(self, step: str) -> None:
        moment = {"record": Moment.RECORDED, "engine": Moment.END}.get(step, Moment.BEGIN)
        self.faults.add("launch", Fault(_LONG_S, moment=moment))

    @override
    def has_reached(self, step: str, plan: Plan) -> bool:
        wanted = {"record": {"record.json"}, "engine": {"record.json", "sock", "state"}}
        return wanted.get(step, set()) <= self.files(plan)

    @override
    async def aclose(self) -> None:
        """There is nothing."""


def is_alive(pid: int) -> bool:
    """Whether a process lives."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def processes_of(data: Path) -> list[int]:
    """The processes that work in the folder of a data directory's run directories."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                place = os.readlink(path / "cwd")
            except OSError:
                continue
            if place == str(data / "run"):
                found.append(int(path.name))
    return found
