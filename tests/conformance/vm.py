"""What tests do with a VM of any engine: connect, run a script, wait for what must not hang."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from magsd.aio import Clock
from magsd.engine.base import Handle
from magsd.guest import identity, streams
from magsd.guest.journal import JournalReader
from magsd.guest.shim import ShimConnection, ShimError
from magsd.guest.wire import pack_fields

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
}


@asynccontextmanager
async def connected(handle: Handle) -> AsyncIterator[ShimConnection]:
    connection = await ShimConnection.open(handle.run_directory)
    try:
        yield connection
    finally:
        await connection.aclose()


async def introduced(handle: Handle, clock: Clock, hostname: str = "introduced") -> None:
    """Tell a VM who it is, as whoever launches one does first."""
    async with connected(handle) as connection:
        await identity.introduce(connection, hostname, clock.now())


async def shell(handle: Handle, script: str) -> streams.ExecResult:
    """Run a shell script in a VM."""
    async with connected(handle) as connection:
        argv = ["/bin/sh", "-c", script]
        return await streams.run(connection, argv, environment=ENVIRONMENT)


async def printed(handle: Handle, script: str) -> str:
    """Run a shell script that must succeed; return what it printed."""
    result = await shell(handle, script)
    assert result.wait_status == 0, (script, result)
    return result.stdout.decode()


async def shell_to_the_end(handle: Handle, script: str) -> None:
    """Run a shell script that ends its VM."""
    with contextlib.suppress(ShimError):
        await shell(handle, script)


def script(text: str, **environment: str) -> bytes:
    """What opens a durable stream that runs a shell script."""
    words = [("arg", "/bin/sh"), ("arg", "-c"), ("arg", text)]
    words += [("env", f"{k}={v}") for k, v in {**ENVIRONMENT, **environment}.items()]
    return pack_fields("exec", words)


async def begin(connection: ShimConnection, text: str) -> None:
    """Run a shell script as durable stream 1; return when it has printed something."""
    before = connection.journal_end
    await connection.open_durable(1, script(text))
    await connection.journal_grown(before)


def journaled(handle: Handle, channel: int = 1, stream: int = 1) -> bytes:
    """What a durable stream printed, from the journal; nothing in between may be missing."""
    reader, position, content = JournalReader(handle.run_directory), 0, bytearray()
    while True:
        records, position = reader.read(position)
        if not records:
            return bytes(content)
        for record in records:
            if (record.stream, record.channel, record.kind) == (stream, channel, 1):
                assert record.offset == len(content)
                content += record.payload


def record_of(handle: Handle) -> dict[str, Any]:
    return dict(json.loads((handle.run_directory / "record.json").read_text()))


async def eventually(check: Callable[[], Any], within_s: float = 20.0) -> Any:
    """Return the first true result of `check`; give way to others in between."""
    deadline = time.monotonic() + within_s
    while not (result := check()):
        assert time.monotonic() < deadline, f"not so within {within_s} s: {check}"
        await asyncio.sleep(0)
    return result


async def within(seconds: float, work: Awaitable[Any]) -> Any:
    """Return `await work`, or fail when it takes longer: for what must not hang."""
    async with asyncio.timeout(seconds):
        return await work
