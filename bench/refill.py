"""How many VMs a second are made for the pool: launched, told who they are, warmed and frozen."""

import asyncio
import time
from typing import Final

from bench.burst import LAUNCHES_AT_ONCE
from bench.engines import Bare, Waiting
from bench.measure import Samples
from bench.session import Session
from bench.table import Table

VMS: Final = 30
ROUNDS: Final = 3


async def refill(session: Session) -> None:
    """Make so many of them, as many under way at once as the daemon has; then end them."""
    bare = await session.bare()
    # What the first needs, such as a template, is there then.
    await bare.let_go(await bare.waiting())
    rounds = Samples(f"{VMS} VMs", [await _made(bare) for _ in range(ROUNDS)])
    rates = [VMS / took_ms * 1000 for took_ms in rounds.values_ms]
    rate = VMS / rounds.median * 1000
    report = session.report
    report.keep("refill_ms", rounds.values_ms)
    row = (rounds.subject, f"{rate:.1f} /s", f"{min(rates):.1f} /s", f"{max(rates):.1f} /s")
    columns = ("", "median", "least", "most", "n")
    report.show(Table("VMs made for the pool", columns, [(*row, str(ROUNDS))]))
    if (least := report.limit("refill")) is not None:
        report.found("refill", f"{rate:.1f} /s", ROUNDS, is_met=rate >= least)


async def _made(bare: Bare) -> float:
    """Return how many milliseconds it took until the last waited."""
    turns = asyncio.Semaphore(LAUNCHES_AT_ONCE)
    made: list[Waiting] = []

    async def once() -> None:
        async with turns:
            made.append(await bare.waiting())

    started = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(VMS):
                group.create_task(once())
        return (time.perf_counter() - started) * 1000
    finally:
        for vm in made:
            await bare.let_go(vm)
