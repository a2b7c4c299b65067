"""Connections to PostgreSQL: how one is made, how long it waits, what its errors mean.

No message made here holds a password, nor anything of what was to be written.
"""

import re
import time
from collections.abc import Generator
from typing import Any, Final, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from typing_extensions import override

from magsd.db.driver import UnavailableError
from magsd.model.errors import ConflictError, InvalidError, MagsError

_VERSION_MIN: Final = 14
_DEFAULTS: Final = {
    "application_name": "magsd",
    "client_encoding": "utf8",
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
}
"""What the URL may say otherwise."""
_SESSION: Final = """
SET statement_timeout = '10s'; SET lock_timeout = '10s';
SET idle_in_transaction_session_timeout = '15s';
SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;
SELECT set_config('synchronous_commit', 'on', false)
WHERE current_setting('synchronous_commit') = 'off'
"""
"""A session that nobody is behind any more ends, and gives back what it has locked; what is
committed is durable, whatever the server's default is."""
_SYNTAX: Final = (
    "the database's URL is not valid: postgresql://USER:PASSWORD@HOST:PORT/DATABASE; write "
    "characters such as @ : / ? % in a password as %40 %3A %2F %3F %25"
)
_CONFLICTS: Final = {"40001", "40P01"}
_PERHAPS_CONFLICTS: Final = {"23503", "23505"}
"""A row that is there no longer, or already. That another transaction wrote it a moment ago the
server does not always call a conflict, though the row was looked for before."""
_RETRIES: Final = 12
_RETRIES_IN_DOUBT: Final = 3
_LOCK_NOT_AVAILABLE: Final = "55P03"
_NOT_NOW: Final = {*_CONFLICTS, _LOCK_NOT_AVAILABLE, "25006", "25P03"}
"""With these, another transaction or another server may do."""
_CLASSES_NOT_NOW: Final = {"08", "53", "57", "58"}
"""Connections, a lack of memory or disk, an operator's intervention, errors of the machine."""
_MAY_NOT: Final = "42501"
_WRONG: Final = {
    r"password authentication failed": "user or password in the URL are wrong",
    r"no password supplied": "it asks for a password: put one into the URL",
    r"role .* does not exist": "the role in the URL does not exist: make it with CREATE ROLE",
    r"database .* does not exist": (
        "the database in the URL does not exist: make it with CREATE DATABASE"
    ),
    r"no pg_hba.conf entry|authentication failed": (
        "its pg_hba.conf does not let this role in from here"
    ),
}

_Result = TypeVar("_Result")


class PatientConnection(psycopg.Connection[Any]):
    """A connection that breaks rather than wait for ever for a server that is frozen."""

    patience_s: float | None = 15.0
    """Longest time without an answer, above the timeouts that the server keeps; None: any."""

    @override
    def wait(self, gen: Generator[Any, Any, _Result], *args: Any, **settings: Any) -> _Result:
        """Do a piece of the protocol to its end."""
        return super().wait(self._bounded(gen), *args, **settings)

    def _bounded(self, gen: Generator[Any, Any, _Result]) -> Generator[Any, Any, _Result]:
        began = time.monotonic()
        ready = None
        while True:
            try:
                wanted = gen.send(ready)
            except StopIteration as end:
                result: _Result = end.value
                return result
            # Nothing is ready when it was only waited long enough to look at the time.
            ready = yield wanted
            if ready or self.patience_s is None or time.monotonic() < began + self.patience_s:
                continue
            self.close()
            raise psycopg.OperationalError(f"no answer within {self.patience_s:g} s")


def parse(url: str) -> dict[str, Any]:
    """Return what libpq reads in `url`. Raises `InvalidError`."""
    try:
        place: dict[str, Any] = conninfo_to_dict(url)
    except psycopg.Error:  # Its text may quote the password.
        raise InvalidError(_SYNTAX) from None
    named = (place.get("host", ""), place.get("dbname", ""), place.get("user", ""))
    ports = str(place.get("port", "5432"))
    # A password with such characters in it is read as host, port or database.
    if any("@" in part for part in named) or not re.fullmatch(r"[\d,]*", ports):
        raise InvalidError(_SYNTAX)
    return {**_DEFAULTS, **place}


def connect(place: dict[str, Any]) -> PatientConnection:
    """Return a new connection; its transactions begin where it is told so."""
    raw = PatientConnection.connect(**place, autocommit=True)
    try:
        raw.execute(_SESSION)
    except BaseException:
        raw.close()
        raise
    return raw


def raw_of(connection: Connection) -> PatientConnection:
    """Return what is under a connection of SQLAlchemy."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, PatientConnection)
    return raw


def check(raw: PatientConnection) -> None:
    """Raise `InvalidError` when the server or the database is not fit."""
    check_version(raw.info.server_version)
    encoding = raw.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise InvalidError(
            f"the database has encoding {encoding}: make one with CREATE DATABASE … "
            "ENCODING 'UTF8' TEMPLATE template0"
        )


def check_version(number: int) -> None:
    """Raise `InvalidError` when a server of this version number is too old."""
    if number // 10_000 < _VERSION_MIN:
        raise InvalidError(
            f"the database server is PostgreSQL {number // 10_000}: "
            f"version {_VERSION_MIN} or newer is needed"
        )


# --- errors ------------------------------------------------------------------------


def retries_after(error: DBAPIError) -> int:
    """Return how often a transaction is worth doing again when another one was in its way."""
    state = _state(error)
    if state in _CONFLICTS:
        return _RETRIES
    return _RETRIES_IN_DOUBT if state in _PERHAPS_CONFLICTS else 0


def is_unavailable(error: DBAPIError) -> bool:
    """Say whether the server, not what it was asked, is at fault."""
    if error.connection_invalidated:
        return True
    state = _state(error)
    if not state:  # No server sent it.
        return isinstance(error.orig, (psycopg.OperationalError, psycopg.InterfaceError))
    return state in _NOT_NOW or state[:2] in _CLASSES_NOT_NOW


def reason_of(error: DBAPIError) -> str:
    """Return why, in one line: further lines may hold values."""
    lines = str(error.orig).strip().splitlines() or [type(error.orig).__name__]
    return lines[0].removeprefix("connection failed: ").removeprefix("connection is bad: ")


def refusal_of(error: DBAPIError) -> MagsError | UnavailableError:
    """Return what to raise when a database cannot be opened."""
    why, state = reason_of(error), _state(error)
    if state == _LOCK_NOT_AVAILABLE:
        return ConflictError(
            "another magsd works on this database: stop it, or give this one a database of its own"
        )
    if state == _MAY_NOT:
        return InvalidError(
            "the database's role may not make tables: make it the owner of the database, or "
            "GRANT CREATE, USAGE ON SCHEMA public",
            why,
        )
    if not state:
        for pattern, what in _WRONG.items():
            if re.search(pattern, why):
                return InvalidError(f"the database cannot be used: {what}", why)
    if is_unavailable(error):
        return UnavailableError(why)
    return InvalidError("the database cannot be used", why)


def _state(error: DBAPIError) -> str:
    """Return the code of a server's error; empty when it is none."""
    return getattr(error.orig, "sqlstate", None) or ""
