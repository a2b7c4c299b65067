"""The composition root: builds every part, starts them in order, and stops them in order.

Start: data directory (locked), listening sockets, database, network, engines,
application (adopts the VMs that live), edges, HTTP. Each part registers its end
when it has begun, so a stop is the same in reverse, and so is a start that
fails half way:

1. HTTP takes no more requests; held ones are answered, others have a few seconds.
2. So have those of the edges, which then end.
3. The application lets go of the VMs, which live on.
4. The engines let go.
5. The network lets go; when no VM lives its rules and forwarder go too.
6. Background tasks end, the database closes, and the directory is unlocked.
"""

import asyncio
import fcntl
import os
import resource
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
import uvloop

from magsd import __version__, doctor, engines, gateways
from magsd.aio import Clock, SystemClock, Tasks
from magsd.api.app import create_app
from magsd.api.http_server import HttpServer, listen
from magsd.api.waits import Waits
from magsd.config import Settings
from magsd.core.access import Access
from magsd.core.application import Application
from magsd.core.node import Node
from magsd.core.settings import CoreSettings
from magsd.db.database import Database
from magsd.metrics import Metrics
from magsd.model.errors import ConflictError, InvalidError, UnauthorizedError
from magsd.storage.images import ImageStore
from magsd.storage.objects import open_store

Say = Callable[[str], None]
"""Prints a line for the operator."""

Result = TypeVar("Result")

_PRIVATE: Final = ("run", "logs", "disks", "tmp")
_log = structlog.get_logger()


def serve(settings: Settings, say: Say) -> None:
    """Run the service until SIGTERM or SIGINT.

    Raises `MagsError` when it cannot begin; its message says what to do.
    """
    if not engines.is_simulated(settings):
        require_root("magsd serve")
    # A VM takes a few descriptors; the usual soft limit is for programs that use select(2).
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with data_directory(settings.data_dir):
        try:
            run(_serve(settings, say))
        except asyncio.CancelledError:
            say("stopped before the start was complete")


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run `work` on a loop of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def require_root(what: str) -> None:
    """Raise `InvalidError` unless this process is root's."""
    if os.geteuid() != 0:
        raise InvalidError(f"{what} must run as root: sandboxes need mounts and namespaces")


async def _serve(settings: Settings, say: Say) -> None:
    waits = Waits()
    with _signals() as on_signal:
        async with AsyncExitStack() as stack:
            listener = stack.enter_context(_listener(settings))
            settings, listeners = stack.enter_context(gateways.listening(settings))
            clock = SystemClock()
            images = ImageStore(settings.data_dir)
            metrics = Metrics()
            application = await stack.enter_async_context(opened(settings, images, clock, metrics))
            token = await _first_token(application.access, settings)
            doors = gateways.opened(settings, listeners, application.doors, clock, metrics)
            await stack.enter_async_context(doors)
            server = HttpServer(create_app(application, clock, waits, metrics), waits)
            on_signal(server.stop)
            for line in _introduction(settings, application, listener):
                say(line)
            if token is not None:
                say(f"  token    {token}  (admin; shown this once)")
            notify("READY=1")
            await server.run_on(listener)
            on_signal(lambda: None)
            notify("STOPPING=1")


@asynccontextmanager
async def opened(
    settings: Settings, images: ImageStore, clock: Clock, metrics: Metrics | None = None
) -> AsyncIterator[Application]:
    """Hold everything but HTTP open. The data directory is the caller's, and locked."""
    async with AsyncExitStack() as stack:
        database = await Database.open(settings.effective_database_url, CoreSettings.node)
        stack.push_async_callback(database.aclose)
        if metrics is not None:
            database.on_commit = metrics.committed
        tasks = Tasks(_report)
        stack.push_async_callback(tasks.aclose)
        objects = open_store(settings.objects())
        stack.push_async_callback(objects.aclose)
        those = await stack.enter_async_context(engines.opened(settings, tasks, clock))
        node = Node(
            database=database,
            engines=those.by_name,
            images=engines.usable_images(settings, images),
            objects=objects,
            settings=settings.core(those.default),
            clock=clock,
            metrics=metrics,
        )
        application = await Application.open(node)
        stack.push_async_callback(application.aclose)
        if metrics is not None and not engines.is_simulated(settings):
            tasks.spawn("leftovers", doctor.watch_leftovers(settings.data_dir, metrics, clock))
        yield application


async def _first_token(access: Access, settings: Settings) -> str | None:
    """Make the first token if there is none; return its secret if nobody knows it yet."""
    configured = settings.token.get_secret_value() if settings.token else None
    made = await access.first_token(configured)
    if configured is None:
        return made
    try:
        await access.authenticate(configured)
    except UnauthorizedError:
        _log.warning("token_setting_unused", why="it only makes the first token, and there is one")
    return None


def _report(name: str, error: BaseException) -> None:
    _log.error("task_failed", task=name, exc_info=error)


# --- the data directory ----------------------------------------------------------


@contextmanager
def data_directory(path: Path) -> Iterator[None]:
    """Make the directory's layout, and be its only daemon inside the block.

    Raises `ConflictError` when there is another, `InvalidError` when it cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidError(f"the data directory {path} cannot be used: {error.strerror}") from None
    try:
        _lock(lock, path)
        _lay_out(path)
        yield
    finally:
        os.close(lock)


def _lock(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
        raise ConflictError(
            f"another magsd (process {owner}) serves the data directory {path}: stop it first, "
            "or set MAGSD_DATA_DIR to another directory"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


def _lay_out(path: Path) -> None:
    for name in _PRIVATE:
        (path / name).mkdir(mode=0o700, exist_ok=True)
        (path / name).chmod(0o700)
    for entry in (path / "tmp").iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    # SQLite gives its other files the mode of this one.
    (path / "mags.db").touch(mode=0o600)


# --- the process -------------------------------------------------------------------


@contextmanager
def _listener(settings: Settings) -> Iterator[socket.socket]:
    try:
        listener = listen(*settings.api_bind)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else error
        raise InvalidError(
            f"cannot listen at {settings.api_bind}: {why}; "
            "set MAGSD_API_BIND to an address that is free"
        ) from None
    with listener:
        yield listener


def _introduction(
    settings: Settings, application: Application, listener: socket.socket
) -> Iterator[str]:
    bound = settings.api_bind._replace(port=listener.getsockname()[1])
    engine = application.settings.default_engine
    chosen = "as set" if settings.engine != "auto" else "the best that is here"
    yield f"magsd {__version__}"
    yield f"  api      http://{bound}/api/v1"
    yield f"  docs     http://{bound}/docs"
    yield from gateways.introduction(settings)
    yield f"  engine   {engine} ({chosen})"
    if engines.is_simulated(settings):
        yield "  warning  scripts are only simulated: this engine runs no program"
    yield f"  data     {settings.data_dir}"
    reason = application.readiness()
    yield f"  ready    {'yes' if reason is None else f'no: {reason}'}"


@contextmanager
def _signals() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Cancel the running task at SIGTERM and SIGINT, or do what is set instead."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def give_up() -> None:
        task.cancel()
        on_signal(lambda: None)  # What is begun is undone in peace.

    def on_signal(act: Callable[[], None]) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, act)

    on_signal(give_up)
    try:
        yield on_signal
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def notify(state: str) -> None:
    """Tell systemd, if it asked."""
    if not (address := os.environ.get("NOTIFY_SOCKET")):
        return
    address = f"\0{address[1:]}" if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto(state.encode(), address)


# --- commands that are not the service ----------------------------------------------


def migrate(settings: Settings) -> None:
    """Bring the database's schema up to date. Raises `ConflictError` while it is served."""

    async def open_and_close() -> None:
        await (await Database.open(settings.effective_database_url)).aclose()

    with data_directory(settings.data_dir):
        run(open_and_close())


def make_token(settings: Settings, name: str) -> str:
    """Return the secret of a new admin token; also while the database is served."""

    async def make() -> str:
        database = await Database.open(settings.effective_database_url)
        try:
            return await Access(database, SystemClock()).another_admin_token(name)
        finally:
            await database.aclose()

    return run(make())
