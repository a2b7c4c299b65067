"""The API over one kept connection, with little work of its own: it is the server that is timed."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from bench.load import read_reply, request_of

_OVER: Final = ("completed", "error")


class Client:
    """One connection, opened again when the server has ended it; one request at a time."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._token = token
        self._hello = request_of(url, token, "POST", "/mags-jobs", body_of("echo hello"))
        self._opened: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def connect(self) -> None:
        """Open the connection, unless it is open. Every request does so."""
        if self._opened is not None and self._opened[0].at_eof():
            await self.aclose()
        if self._opened is None:
            address = urlsplit(self._url)
            self._opened = await asyncio.open_connection(address.hostname, address.port)

    async def request(self, method: str, path: str, body: bytes = b"") -> Any:
        """Return what a reply holds. Ends the bench when it is an error."""
        return await self._exchange(request_of(self._url, self._token, method, path, body))

    async def submit(self, script: str, **fields: Any) -> str:
        """Submit a script; return the job's id."""
        reply = await self.request("POST", "/mags-jobs", body_of(script, **fields))
        return str(reply["request_id"])

    async def status(self, job: str, wait_s: int = 60) -> dict[str, Any]:
        """Return what a job is once it is over, or after `wait_s`."""
        reply: dict[str, Any] = await self.request("GET", f"/mags-jobs/{job}/status?wait={wait_s}")
        return reply

    async def completed(self, job: str) -> None:
        """Wait until a job is over. Ends the bench when it did not complete."""
        status: dict[str, Any] = {"status": "pending"}
        while status["status"] not in _OVER:
            status = await self.status(job)
        if status["status"] != "completed":
            raise SystemExit(f"bench: a job ended with {status}")

    async def echo_hello(self) -> float:
        """Submit `echo hello` and wait until it has completed; return how many milliseconds."""
        started = time.perf_counter()
        job = (await self._exchange(self._hello))["request_id"]
        await self.completed(job)
        return (time.perf_counter() - started) * 1000

    async def _exchange(self, request: bytes) -> Any:
        await self.connect()
        assert self._opened is not None
        reader, writer = self._opened
        writer.write(request)
        status, body = await read_reply(reader)
        if status >= 300:
            raise SystemExit(f"bench: the server answered {status}: {body[:500]!r}")
        return json.loads(body)

    async def aclose(self) -> None:
        """End the connection. Idempotent."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened[1].close()
            await opened[1].wait_closed()


def body_of(script: str, **fields: Any) -> bytes:
    """Return the body of a submit."""
    return json.dumps({"script": script, **fields}).encode()


@asynccontextmanager
async def connected(url: str, token: str) -> AsyncIterator[Client]:
    """Have a connection inside the block."""
    client = Client(url, token)
    await client.connect()
    try:
        yield client
    finally:
        await client.aclose()
