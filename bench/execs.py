"""P5: how long `true` takes in a VM that runs: by the API, over the agent's channel, by `runsc exec`."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from bench.client import Client
from bench.measure import Subject, in_turn, raw, samples_table
from bench.session import Session
from magsd.guest import streams
from magsd.guest.shim import ShimConnection

AGENT: Final = "agent: exec true"
API: Final = "API: exec true"
BARE: Final = "agent: exec sh -c true"
"""What the API does for the command `true`, without it."""
PLAIN: Final = "runsc exec true"
N: Final = 300
_CONTAINER: Final = "bench-exec"
_ENVIRONMENT: Final = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
_SHELL: Final = ["/bin/sh", "-c", "true"]


async def execs(session: Session) -> None:
    """Measure all in turn, each in a VM of its own."""
    bare, plain = await session.bare(), session.plain()
    client = await session.client(session.server())
    async with bare.vm() as handle, _api(client) as by_api:
        connection = await ShimConnection.open(handle.run_directory)

        async def over_the_channel() -> float:
            return await _exec(connection, ["/bin/true"])

        async def a_shell() -> float:
            return await _exec(connection, _SHELL)

        async def plainly() -> float:
            return await plain.exec_once(_CONTAINER, "/bin/true")

        subjects = {PLAIN: plainly, AGENT: over_the_channel, BARE: a_shell, API: by_api}
        try:
            with plain.running(_CONTAINER):
                samples = await in_turn(subjects, N)
        finally:
            await connection.aclose()
    report = session.report
    report.keep("execs_ms", raw(samples))
    report.show(samples_table("`true` in a VM that runs", list(samples.values())))
    ratio = samples[AGENT].median / samples[PLAIN].median
    text = f"{ratio:.2f} x (bare {samples[AGENT].short()})"
    report.found("exec_runsc", text, N, is_met=ratio <= 0.5)
    more_ms = samples[API].median - samples[BARE].median
    text = f"{more_ms:.1f} ms (API {samples[API].short()}, bare {samples[BARE].short()})"
    report.found("exec_bare", text, N, is_met=more_ms <= 3)


async def _exec(connection: ShimConnection, argv: list[str]) -> float:
    """Return how many milliseconds a command takes over a connection that is open."""
    started = time.perf_counter()
    result = await streams.run(connection, argv, environment=_ENVIRONMENT)
    took_ms = (time.perf_counter() - started) * 1000
    if result.wait_status != 0:
        raise SystemExit(f"bench: {argv} ended with {result}")
    return took_ms


@asynccontextmanager
async def _api(client: Client) -> AsyncIterator[Subject]:
    """Have a job whose VM stays, and what runs `true` in it by the API."""
    job = await client.submit("sleep infinity", persistent=True)
    status = {"status": "pending", "generation": -1}
    while status["status"] == "pending":
        path = f"/mags-jobs/{job}/status?wait=60&after={status['generation']}"
        status = await client.request("GET", path)
    body = json.dumps({"command": "true"}).encode()

    async def once() -> float:
        started = time.perf_counter()
        done = await client.request("POST", f"/mags-jobs/{job}/exec", body)
        took_ms = (time.perf_counter() - started) * 1000
        if done["exit_code"] != 0:
            raise SystemExit(f"bench: true ended with {done}")
        return took_ms

    try:
        yield once
    finally:
        await client.request("POST", f"/mags-jobs/{job}/stop")
