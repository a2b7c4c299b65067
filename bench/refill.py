"""How many VMs a second are made for the pool: fit for a script, and warm."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from bench.burst import LAUNCHES_AT_ONCE
from bench.engines import Bare, Waiting
from bench.measure import Samples
from bench.session import Session
from bench.table import Table

VMS: Final = 30
ROUNDS: Final = 3
FIT: Final = "launched and told who they are: fit for a script"
WARM: Final = "warmed and frozen too"


async def refill(session: Session) -> None:
    """Make so many of both, as many under way at once as the daemon has; then end them."""
    bare = await session.bare()
    # What the first needs, such as a template, is there then.
    await bare.let_go(await bare.waiting())
    samples = {FIT: Samples(FIT), WARM: Samples(WARM)}
    for _ in range(ROUNDS):
        samples[FIT].values_ms.append(await _made(bare, bare.held))
        samples[WARM].values_ms.append(await _made(bare, bare.waiting))
    report = session.report
    report.keep("refill_ms", {name: each.values_ms for name, each in samples.items()})
    columns = (f"{VMS} VMs", "median", "least", "most", "n")
    report.show(Table("VMs made for the pool", columns, [_row(each) for each in samples.values()]))
    rate = _rate(samples[FIT].median)
    if (least := report.limit("refill")) is not None:
        text = f"{rate:.1f} /s ({_rate(samples[WARM].median):.1f} /s warm)"
        report.found("refill", text, ROUNDS, is_met=rate >= least)


def _rate(took_ms: float) -> float:
    return VMS / took_ms * 1000


def _row(rounds: Samples) -> tuple[str, ...]:
    rates = [
        _rate(took_ms) for took_ms in (rounds.median, max(rounds.values_ms), min(rounds.values_ms))
    ]
    return (rounds.subject, *(f"{rate:.1f} /s" for rate in rates), str(len(rounds.values_ms)))


async def _made(bare: Bare, make: Callable[[], Awaitable[Waiting]]) -> float:
    """Return how many milliseconds it took until the last was there."""
    turns = asyncio.Semaphore(LAUNCHES_AT_ONCE)
    made: list[Waiting] = []

    async def once() -> None:
        async with turns:
            made.append(await make())

    started = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(VMS):
                group.create_task(once())
        return (time.perf_counter() - started) * 1000
    finally:
        for vm in made:
            await bare.let_go(vm)
