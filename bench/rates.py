"""P6: how many submits and how many status polls a second the API takes.

The load comes from a process of its own and shares the machine with the
server and its sandboxes; what the daemon itself used of a processor is said
beside the rate.
"""

import asyncio
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bench.measure import Samples
from bench.server import Server
from bench.session import Session
from bench.table import Table

SUBMITS: Final = 300
POLLS: Final = 10_000
_CONNECTIONS: Final = 8
_DRAIN_S: Final = 300.0
_SUBMIT: Final = "submit"
_TRUE: Final = {"script": "true", "type": "inline", "persistent": False}


@dataclass(frozen=True)
class Rate:
    """One load and what became of it."""

    what: str
    per_s: float
    cpu_ms: float
    """Of the daemon, a request."""
    latencies: Samples
    refused: int
    jobs: tuple[str, ...]
    """The ids of what was submitted."""

    @property
    def per_core(self) -> float:
        """How many a second one core of the daemon would do."""
        return 1000 / self.cpu_ms if self.cpu_ms else 0.0

    def row(self) -> tuple[str, ...]:
        """Return a row of the table."""
        return (
            self.what,
            f"{self.per_s:.0f} /s",
            f"{self.latencies.median:.2f} ms",
            f"{self.latencies.p99:.2f} ms",
            str(self.latencies.n),
            f"{self.cpu_ms:.2f} ms",
            f"{self.per_core:.0f} /s",
            str(self.refused),
        )


async def rates(session: Session) -> None:
    """Measure polls of a job that is over, submits, and polls of a live job meanwhile."""
    server = session.server()
    client = await session.client(server)
    over = await client.submit("true")
    await client.completed(over)
    finished = await load(server, "status, job over", over, POLLS)
    live = await client.submit("sleep 600")
    quiet = await load(server, "status, live job", live, POLLS)

    started = time.perf_counter()
    submits = await load(server, "submit", _SUBMIT, SUBMITS)
    busy = await load(server, "status, live job, under load", live, POLLS // 4)
    async with asyncio.timeout(_DRAIN_S):
        for job in submits.jobs:
            await client.completed(job)
    drained_s = time.perf_counter() - started
    await client.request("POST", f"/mags-jobs/{live}/stop")

    report = session.report
    measured = [submits, finished, quiet, busy]
    report.keep("rates", [_kept(rate) for rate in measured])
    report.keep("drained_s", drained_s)
    columns = ("", "rate", "median", "p99", "n", "CPU each", "a core", "refused")
    note = (
        f"{SUBMITS} jobs submitted together were over after {drained_s:.1f} s: "
        f"{SUBMITS / drained_s:.1f} a second."
    )
    report.show(Table("The API", columns, [rate.row() for rate in measured], note))
    is_all = submits.refused == 0
    report.found(
        "submits", f"{submits.per_s:.0f} /s", SUBMITS, is_met=submits.per_s >= 300 and is_all
    )
    report.found(
        "polls",
        f"{quiet.per_core:.0f} /s live, {finished.per_core:.0f} /s over",
        POLLS,
        is_met=min(quiet.per_core, finished.per_core) >= 2000,
    )


async def load(
    server: Server, title: str, what: str, count: int, body: Mapping[str, Any] = _TRUE
) -> Rate:
    """Send `count` requests: submits of `body`, or polls of the job `what`."""
    sent = json.dumps(body)
    arguments = [server.url, server.token, what, str(count), str(_CONNECTIONS), sent]
    cpu_before = server.cpu_s()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.load", *arguments, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    cpu_s = server.cpu_s() - cpu_before
    if process.returncode != 0:
        raise SystemExit(f"bench: the load generator ended with {process.returncode}")
    result: dict[str, Any] = json.loads(printed)
    return Rate(
        title,
        result["count"] / result["seconds"],
        cpu_s / result["count"] * 1000,
        Samples(title, result["latencies_ms"]),
        result["refused"],
        tuple(result["jobs"]),
    )


async def submit_many(server: Server, count: int, script: str, **fields: Any) -> Rate:
    """Submit `script` so many times, from another process. Ends the bench when one is refused."""
    rate = await load(server, script, _SUBMIT, count, {"script": script, **fields})
    if rate.refused:
        raise SystemExit(f"bench: {rate.refused} of {count} submits were refused")
    return rate


def _kept(rate: Rate) -> dict[str, Any]:
    return {
        "what": rate.what,
        "per_s": rate.per_s,
        "cpu_ms": rate.cpu_ms,
        "latencies_ms": rate.latencies.values_ms,
        "refused": rate.refused,
    }
