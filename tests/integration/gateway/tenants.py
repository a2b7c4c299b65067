"""Two tenants and a mixture of requests: every answer must be of the VM that was asked."""

import asyncio
import os
import random
import ssl
from itertools import count

from tests.integration.gateway.world import Handler, read_head

NAMES = (b"red", b"blue")
REQUESTS = 10_000 if os.environ.get("MAGS_TEST_FULL") == "1" else 2_000
CLIENTS = 20


def tenant(name: bytes) -> Handler:
    """Return a server that says who it is, and what it was asked for, in each of several ways."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for turn in count():
            head = await read_head(reader)
            method, target = head.split(b" ", 2)[:2]
            body = await _body(reader, head.lower())
            said = b"%b %b %b " % (name, method, target) + body
            writer.write(_answer(turn, method, said))
            if turn % 7 == 6:
                return

    return handler


def _answer(turn: int, method: bytes, said: bytes) -> bytes:
    closing = b"Connection: close\r\n" if turn % 7 == 6 else b""
    start = b"HTTP/1.1 200 OK\r\nX-Said: %b\r\n" % said[:60].replace(b"\r", b"").replace(b"\n", b"")
    if turn % 2:
        half = len(said) // 2
        chunks = [part for part in (said[:half], said[half:]) if part]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in chunks) + b"0\r\n\r\n"
        head = start + closing + b"Transfer-Encoding: chunked\r\n\r\n"
        return head if method == b"HEAD" else head + framed
    head = start + closing + b"Content-Length: %d\r\n\r\n" % len(said)
    return head if method == b"HEAD" else head + said


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if b"transfer-encoding: chunked" in head:
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readline()
        return body
    length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
    return await reader.readexactly(int(length or 0))


class Visitor:
    """A client that keeps a connection and asks this tenant and that."""

    def __init__(self, port: int, seed: int, tls: ssl.SSLContext | None, host: str | None) -> None:
        self._port = port
        self._random = random.Random(seed)
        self._tls = tls
        self._host = host
        """The only one that is asked for, where a connection is for one."""
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, number: int) -> None:
        """Send a request and check the answer."""
        name = self._random.choice(NAMES)
        if self._host is not None:
            name = self._host.encode().partition(b".")[0]
        method = self._random.choice([b"GET", b"GET", b"HEAD", b"POST", b"PUT", b"DELETE"])
        target = b"/%d" % number
        body = self._random.randbytes(self._random.choice([0, 1, 10, 5000])).hex().encode()
        request = b"%b %b HTTP/1.1\r\nHost: %b.apps.test\r\n" % (method, target, name)
        if method not in (b"POST", b"PUT"):
            body = b""
            request += b"\r\n"
        elif self._random.random() < 0.5 and body:
            request += b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
                len(body),
                body,
            )
        else:
            request += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        reader, writer = await self._connected()
        writer.write(request)
        head = await read_head(reader)
        assert head.startswith(b"HTTP/1.1 200 "), head
        wanted = b"%b %b %b " % (name, method, target)
        assert b"X-Said: " + wanted.strip() in head, (wanted, head)
        if method != b"HEAD":
            assert await _body(reader, head.lower()) == wanted + body
        if b"connection: close" in head.lower():
            await self.aclose()

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None:
            name = (self._host or "red.apps.test") if self._tls else None
            self._reader, self._writer = await asyncio.open_connection(
                "127.0.0.1", self._port, ssl=self._tls, server_hostname=name
            )
        return self._reader, self._writer

    async def aclose(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


async def visit(
    port: int, tls: ssl.SSLContext | None = None, *, is_one_host_each: bool = False
) -> None:
    """Have several clients ask, `REQUESTS` times in all."""

    async def be(number: int) -> None:
        host = f"{NAMES[number % 2].decode()}.apps.test" if is_one_host_each else None
        visitor = Visitor(port, number, tls, host)
        try:
            for turn in range(REQUESTS // CLIENTS):
                await visitor.ask(number * REQUESTS + turn)
        finally:
            await visitor.aclose()

    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(be(number))
