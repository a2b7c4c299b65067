"""P4: a hundred scripts at once, by the API and on the bare engine, in turn."""

import asyncio
import os
import time
from typing import Final

from bench.engines import Bare, exited
from bench.measure import in_turn, raw, samples_table
from bench.server import Server
from bench.session import Session
from magsd.engines import GVISOR, QEMU

JOBS: Final = 100
ROUNDS: Final = {GVISOR: 3, QEMU: 2}
"""By engine: microVMs take longer."""
API: Final = f"{JOBS} submitted at once"
BARE: Final = f"{JOBS} bare launches"
LAUNCHES_AT_ONCE: Final = 2 * (os.cpu_count() or 1)
"""As many as the daemon has under way by default."""
_CONNECTIONS: Final = 8


async def burst(session: Session) -> None:
    """Measure both in turn."""
    server, bare = session.server(), await session.bare()

    async def through_the_api() -> float:
        await server.at_rest()
        took_ms = await _submitted(session, server)
        await server.at_rest()
        return took_ms

    rounds = ROUNDS[session.engine]
    subjects = {BARE: lambda: _launched(bare), API: through_the_api}
    samples = await in_turn(subjects, rounds, warm_up=0)
    report = session.report
    report.keep("burst_ms", raw(samples))
    report.show(
        samples_table(f"{JOBS} scripts at once, until the last is over", [*samples.values()])
    )
    ratio = samples[API].median / samples[BARE].median
    report.found("burst", f"all completed, {ratio:.2f} x", rounds, is_met=ratio <= 1.3)


async def _submitted(session: Session, server: Server) -> float:
    """Submit all of them; return how long it took until the last had completed."""
    clients = [await session.client(server) for _ in range(_CONNECTIONS)]
    started = time.perf_counter()

    async def share(number: int) -> None:
        count = JOBS // _CONNECTIONS + (number < JOBS % _CONNECTIONS)
        jobs = [await clients[number].submit("echo hello") for _ in range(count)]
        for job in jobs:
            await clients[number].completed(job)

    async with asyncio.TaskGroup() as group:
        for number in range(_CONNECTIONS):
            group.create_task(share(number))
    return (time.perf_counter() - started) * 1000


async def _launched(bare: Bare) -> float:
    """Launch a VM for each, so many at once as the daemon does; return how long it took until
    the last script had ended. As there, a VM is given back beside those that begin."""
    turns = asyncio.Semaphore(LAUNCHES_AT_ONCE)
    ended_at = started = time.perf_counter()

    async def once() -> None:
        nonlocal ended_at
        async with turns:
            handle, connection = await bare.launched()
        await exited(connection)
        ended_at = max(ended_at, time.perf_counter())
        await connection.aclose()
        await bare.end(handle)

    async with asyncio.TaskGroup() as group:
        for _ in range(JOBS):
            group.create_task(once())
    return (ended_at - started) * 1000
