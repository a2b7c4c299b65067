"""A gateway in front of VMs: real shims and agents, whose loopback is this machine's."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from magsd.gateway.ingress import Ingress
from magsd.gateway.ingress_settings import IngressSettings
from magsd.model.names import RequestId, VmId
from tests.integration.gateway.node import StandInLease, StandInNode
from tests.integration.shim_process import DEADLINE_S, ShimProcess, until

HOST = "app.apps.test"
GET = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
QUICK = IngressSettings(startup_s=0, drain_s=0.1)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class World:
    """The gateway, its node and its VMs; `async with open_world()`."""

    def __init__(self, stack: AsyncExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self.node = StandInNode()
        self.shims: list[ShimProcess] = []
        self.port = 0
        self.stop: Callable[[], Awaitable[None]]
        """End the gateway."""

    async def add_vm(self) -> StandInLease:
        """Start a VM."""
        name = VmId(f"vm-{len(self.shims) + 1}")
        folder = self._folder / name
        folder.mkdir()
        shim = await self._stack.enter_async_context(await ShimProcess.open(folder))
        self.shims.append(shim)
        too_late = asyncio.get_running_loop().call_later(
            4 * DEADLINE_S, os.kill, shim.pid, signal.SIGKILL
        )
        self._stack.callback(too_late.cancel)
        return StandInLease(name, 7, await shim.connect())

    async def serve(self, handler: Handler, host: str = HOST) -> int:
        """Publish a server that speaks as `handler` does, in a VM of its own; return its port."""
        port = await self.listen(handler)
        self.node.publish(host, port, await self.add_vm())
        return port

    async def listen(self, handler: Handler, port: int = 0) -> int:
        """Start a server that speaks as `handler` does; return its port."""

        async def handled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await handler(reader, writer)
            writer.close()

        server = await asyncio.start_server(handled, "127.0.0.1", port, backlog=2048)
        self._stack.callback(server.close)
        return int(server.sockets[0].getsockname()[1])

    def kill_vm(self, number: int = 0) -> None:
        """Have a VM end at once."""
        os.kill(self.shims[number].pid, signal.SIGKILL)

    async def publish(self, port: int, host: str = HOST) -> None:
        """Publish a port of this machine, as one of a VM of its own."""
        self.node.publish(host, port, await self.add_vm())

    async def start(self, settings: IngressSettings = QUICK) -> None:
        """Start the gateway."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.port = listener.getsockname()[1]
        gateway = Ingress(self.node, settings)
        serving = asyncio.create_task(gateway.serve(listener))

        async def stop() -> None:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving

        self.stop = stop
        self._stack.push_async_callback(stop)

    async def connect(
        self, limit: int = 1 << 22
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the gateway."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=limit)
        self._stack.callback(writer.close)
        return reader, writer

    async def say(self, data: bytes) -> bytes:
        """Send bytes on a connection of their own; return all that comes until its end."""
        reader, writer = await self.connect()
        writer.write(data)
        return await reader.read()

    async def no_lease(self) -> None:
        """Wait until no VM is in use."""
        await until(lambda: not any(self.node.held.values()))

    def leases(self, vm: str = "vm-1") -> int:
        return self.node.held[RequestId(f"job-{vm}")]


@asynccontextmanager
async def open_world(folder: Path) -> AsyncIterator[World]:
    async with asyncio.timeout(4 * DEADLINE_S), AsyncExitStack() as stack:
        world = World(stack, folder)
        yield world
        await world.no_lease()


async def read_head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def read_answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return an answer with a length: its head and its body."""
    head = await read_head(reader)
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    return head, await reader.readexactly(length)


def answering(body: bytes = b"hello") -> Handler:
    """Return a server that gives the same answer to each request without a body."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    return handler


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send each request's body back, framed as it came, while it comes."""
    while True:
        head = (await read_head(reader)).lower()
        if b"transfer-encoding: chunked" in head:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while int(size := await reader.readline(), 16):
                writer.write(size + await reader.readexactly(int(size, 16) + 2))
                await writer.drain()
            writer.write(size)
            while (line := await reader.readline()) != b"\r\n":
                writer.write(line)
            writer.write(line)
        else:
            found = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            left = int(found or 0)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % left)
            while left:
                data = await reader.read(min(left, 1 << 16))
                writer.write(data)
                await writer.drain()
                left -= len(data)
