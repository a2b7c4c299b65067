"""What a kind of database must be able to do for `Database`, and what all kinds share.

A driver owns connections, transactions and what its server's errors mean. It is
called from threads: one that writes, several that read. Queue, threads and
shared commits are `Database`'s part; tables and statements the repositories'.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, TypeVar

from sqlalchemy import Connection, inspect

from magsd.model.errors import InvalidError

READERS: Final = 4
"""How many threads read, each with a connection of its own."""
_MIGRATIONS: Final = Path(__file__).with_name("migrations")

_Result = TypeVar("_Result")


class UnavailableError(Exception):
    """The database cannot do it now. `Database` makes a refusal for its callers of this."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        """For an operator. Holds no secret and nothing of what was to be written."""


class Driver(Protocol):
    """Transactions of one kind of database."""

    def open(self) -> None:
        """Bring the schema up to date, and be able to write.

        Raises `UnavailableError`, `InvalidError` when it will not work until an
        operator changes something, `ConflictError` when another daemon has it.
        """

    def write(self, work: Callable[[Connection], _Result]) -> _Result:
        """Run `work` in a transaction as if it were the only one; return when it is durable.

        It may run several times; what all but the last did is undone. What it
        raises undoes it. Raises `UnavailableError`; the transaction has not
        happened then, unless the reason says that this cannot be known.
        """

    def read(self, work: Callable[[Connection], _Result]) -> _Result:
        """Run `work` on one consistent view of what is committed. Raises `UnavailableError`."""

    def touch(self, tx: Connection) -> None:
        """Write something of no meaning."""

    def close(self) -> None:
        """Close every connection."""


def migrate(connection: Connection) -> None:
    """Bring the schema up to date in the transaction of `connection`."""
    if _revision(connection) == newest_revision():
        return
    # Only now: nearly always there is nothing to do, and it takes 9 MB for as long as we live.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise InvalidError(
            "the database was written by a newer version of magsd: update this one", str(error)
        ) from error


def newest_revision() -> str:
    """Return what a schema that is up to date says it is: migrations are numbered."""
    return max(path.name.partition("_")[0] for path in _MIGRATIONS.glob("versions/[0-9]*_*.py"))


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return None if found is None else str(found)
