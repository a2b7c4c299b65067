"""SQLite: one file, one writing connection, readers beside it. Needs no server."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError

from magsd.db.driver import READERS, UnavailableError, migrate

_PRAGMAS: Final = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA busy_timeout=10000",
    "PRAGMA cache_size=-8192",
)

_Result = TypeVar("_Result")


class SqliteDriver:
    """Transactions on a file. That one daemon has it is seen to by who locks its folder."""

    def __init__(self, url: URL) -> None:
        plain = url.set(drivername="sqlite")
        self._writer = _engine(plain, 1, "BEGIN IMMEDIATE")
        self._readers = _engine(plain, READERS, "BEGIN")

    def open(self) -> None:
        """Make the file, or bring its schema up to date."""
        self.write(migrate)

    def write(self, work: Callable[[Connection], _Result]) -> _Result:
        """Run `work` in the only transaction that writes."""
        try:
            with self._writer.begin() as tx:
                return work(tx)
        except OperationalError as error:
            raise UnavailableError(str(error.orig)) from error

    def read(self, work: Callable[[Connection], _Result]) -> _Result:
        """Run `work` on one consistent view of what is committed."""
        try:
            with self._readers.connect() as tx:
                return work(tx)
        except OperationalError as error:
            raise UnavailableError(str(error.orig)) from error

    def touch(self, tx: Connection) -> None:
        """Write a number in the file's header that nobody reads, though it does not change."""
        tx.exec_driver_sql("PRAGMA user_version = 0")

    def close(self) -> None:
        """Close every connection."""
        self._readers.dispose()
        self._writer.dispose()


def _engine(url: URL, connections: int, begin: str) -> Engine:
    engine = create_engine(url, pool_size=connections, max_overflow=0, hide_parameters=True)

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
