"""How long a script takes from nothing to its end: through the API, on the engine alone, and plain.

*bare* is the engine through its shim, without API, database or daemon: a VM is
launched, its agent runs `echo hello` as a durable stream, the exit arrives.
The difference to *submit to completed* is what the platform adds.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from bench import engines
from bench.measure import Samples, in_turn
from bench.peers import PlainBundle
from bench.server import Server
from magsd.engine.base import Engine, Handle
from magsd.guest.shim import ShimConnection
from magsd.guest.wire import pack_fields

API = "submit to completed"
BARE = "bare launch to done"
PLAIN = "runsc run /bin/true"
IDLE_S = 30.0
PATH = "PATH=/usr/local/bin:/usr/bin:/bin"


@dataclass
class Starts:
    """The three subjects, each ending with its VM gone."""

    server: Server
    http: httpx.AsyncClient
    engine: Engine
    bare: engines.Bare
    plain: PlainBundle

    async def through_the_api(self) -> float:
        """Submit `echo hello`, and wait for `completed` by held requests."""
        started = time.perf_counter()
        reply = await self.http.post("/mags-jobs", json={"script": "echo hello"})
        job = reply.raise_for_status().json()["request_id"]
        status = {"status": "pending"}
        while status["status"] in ("pending", "running"):
            reply = await self.http.get(f"/mags-jobs/{job}/status", params={"wait": 60})
            status = reply.raise_for_status().json()
        took_ms = (time.perf_counter() - started) * 1000
        if status["status"] != "completed":
            raise SystemExit(f"bench: the job ended with {status}")
        # What is given back after the answer must not be in the next sample.
        deadline = time.monotonic() + IDLE_S
        while not self.server.is_idle() and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        return took_ms

    async def on_the_engine(self) -> float:
        """Launch a VM, run `echo hello`, have its exit."""
        plan = self.bare.plan(secrets.token_hex(4))
        started = time.perf_counter()
        handle = await self.engine.launch(plan)
        try:
            connection = await ShimConnection.open(handle.run_directory)
            try:
                await connection.open_durable(1, echo_hello(), 300)
                ended = await connection.exited(1)
            finally:
                await connection.aclose()
            took_ms = (time.perf_counter() - started) * 1000
        finally:
            await self._gone(handle)
        if ended.wait_status != 0:
            raise SystemExit(f"bench: echo ended with {ended}")
        return took_ms

    async def _gone(self, handle: Handle) -> None:
        await self.engine.stop(handle)
        self.bare.forget(handle)

    async def plainly(self) -> float:
        """`runsc run` of /bin/true."""
        return await self.plain.run_once(self.plain.describe("/bin/true"))


def echo_hello() -> bytes:
    """Return what an agent is asked."""
    fields = [("arg", "/bin/sh"), ("arg", "-c"), ("arg", "echo hello"), ("env", PATH)]
    return pack_fields("exec", fields)


@asynccontextmanager
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """Have one kept connection to the API."""
    async with httpx.AsyncClient(
        base_url=f"{server.url}/api/v1",
        headers={"Authorization": f"Bearer {server.token}"},
        timeout=120,
        trust_env=False,
    ) as http:
        yield http


async def measure(server: Server, bare: engines.Bare, plain: PlainBundle, n: int) -> list[Samples]:
    """Measure all three in turn."""
    async with client(server) as http:
        starts = Starts(server, http, bare.engine, bare, plain)
        return await in_turn(
            {
                PLAIN: starts.plainly,
                BARE: starts.on_the_engine,
                API: starts.through_the_api,
            },
            n,
        )
