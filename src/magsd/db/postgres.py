"""PostgreSQL: a server that goes away and comes back, and that other daemons may write to too.

Owns what a transaction means there (ADR 8): isolation, what is tried again and
what must not be, and whether a commit happened whose answer never came. How a
connection is made and what its errors mean is `postgres_connection`'s part.
"""

import secrets
import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Final, TypeVar

import psycopg
import structlog
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError

from magsd.aio import backoff_s
from magsd.db import postgres_connection
from magsd.db.driver import READERS, UnavailableError, migrate
from magsd.db.postgres_connection import (
    is_unavailable,
    raw_of,
    reason_of,
    refusal_of,
    retries_after,
)

_OUTCOME_S: Final = 10.0
"""How long the server may take to come back and say whether it committed."""
_SERIALIZABLE: Final = "BEGIN ISOLATION LEVEL SERIALIZABLE"
_READ_COMMITTED: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
_ONE_VIEW: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"

# One row for each daemon: which of its commits was the last that happened. No table of
# the schema, because nothing but this module needs it.
_MAKE_MARKS: Final = """
CREATE TABLE IF NOT EXISTS magsd_commit (
    writer text PRIMARY KEY, mark bigint NOT NULL, at timestamptz NOT NULL DEFAULT now()
)
"""
_FORGET_MARKS: Final = "DELETE FROM magsd_commit WHERE at < now() - interval '7 days'"
_MARK: Final = """
INSERT INTO magsd_commit (writer, mark) VALUES (%s, %s)
ON CONFLICT (writer) DO UPDATE SET mark = excluded.mark, at = now()
"""
# Written, not read: so it waits for a transaction that holds the row still.
_LAST_MARK: Final = """
INSERT INTO magsd_commit (writer, mark) VALUES (%s, 0)
ON CONFLICT (writer) DO UPDATE SET at = now() RETURNING mark
"""

_Result = TypeVar("_Result")
_log = structlog.get_logger()


class PostgresDriver:
    """Transactions on a server. With `node`, this process is the only one that writes as it."""

    def __init__(self, url: str, node: str | None = None) -> None:
        self._place = postgres_connection.parse(url)
        self._lock = None if node is None else _key(f"node {node}")
        self._writer = _engine(self._connected_writer, 1, _SERIALIZABLE)
        self._readers = _engine(self._connected, READERS, _ONE_VIEW)
        self._name = secrets.token_hex(16)
        self._mark = 0

    def open(self) -> None:
        """Take the node, look at the server, and bring the schema up to date."""
        try:
            with self._writer.connect() as connection:
                postgres_connection.check(raw_of(connection))
                self._migrate(connection)
        except DBAPIError as error:
            raise refusal_of(error) from error

    def write(self, work: Callable[[Connection], _Result]) -> _Result:
        """Run `work` in a serializable transaction; again when it lost against another one,
        and once more when the connection broke and nothing was committed."""
        conflicts, has_broken = 0, False
        while True:
            try:
                return self._transact(work)
            except DBAPIError as error:
                if conflicts < retries_after(error):
                    time.sleep(backoff_s(conflicts, first_s=0.002, most_s=0.2))
                    conflicts += 1
                elif error.connection_invalidated and not has_broken:
                    has_broken = True
                    _log.warning("database_connection_lost", why=reason_of(error))
                elif is_unavailable(error):
                    raise UnavailableError(reason_of(error)) from error
                else:
                    raise

    def read(self, work: Callable[[Connection], _Result]) -> _Result:
        """Run `work` on one consistent view; once more when the connection broke."""
        has_broken = False
        while True:
            try:
                with self._readers.connect() as tx:
                    return work(tx)
            except DBAPIError as error:
                if error.connection_invalidated and not has_broken:
                    has_broken = True
                elif is_unavailable(error):
                    raise UnavailableError(reason_of(error)) from error
                else:
                    raise

    def touch(self, tx: Connection) -> None:
        """Write nothing: every transaction writes its mark."""

    def close(self) -> None:
        """Close every connection."""
        self._readers.dispose()
        self._writer.dispose()

    # --- transactions ----------------------------------------------------------

    def _transact(self, work: Callable[[Connection], _Result]) -> _Result:
        with self._writer.connect() as tx:
            result = work(tx)
            self._mark += 1
            tx.exec_driver_sql(_MARK, (self._name, self._mark))
            # A commit of what failed is answered with a rollback, and no error.
            if raw_of(tx).info.transaction_status is not TransactionStatus.INTRANS:
                raise RuntimeError("a write went on after one of its statements had failed")
            try:
                tx.commit()
            except DBAPIError as error:
                # An error that the server sent means that nothing was committed.
                if not error.connection_invalidated:
                    raise
                unanswered = error
            else:
                return result
        if self._has_happened(unanswered):
            return result
        raise unanswered

    def _has_happened(self, error: DBAPIError) -> bool:
        """Find out whether the commit happened whose answer never came.

        Raises `UnavailableError` when the server does not come back soon enough to say.
        """
        deadline = time.monotonic() + _OUTCOME_S
        attempt = 0
        while True:
            try:
                has_happened = self._last_mark() == self._mark
            except DBAPIError as gone:
                if time.monotonic() > deadline:
                    why = f"{reason_of(gone)}; whether the last commit happened is not known"
                    raise UnavailableError(why) from error
            else:
                why = reason_of(error)
                _log.warning("database_commit_unanswered", why=why, has_happened=has_happened)
                return has_happened
            time.sleep(backoff_s(attempt, most_s=1.0))
            attempt += 1

    def _last_mark(self) -> int:
        with self._writer.connect().execution_options(begin=_READ_COMMITTED) as connection:
            return int(connection.exec_driver_sql(_LAST_MARK, (self._name,)).scalar_one())

    def _migrate(self, connection: Connection) -> None:
        connection.execution_options(begin=_READ_COMMITTED)
        raw = raw_of(connection)
        raw.patience_s = None
        with connection.begin():
            # Another daemon's migration, and a table that is large, take their time.
            connection.exec_driver_sql(
                "SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0"
            )
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_key("migration"),))
            migrate(connection)
            if connection.exec_driver_sql("SHOW fsync").scalar_one() != "on":
                _log.warning("database_not_durable", why="the server's fsync is off")
            connection.exec_driver_sql(_MAKE_MARKS)
            connection.exec_driver_sql(_FORGET_MARKS)
        del raw.patience_s  # As usual again.

    # --- connections -----------------------------------------------------------

    def _connected(self) -> psycopg.Connection[Any]:
        return postgres_connection.connect(self._place)

    def _connected_writer(self) -> psycopg.Connection[Any]:
        """Return a connection that has the node: without it nothing could be written at all."""
        raw = self._connected()
        if self._lock is not None:
            try:
                raw.execute("SELECT pg_advisory_lock(%s)", (self._lock,))
            except BaseException:
                raw.close()
                raise
        return raw


def _engine(connect: Callable[[], Any], connections: int, begin: str) -> Engine:
    engine = create_engine(
        "postgresql+psycopg://",
        creator=connect,
        pool_size=connections,
        max_overflow=0,
        hide_parameters=True,
        use_native_hstore=False,
    )

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("begin", begin))

    return engine


def _key(what: str) -> int:
    """Return the number by which the server knows a lock of ours."""
    return int.from_bytes(sha256(f"magsd {what}".encode()).digest()[:8], signed=True)
