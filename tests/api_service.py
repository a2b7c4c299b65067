"""The application over the engine that runs nothing, and its HTTP server, for tests of the API.

All of it is real: database, core, shim protocol. Never give this another
engine: what tests send it are random scripts.
"""

import asyncio
import fcntl
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from magsd import app
from magsd.aio import SystemClock
from magsd.api.app import create_app
from magsd.api.http_server import HttpServer, listen
from magsd.api.waits import Waits
from magsd.core.application import Application
from magsd.core.node import Node
from magsd.core.settings import CoreSettings
from magsd.db.database import Database
from magsd.engine.fake.engine import FakeEngine, FakeSettings
from magsd.engine.fake.faults import FaultPlan
from magsd.metrics import Metrics
from magsd.storage.images import ImageStore
from magsd.storage.objects import DirectoryStore

DEADLINE_S = 30
ADMIN = "an-admin-token-of-the-tests"


@asynccontextmanager
async def opened(
    directory: Path, clock: SystemClock, faults: FaultPlan | None = None, **core
) -> AsyncIterator[Application]:
    """Hold an application open on a folder; `core`: settings of its core."""
    directory.mkdir(parents=True, exist_ok=True)
    layer = directory / "layer.sqfs"
    layer.write_bytes(b"hsqs, and nothing of it is read")
    images = ImageStore(directory)
    images.add("standard", layer, {})
    async with AsyncExitStack() as stack:
        database = await Database.open(f"sqlite:///{directory}/mags.db")
        stack.push_async_callback(database.aclose)
        objects = DirectoryStore(directory / "objects")
        stack.push_async_callback(objects.aclose)
        settings = FakeSettings(directory, faults=faults or FaultPlan())
        stack.push_async_callback(_end_vms, directory)
        engine = FakeEngine(settings, clock)
        stack.push_async_callback(engine.aclose)
        node = Node(
            database=database,
            engines={engine.capabilities.name: engine},
            images=images,
            objects=objects,
            settings=CoreSettings(directory, engine.capabilities.name, **core),
            clock=clock,
        )
        application = await Application.open(node)
        stack.push_async_callback(application.aclose)
        yield application


async def _end_vms(directory: Path) -> None:
    """End what lives on when the application has let go of it, and the process that holds it."""
    engine = FakeEngine(FakeSettings(directory), SystemClock())
    try:
        await engine.prepare()
        await engine.sweep(frozenset())
    finally:
        await engine.aclose()
    held = os.open(directory / "run", os.O_RDONLY)
    try:
        # Its holder keeps the folder locked for as long as it lives.
        await asyncio.to_thread(fcntl.flock, held, fcntl.LOCK_EX)
    finally:
        os.close(held)


class AheadClock(SystemClock):
    """The host's clock, but for a wall time that a test may put forward."""

    def __init__(self):
        self.ahead = timedelta()

    def now(self):
        return super().now() + self.ahead


class Token(NamedTuple):
    """A token, and what a request with it carries."""

    token_id: str
    secret: str

    @property
    def headers(self):
        return {"Authorization": f"Bearer {self.secret}"}


class ApiService:
    """A service in a thread of its own, and what a test may do with it from outside."""

    def __init__(self, directory: Path, **core) -> None:
        """`core`: settings of its core."""
        self.directory = directory
        self._core = core
        self.clock = AheadClock()
        self.url = ""
        self.application = None
        self.admin = None
        self._server = None
        self._loop = None
        self._is_up = threading.Event()
        self._failure = None

    def call(self, work):
        """Return what `work`, a coroutine, comes to on the service's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_S)

    def token(self, name="a token", **fields) -> Token:
        """Make a token as an admin."""
        made, secret = self.call(
            self.application.access.create_token(self.admin, name=name, **fields)
        )
        return Token(made.token_id, secret)

    @contextmanager
    def running(self) -> Iterator["ApiService"]:
        """Run the service during the block."""
        thread = threading.Thread(target=self._run, name="api-service")
        thread.start()
        try:
            assert self._is_up.wait(DEADLINE_S)
            if self._failure is not None:
                raise self._failure
            yield self
        finally:
            if self._server is not None:
                self._loop.call_soon_threadsafe(self._server.stop)
            thread.join(DEADLINE_S)
            assert not thread.is_alive()

    def _run(self) -> None:
        try:
            app.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            self._failure = error
        finally:
            self._is_up.set()

    async def _serve(self) -> None:
        waits, metrics = Waits(), Metrics()
        self._loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            listener = stack.enter_context(listen("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            service = opened(self.directory, self.clock, **self._core)
            self.application = await stack.enter_async_context(service)
            access = self.application.access
            await access.first_token(ADMIN)
            self.admin = await access.authenticate(ADMIN)
            routes = create_app(self.application, self.clock, waits, metrics)
            self._server = HttpServer(routes, waits)
            self._is_up.set()
            await self._server.run_on(listener)
