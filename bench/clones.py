"""The first half of P3 for an engine with templates: how much quicker a launch is than a boot.

All three are timed alike, from the launch until the agent has joined: a machine that boots, one that goes on from a template, and the first
of a size that nobody had before, for which a template is made.
"""

import asyncio
import itertools
import time
from pathlib import Path
from typing import Final
from unittest.mock import patch

from bench.engines import HELLO, Bare
from bench.measure import Subject, in_turn, raw, samples_table
from bench.session import Session
from magsd.engine.base import Plan
from magsd.engine.record import VmRecord
from magsd.engine.templates import Templates

BOOT: Final = "boot"
CLONE: Final = "from a template"
FIRST: Final = "first of its size: template made"
N: Final = 10
_LOOK_S: Final = 0.02
_KEPT_S: Final = 60.0


async def clones(session: Session) -> None:
    """Measure all three in turn; nothing for an engine without templates."""
    bare = await session.bare()
    if not bare.engine.capabilities.template:
        return
    version = await _version(bare)
    samples = await in_turn(
        {BOOT: _booting(bare), CLONE: _launching(bare)},
        session.options.samples(N),
        seldom={FIRST: _first_of_its_size(bare)},
    )
    report = session.report
    report.keep("engine_version", version)
    report.keep("clones_ms", raw(samples))
    report.show(samples_table("Launch to agent", list(samples.values()), f"{version}."))
    boot, clone = samples[BOOT], samples[CLONE]
    ratio = clone.median / boot.median
    if (most := report.limit("clone")) is not None:
        text = f"{ratio:.3f} x ({clone.median:.1f} to {boot.median:.1f} ms)"
        report.found("clone", text, f"{clone.n}, {boot.n}", is_met=ratio <= most)


async def _version(bare: Bare) -> str:
    async with bare.vm() as handle:
        record = VmRecord.read(handle.run_directory)
    if record is None:
        raise SystemExit("bench: a VM has no record")
    return record.engine_version


async def _launched(bare: Bare, plan: Plan) -> float:
    started = time.perf_counter()
    handle = await bare.engine.launch(plan)
    took_ms = (time.perf_counter() - started) * 1000
    await bare.end(handle)
    return took_ms


def _launching(bare: Bare) -> Subject:
    return lambda: _launched(bare, bare.plan())


def _booting(bare: Bare) -> Subject:
    async def none(*_: object) -> None:
        """There is no template: as where none can be had, the machine boots."""

    async def once() -> float:
        with patch.object(Templates, "cloned", none):
            return await _launched(bare, bare.plan())

    return once


def _first_of_its_size(bare: Bare) -> Subject:
    more_mb = itertools.count(1)

    async def once() -> float:
        there = _kept(bare.folder)
        took_ms = await _launched(bare, bare.plan(memory_mb=HELLO.memory_mb + next(more_mb)))
        # What is still written beside the launch must not be in the next sample.
        async with asyncio.timeout(_KEPT_S):
            while _kept(bare.folder) == there:
                await asyncio.sleep(_LOOK_S)
        return took_ms

    return once


def _kept(folder: Path) -> int:
    """Return how many templates have their files, whole."""
    places = (folder / "templates").glob("*/manifest.json")
    return sum(not place.parent.name.startswith(".") for place in places)
