"""The way to SQL: one thread that writes, several that read, commits that are shared.

What is in the tables is the business of the repositories beside it, each named
after its noun: plain functions of a connection, run here in a thread. What a
transaction is, and what a server's errors mean, is a `Driver`'s. Whatever is
asked to be written while a commit is under way shares the next one.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, TypeVar

from sqlalchemy import Connection
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from magsd.db.driver import READERS, Driver, UnavailableError
from magsd.db.sqlite import SqliteDriver
from magsd.model.errors import CapacityError, InvalidError

_WRITES_MAX: Final = 64
"""How many writes may share a commit."""
_TRY_AGAIN: Final = "the service cannot {} now: try again in a moment"

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class _Write:
    work: Callable[[Connection], Any]
    done: asyncio.Future[Any]


class Database:
    """An open database, migrated to the schema of this version. Belongs to one event loop."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._write_thread = ThreadPoolExecutor(1, "database-writer")
        self._read_threads = ThreadPoolExecutor(READERS, "database-reader")
        self._writes: deque[_Write] = deque()
        self._is_writing = False
        self._is_closed = False
        self.trouble: str | None = None
        """Why the database did not do what was asked last, for an operator; None when it did."""
        self.on_commit: Callable[[float, int], object] | None = None
        """Told of each commit, in a thread: the seconds it took, and how many writes shared it."""

    @classmethod
    async def open(cls, url: str, node: str | None = None) -> "Database":
        """Connect to `url` and bring the database's schema up to date.

        It begins with `sqlite:///` (and an absolute path) or `postgresql://`.
        With `node`, nobody else writes as that node while this is open: a
        PostgreSQL server sees to it; of an SQLite file, who locks its folder does.

        Raises `InvalidError` when an operator must change something first,
        `ConflictError` when another daemon has the node, and `CapacityError`
        when the file cannot be opened or written, or no server answers.
        """
        database = cls(_driver(url, node))
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(database._write_thread, database._driver.open)
        except BaseException as error:
            database._is_closed = True
            await asyncio.to_thread(database._close)
            if isinstance(error, UnavailableError):
                raise CapacityError("the database does not answer", error.reason) from error
            raise
        return database

    async def write(self, work: Callable[[Connection], _Result]) -> _Result:
        """Run `work` in a write transaction; what it wrote is durable on return.

        It runs in a thread, must do nothing slow, and may run several times:
        what it did is undone when another write that shared its transaction
        raised, or when another daemon was faster. What it raises undoes it and
        is raised here. Raises `CapacityError` when nothing can be written now,
        as with a full disk. Cancelled, it may or may not have happened; and so
        it is when a server goes away during the commit and does not come back.
        """
        if self._is_closed:
            raise CapacityError("the service is stopping: try again in a moment")
        return await self._queued(work)

    async def probe(self) -> None:
        """Write something of no meaning, so that `trouble` is as it is now."""
        with suppress(CapacityError):
            await self.write(self._driver.touch)

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
        read = asyncio.get_running_loop().run_in_executor(
            self._read_threads, self._driver.read, work
        )
        try:
            return await read
        except UnavailableError as error:
            self.trouble = error.reason
            raise CapacityError(_TRY_AGAIN.format("look this up"), error.reason) from error

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
        self._driver.close()

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
            if isinstance(error, UnavailableError):
                self.trouble = error.reason
                error = CapacityError(_TRY_AGAIN.format("record this"), error.reason)
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
        began = monotonic()
        try:
            done: list[tuple[Any, Exception | None]] = self._driver.write(
                lambda tx: [(write.work(tx), None) for write in writes]
            )
        except UnavailableError as error:
            return [(None, error)] * len(writes)
        except Exception as error:  # noqa: BLE001 - raised again where the write was asked for
            if len(writes) == 1:
                return [(None, error)]
            return [self._commit([write])[0] for write in writes]
        if self.on_commit is not None:
            self.on_commit(monotonic() - began, len(writes))
        return done


def _driver(url: str, node: str | None) -> Driver:
    scheme, colon, rest = url.partition(":")
    if scheme == "sqlite":
        try:
            return SqliteDriver(make_url(url))
        except (ArgumentError, ValueError):
            raise InvalidError("the database's URL must be sqlite:////PATH") from None
    if scheme in ("postgresql", "postgres"):
        # Only where it is wanted: its library takes 10 MB.
        from magsd.db.postgres import PostgresDriver

        return PostgresDriver(f"postgresql{colon}{rest}", node)
    raise InvalidError(
        "the database must be SQLite, sqlite:////PATH, or PostgreSQL, "
        "postgresql://USER:PASSWORD@HOST/DATABASE"
    )
