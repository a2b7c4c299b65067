"""The connection to SQL: one writer, several readers, the schema up to date.

Owns engines, threads, pragmas, transactions and migrations. What is in the
tables is the business of the repositories beside it, each named after its noun:
plain functions of a connection, run here in a thread. Whatever is asked to be
written while a commit is under way shares the next one.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from magsd.model.errors import CapacityError, InvalidError

_MIGRATIONS: Final = Path(__file__).with_name("migrations")
_READERS: Final = 4
_WRITES_MAX: Final = 64
"""How many writes may share a commit."""
_PRAGMAS: Final = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA busy_timeout=10000",
    "PRAGMA cache_size=-8192",
)

_TRY_AGAIN: Final = "the service cannot {} now: try again in a moment"

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class _Write:
    work: Callable[[Connection], Any]
    done: asyncio.Future[Any]


class Database:
    """An open database, migrated to the schema of this version. Belongs to one event loop."""

    def __init__(self, writer: Engine, readers: Engine) -> None:
        self._writer = writer
        self._readers = readers
        self._write_thread = ThreadPoolExecutor(1, "database-writer")
        self._read_threads = ThreadPoolExecutor(_READERS, "database-reader")
        self._writes: deque[_Write] = deque()
        self._is_writing = False
        self._is_closed = False
        self.trouble: str | None = None
        """Why the last write could not be recorded, for an operator; None when it was."""

    @classmethod
    async def open(cls, url: str) -> "Database":
        """Connect to `url` (`sqlite:////absolute/path`) and bring its schema up to date.

        Raises `InvalidError` for another kind of database and `CapacityError`
        when the file cannot be opened or written.
        """
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite":
            raise InvalidError("the database must be SQLite: sqlite:////path/of/mags.db")
        plain = parsed.set(drivername="sqlite").render_as_string(hide_password=False)
        database = cls(_engine(plain, 1, "BEGIN IMMEDIATE"), _engine(plain, _READERS, "BEGIN"))
        try:
            await database.write(_migrate)
        except BaseException:
            await database.aclose()
            raise
        return database

    async def write(self, work: Callable[[Connection], _Result]) -> _Result:
        """Run `work` in a write transaction; what it wrote is durable on return.

        It runs in a thread, must do nothing slow, and may run twice: the first
        time is undone when another write that shared its transaction raised.
        What it raises undoes it and is raised here. Raises `CapacityError`
        when nothing can be written now, as with a full disk. Cancelled, it may
        or may not have happened.
        """
        if self._is_closed:
            raise CapacityError("the service is stopping: try again in a moment")
        return await self._queued(work)

    async def probe(self) -> None:
        """Write something of no meaning, so that `trouble` is as it is now."""
        with suppress(CapacityError):
            await self.write(_write_nothing)

    async def _queued(self, work: Callable[[Connection], _Result]) -> _Result:
        loop = asyncio.get_running_loop()
        write = _Write(work, loop.create_future())
        self._writes.append(write)
        if not self._is_writing:
            self._is_writing = True
            self._write_next(loop)
        result: _Result = await write.done
        return result

    async def read(self, work: Callable[[Connection], _Result]) -> _Result:
        """Run `work` in a thread on one consistent view of what is committed.

        Raises `CapacityError` when nothing can be read now.
        """

        def run() -> _Result:
            try:
                with self._readers.connect() as tx:
                    return work(tx)
            except OperationalError as error:
                raise CapacityError(_TRY_AGAIN.format("look this up"), str(error)) from error

        return await asyncio.get_running_loop().run_in_executor(self._read_threads, run)

    async def aclose(self) -> None:
        """Finish the writes that were asked for, then close every connection."""
        if self._is_closed:
            return
        self._is_closed = True
        with suppress(CapacityError):
            await self._queued(lambda _: None)
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._read_threads.shutdown()
        self._write_thread.shutdown()
        self._readers.dispose()
        self._writer.dispose()

    def _write_next(self, loop: asyncio.AbstractEventLoop) -> None:
        writes: list[_Write] = []
        while self._writes and len(writes) < _WRITES_MAX:
            write = self._writes.popleft()
            if not write.done.done():
                writes.append(write)
        if not writes:
            self._is_writing = False
            return
        written = loop.run_in_executor(self._write_thread, self._commit, writes)
        written.add_done_callback(lambda future: self._written(loop, writes, future))

    def _written(
        self,
        loop: asyncio.AbstractEventLoop,
        writes: Sequence[_Write],
        written: asyncio.Future[list[tuple[Any, Exception | None]]],
    ) -> None:
        for write, (result, error) in zip(writes, written.result(), strict=True):
            if isinstance(error, CapacityError):
                self.trouble = error.detail
            elif error is None:
                self.trouble = None
            if write.done.done():
                continue
            if error is not None:
                write.done.set_exception(error)
            else:
                write.done.set_result(result)
        self._write_next(loop)

    def _commit(self, writes: Sequence[_Write]) -> list[tuple[Any, Exception | None]]:
        """Do all of `writes` in one transaction; each in one of its own if any raises."""
        try:
            with self._writer.begin() as tx:
                return [(write.work(tx), None) for write in writes]
        except OperationalError as error:
            return [(None, _unwritable(error))] * len(writes)
        except Exception as error:  # noqa: BLE001 - raised again where the write was asked for
            if len(writes) == 1:
                return [(None, error)]
        return [self._commit([write])[0] for write in writes]


def _engine(url: str, connections: int, begin: str) -> Engine:
    engine = create_engine(url, pool_size=connections, max_overflow=0)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        # The driver would begin transactions by itself, and only before a write.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(pragma)
        cursor.close()

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _write_nothing(connection: Connection) -> None:
    # A number in the file's header that nobody reads; it is written though it does not change.
    connection.exec_driver_sql("PRAGMA user_version = 0")


def _migrate(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _unwritable(error: OperationalError) -> CapacityError:
    return CapacityError(_TRY_AGAIN.format("record this"), str(error))
