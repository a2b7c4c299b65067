"""The first half of P3: how often a job finds a VM that waits, at one job a second."""

import asyncio
import statistics
import time
from typing import Final

from bench.measure import Samples, samples_table
from bench.session import Session

JOBS: Final = 60
EVERY_S: Final = 1.0
_ASKED: Final = "mags_pool_requests_total"


async def hits(session: Session) -> None:
    """Submit a job every second, whether or not those before are over; count the hits."""
    server = session.server()
    await server.at_rest()
    before = server.scrape()
    clients = [await session.client(server) for _ in range(4)]
    idle: asyncio.Queue[int] = asyncio.Queue()
    for number in range(len(clients)):
        idle.put_nowait(number)
    samples = Samples("submit to completed")

    async def one() -> None:
        number = await idle.get()
        try:
            samples.values_ms.append(await clients[number].echo_hello())
        finally:
            idle.put_nowait(number)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for turn in range(JOBS):
            await asyncio.sleep(max(0.0, started + turn * EVERY_S - time.perf_counter()))
            group.create_task(one())
    after = server.scrape()
    report = session.report
    report.keep("one_a_second_ms", samples.values_ms)
    report.show(samples_table("One job a second", [samples], _shares(samples)))
    hit, missed = (
        after.total(_ASKED, result=result) - before.total(_ASKED, result=result)
        for result in ("hit", "miss")
    )
    if hit + missed != JOBS:
        report.lacks("hits", f"{_ASKED} counted {hit + missed:.0f} of {JOBS} jobs")
        return
    report.found("hits", f"{hit / JOBS:.1%}", JOBS, is_met=missed == 0)


def _shares(samples: Samples) -> str:
    quarters = statistics.quantiles(samples.values_ms, n=4)
    return f"Quartiles: {', '.join(f'{value:.1f} ms' for value in quarters)}."
