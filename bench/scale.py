"""P12: one node with thousands of VMs, on the engine that only pretends them.

It is the daemon that is measured: its tables, its event loop, its database and
its connections, with as many live VMs as no machine of this size could run.
"""

import asyncio
import os
import resource
import signal
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from bench.client import Client, connected
from bench.measure import Samples, raw, samples_table
from bench.rates import submit_many
from bench.server import Server, serving
from bench.session import POOL_MIN, Session
from bench.table import Table
from magsd.engine.fake.engine import NAME as FAKE
from magsd.engine.process import Detached
from magsd.engine.record import VmRecord

LEVELS: Final = (0, 1_000, 5_000)
MOST: Final = 10_000
CLAIMS: Final = 200
_WARM_UP: Final = 5
_SETTINGS: Final = {
    "MAGSD_VMS_MAX": str(MOST + 1000),
    "MAGSD_QUEUE_MAX": str(2 * MOST),
    "MAGSD_CPU_OVERCOMMIT": "100000",
    "MAGSD_MEMORY_OVERCOMMIT": "100000",
    "MAGSD_DISK_OVERCOMMIT": "100000",
}
_FILES_EACH: Final = 2
"""The process that pretends the VMs has two files open for each: a socket, and a connection."""
_OTHER_FILES: Final = 400
_LIVE_S: Final = 7200
_RISE_S: Final = 300.0
_ADOPT_S: Final = 60.0
_SETTLE_S: Final = 15.0
_LOOK_S: Final = 0.05


async def scale(session: Session) -> None:
    """Measure claims with ever more VMs alive; then restart the daemon."""
    most = min(MOST, (_files() - _OTHER_FILES) // _FILES_EACH)
    if most < MOST:
        session.report.of(FAKE).say(
            f"{most} VMs instead of {MOST}: no more files may be open here.\n"
        )
    folder = session.folder / "scale"
    try:
        with _served(folder):
            pass  # The directory is made, so that the next start is like that after it.
        levels = [level for level in LEVELS if level < most]
        empty_s = await _claims(session, folder, [*levels, most])
        await _restart(session, folder, most, empty_s)
    finally:
        await _end_host(folder)


async def _claims(session: Session, folder: Path, levels: Sequence[int]) -> float:
    """Measure claims at each level; return how many seconds the server took to be ready."""
    samples: dict[str, Samples] = {}
    rises: list[tuple[str, ...]] = []
    began = time.perf_counter()
    with _served(folder) as server:
        empty_s = time.perf_counter() - began
        async with connected(server.url, server.token) as client:
            alive = 0
            for level in levels:
                cpu_before, began = server.cpu_s(), time.perf_counter()
                await _rise(server, client, alive, level)
                took_s = time.perf_counter() - began
                if level:
                    rises.append(_row(server, alive, level, took_s, server.cpu_s() - cpu_before))
                alive = level
                subject = f"{level} VMs alive"
                samples[subject] = await _measured(server, client, subject, level)
    report = session.report.of(FAKE)
    report.keep("scale_ms", raw(samples))
    title = "A script in a VM that waits, submit to completed"
    report.show(samples_table(title, list(samples.values())))
    columns = ("VMs alive", "submitted to running", "CPU each", "daemon")
    report.show(Table("More VMs", columns, rises))
    first, *_, last = samples.values()
    ratio = last.p99 / first.p99
    text = f"{levels[-1]}: {ratio:.2f} x ({first.p99:.1f} to {last.p99:.1f} ms; "
    text += f"p50 {first.median:.1f} to {last.median:.1f})"
    report.found("scale_claims", text, CLAIMS, is_met=ratio <= 1.5)
    return empty_s


def _row(server: Server, alive: int, level: int, took_s: float, cpu_s: float) -> tuple[str, ...]:
    more = level - alive
    return (
        f"{alive} to {level}",
        f"{more / took_s:.0f} /s",
        f"{cpu_s / more * 1000:.2f} ms",
        f"{server.memory_mb():.0f} MB",
    )


async def _rise(server: Server, client: Client, alive: int, level: int) -> None:
    """Return when so many jobs run."""
    if level == alive:
        return
    # Longer than all of this takes.
    script = f"sleep {_LIVE_S}"
    await submit_many(server, level - alive, script, timeout=2 * _LIVE_S)
    async with asyncio.timeout(_RISE_S):
        while await _running(client) < level:
            await asyncio.sleep(_LOOK_S)


async def _running(client: Client) -> int:
    found = await client.request("GET", "/mags-jobs?status=running&page_size=1")
    return int(found["total"])


async def _measured(server: Server, client: Client, subject: str, alive: int) -> Samples:
    samples = Samples(subject)
    for turn in range(-_WARM_UP, CLAIMS):
        await server.at_rest(alive)
        took_ms = await client.echo_hello()
        if turn >= 0:
            samples.values_ms.append(took_ms)
    return samples


async def _restart(session: Session, folder: Path, alive: int, empty_s: float) -> None:
    """Serve the directory again: until it is ready, and until it is connected to every VM.

    What a start takes without any, `empty_s`, is no part of the adoption.
    """
    began = time.perf_counter()
    with _served(folder) as server:
        ready_s, connections = time.perf_counter() - began, 0
        while (adopted_s := time.perf_counter() - began) < _ADOPT_S:
            if (connections := len(os.listdir(f"/proc/{server.pid}/fd"))) >= alive:
                break
            await asyncio.sleep(_LOOK_S)
        cpu_s = server.cpu_s()
        async with connected(server.url, server.token) as client:
            first_ms = await client.echo_hello()
            # What an adoption breaks shows only when its deadlines have passed.
            await asyncio.sleep(_SETTLE_S)
            running = await _running(client)
    report = session.report.of(FAKE)
    kept = {"ready_s": ready_s, "adopted_s": adopted_s, "empty_s": empty_s, "cpu_s": cpu_s}
    report.keep("scale_restart", {**kept, "running": running, "first_ms": first_ms})
    text = (
        f"{adopted_s - empty_s:.1f} s (ready {ready_s:.1f}, all {adopted_s:.1f}, with none "
        f"{empty_s:.1f} s after exec; CPU {cpu_s:.1f} s; {running} run on after {_SETTLE_S:.0f} s; first job {first_ms:.0f} ms)"
    )
    if connections < alive:
        text = f"{connections} open files after {_ADOPT_S:.0f} s; {text}"
    is_met = adopted_s - empty_s <= 2 and connections >= alive and running >= alive
    report.found("scale_restart", text, 1, is_met=is_met)


def _served(folder: Path) -> AbstractContextManager[Server]:
    return serving(folder, pool_min=POOL_MIN, engine=FAKE, settings=_SETTINGS)


def _files() -> int:
    """Let the servers have as many files open as may be; return how many that is."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


async def _end_host(folder: Path) -> None:
    """End the process that pretends the VMs: as a shim does, it outlives the daemon."""
    for record in map(VmRecord.read, (folder / "data/run").iterdir()):
        if record is None:
            continue
        host = Detached.find(record.shim_pid, record.shim_start_time)
        if host is not None:
            host.send_signal(signal.SIGKILL)
            await host.wait()
            host.close()
        return
