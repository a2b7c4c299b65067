"""What the parts with one engine share: servers, the bare engine, a plain bundle, made when asked for.

All of it ends with the session, in the opposite order.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import engines
from bench.client import Client, connected
from bench.engines import Bare
from bench.peers import PlainBundle
from bench.report import Report
from bench.server import SERVE, Server, serving
from magsd.engines import GVISOR, QEMU
from magsd.storage.images import Image, ImageStore

POOL_MIN: Final = 2
_FIRST_NETS: Final = {GVISOR: 250, QEMU: 246}
"""Of the slot networks of an engine's servers, by their third number: there are four each."""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    n: int | None
    """Samples of each start; None: what each part thinks fit."""
    idle_minutes: float

    def samples(self, usual: int) -> int:
        """Return how many samples to take where `usual` are taken unless asked otherwise."""
        return usual if self.n is None else self.n


class Session:
    """What is measured with one engine in a run of the bench."""

    def __init__(
        self, folder: Path, engine: str, options: Options, report: Report, stack: AsyncExitStack
    ) -> None:
        self.folder = folder
        self.engine = engine
        self.options = options
        self.report = report.of(engine)
        self._stack = stack
        self._server: Server | None = None
        self._poolless: Server | None = None
        self._bare: Bare | None = None
        self._plain: PlainBundle | None = None

    def server(self) -> Server:
        """Return a server as it is by default."""
        if self._server is None:
            folder = self.folder / "server"
            serves = self.serving(folder, 3, pool_min=POOL_MIN)
            self._server = self._stack.enter_context(serves)
        return self._server

    def poolless(self) -> Server:
        """Return a server without waiting VMs: every job there is a pool miss."""
        if self._poolless is None:
            settings = {"MAGSD_POOL_MIN": "0", "MAGSD_POOL_MAX": "0"}
            serves = self.serving(self.folder / "poolless", 1, settings=settings)
            self._poolless = self._stack.enter_context(serves)
        return self._poolless

    def serving(
        self,
        folder: Path,
        net: int,
        *,
        pool_min: int = 0,
        settings: Mapping[str, str] | None = None,
        command: Sequence[str] = SERVE,
    ) -> AbstractContextManager[Server]:
        """Serve a directory, with the engine, inside a block; `net`: which of its networks."""
        return serving(
            folder,
            slot_net=self._slot_net(net),
            pool_min=pool_min,
            engine=self.engine,
            settings=settings,
            command=command,
        )

    async def client(self, server: Server) -> Client:
        """Return a connection of its own to a server."""
        return await self._stack.enter_async_context(connected(server.url, server.token))

    async def bare(self) -> Bare:
        """Return the engine without API, database or daemon."""
        if self._bare is None:
            opening = engines.bare(
                self.folder / "bare", self.engine, self._slot_net(2), self._image()
            )
            self._bare = await self._stack.enter_async_context(opening)
        return self._bare

    def plain(self) -> PlainBundle:
        """Return a plain bundle on the same image."""
        if self._plain is None:
            self._plain = PlainBundle(self.folder / "plain", self._image().layers[0])
            self._plain.make()
        return self._plain

    def _slot_net(self, net: int) -> str:
        return f"198.19.{_FIRST_NETS[self.engine] + net}.0/24"

    def _image(self) -> Image:
        return ImageStore(self.server().data).get("standard")
