"""A way to an S3 server that fails when it is told to."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

OPEN, AWAY, BUSY, FULL, SLOW = "open", "away", "busy", "full", "slow"
_ANSWER = b"HTTP/1.1 %s\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_ANSWERS = {BUSY: _ANSWER % b"503 Slow Down", FULL: _ANSWER % b"507 Insufficient Storage"}
_SLOW_S = 0.3


class Way:
    """Passes everything on while it is open, or slow; else ends connections, or answers 503, or
    507 to whatever is to be put."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self.state = OPEN
        self.refused = 0
        """How often something was not passed on."""

    async def connected(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        answers, server = await asyncio.open_connection("127.0.0.1", self._server_port)
        try:
            with suppress(ConnectionError):
                async with asyncio.TaskGroup() as group:
                    downward = group.create_task(self._pass(answers, back))
                    await self._upward(client, server, back)
                    downward.cancel()
        except* OSError:
            pass  # Either side may end it as it likes.
        finally:
            server.close()
            back.close()

    async def _upward(
        self,
        client: asyncio.StreamReader,
        server: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
    ) -> None:
        while data := await client.read(65536):
            if self.state == SLOW:
                await asyncio.sleep(_SLOW_S)
            elif self._refuses(data):
                self.refused += 1
                if (answer := _ANSWERS.get(self.state)) is not None:
                    back.write(answer)
                    await back.drain()
                return
            server.write(data)
            await server.drain()

    def _refuses(self, data: bytes) -> bool:
        if self.state == FULL:
            return data.startswith((b"PUT ", b"POST "))
        return self.state != OPEN

    @staticmethod
    async def _pass(answers: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        while data := await answers.read(65536):
            back.write(data)
            await back.drain()


@asynccontextmanager
async def way_to(port: int) -> AsyncIterator[tuple[Way, str]]:
    """Yield a way to a server on this machine, and the URL to go by."""
    way = Way(port)
    server = await asyncio.start_server(way.connected, "127.0.0.1", 0)
    own_port = server.sockets[0].getsockname()[1]
    try:
        yield way, f"http://127.0.0.1:{own_port}"
    finally:
        server.close()
        await server.wait_closed()
