"""How many submits and how many status polls a second the API takes.

The load comes from a process of its own and shares the machine with the
server; what the daemon itself used of a processor is said beside the rate.
"""

import asyncio
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

from bench.measure import Samples
from bench.server import Server
from bench.starts import client

SUBMITS = 300
POLLS = 10_000
CONNECTIONS = 8
DRAIN_S = 300.0


@dataclass(frozen=True)
class Rate:
    """One load and what became of it."""

    what: str
    per_s: float
    cpu_ms: float
    """Of the daemon, a request."""
    latencies: Samples
    refused: int

    def line(self) -> str:
        """Return a row of the table."""
        return (
            f"  {self.what:22} {self.per_s:>7.0f} /s  {self.latencies.median:>6.2f} ms  "
            f"{self.latencies.p99:>6.2f} ms {len(self.latencies.values_ms):>6}  "
            f"{self.cpu_ms:>6.2f} ms  {self.refused:>5}"
        )


HEADING = (
    f"  {'':22} {'rate':>10}  {'median':>9}  {'p99':>9} {'n':>6}  {'CPU each':>9}  {'other':>5}"
)


async def measure(server: Server) -> tuple[list[Rate], float]:
    """Return the rates, and the seconds until the last of the submitted jobs was over."""
    async with client(server) as http:
        done = await http.post("/mags-jobs", json={"script": "true"})
        job = done.json()["request_id"]
        await http.get(f"/mags-jobs/{job}/status", params={"wait": 60})
        finished, _ = await _load(server, "status, job over", job, POLLS)

        started = time.perf_counter()
        submits, jobs = await _load(server, "submit", "submit", SUBMITS)
        live = await http.post("/mags-jobs", json={"script": "sleep 600"})
        waiting, _ = await _load(
            server, "status, under load", live.json()["request_id"], POLLS // 4
        )
        await http.post(f"/mags-jobs/{live.json()['request_id']}/stop")
        async with asyncio.timeout(DRAIN_S):
            for each in jobs:
                status = {"status": "pending"}
                while status["status"] not in ("completed", "error"):
                    reply = await http.get(f"/mags-jobs/{each}/status", params={"wait": 60})
                    status = reply.json()
                if status["status"] != "completed":
                    raise SystemExit(f"bench: a job of the load ended with {status}")
        return [submits, finished, waiting], time.perf_counter() - started


async def _load(server: Server, title: str, what: str, count: int) -> tuple[Rate, list[str]]:
    arguments = ["-m", "bench.load", server.url, server.token, what, str(count), str(CONNECTIONS)]
    cpu_before = server.cpu_s()
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await process.communicate()
    cpu_s = server.cpu_s() - cpu_before
    if process.returncode != 0:
        raise SystemExit(f"bench: the load generator ended with {process.returncode}")
    result: dict[str, Any] = json.loads(printed)
    rate = Rate(
        title,
        result["count"] / result["seconds"],
        cpu_s / result["count"] * 1000,
        Samples(title, result["latencies_ms"]),
        result["refused"],
    )
    return rate, result["jobs"]
