"""A network between daemon and PostgreSQL that loses the answer to a commit, or the commit."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg.conninfo import conninfo_to_dict

from tests.postgres import QUOTED_PASSWORD, USER

BEFORE = "before the server has it"
AFTER = "after the server did it"
_COMMIT = b"COMMIT\0"


class Proxy:
    """Passes everything on, but for the next commit, if `cut` says so."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self.cut: str | None = None
        self.refuses = False
        """Let in no connection once a commit was cut."""
        self._is_refusing = False

    def heal(self) -> None:
        """Let connections in again."""
        self.refuses = self._is_refusing = False

    async def connected(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        if self._is_refusing:
            back.close()
            return
        answers, server = await asyncio.open_connection("127.0.0.1", self._server_port)
        is_deaf = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                upward = group.create_task(self._upward(client, server, is_deaf))
                group.create_task(self._downward(answers, back, is_deaf))
                await upward
                server.close()
        except OSError:
            pass  # Either side may end it as it likes.
        finally:
            server.close()
            back.close()

    async def _upward(
        self, client: asyncio.StreamReader, server: asyncio.StreamWriter, is_deaf: asyncio.Event
    ) -> None:
        while data := await client.read(65536):
            if self.cut is None or _COMMIT not in data:
                server.write(data)
                await server.drain()
                continue
            cut, self.cut = self.cut, None
            self._is_refusing = self.refuses
            if cut == AFTER:
                is_deaf.set()
                server.write(data)
                await server.drain()
            return

    @staticmethod
    async def _downward(
        answers: asyncio.StreamReader, back: asyncio.StreamWriter, is_deaf: asyncio.Event
    ) -> None:
        while (data := await answers.read(65536)) and not is_deaf.is_set():
            back.write(data)
            await back.drain()
        back.close()


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """Yield a proxy before the server of `url`, and the URL of the way through it."""
    place = conninfo_to_dict(url)
    proxy = Proxy(int(place["port"]))
    server = await asyncio.start_server(proxy.connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    # Encrypted, a commit could not be seen.
    options = "sslmode=disable&gssencmode=disable"
    try:
        yield (
            proxy,
            f"postgresql://{USER}:{QUOTED_PASSWORD}@127.0.0.1:{port}/{place['dbname']}?{options}",
        )
    finally:
        server.close()
        await server.wait_closed()
