"""The tables. One schema for SQLite and PostgreSQL; changes come as migrations.

Times are whole microseconds since 1970 (`Instant`): exact, ordered and the
same in every database. Every table that a caller can see carries `account_id`.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeDecorator
from typing_extensions import override

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Instant(TypeDecorator[datetime]):
    """A moment, UTC, to the microsecond."""

    impl = BigInteger
    cache_ok = True

    @override
    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    @override
    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _EPOCH + timedelta(microseconds=value)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

account = Table(
    "account",
    metadata,
    Column("account_id", String(40), primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("created_at", Instant, nullable=False),
    # Its quota; null: the operator's default.
    Column("jobs_max", Integer),
    Column("vcpus_max", Integer),
    Column("memory_mb_max", Integer),
    Column("disk_gb_max", Integer),
    Column("files_mb_max", Integer),
)

token = Table(
    "token",
    metadata,
    Column("token_id", String(40), primary_key=True),
    Column("account_id", ForeignKey("account.account_id"), nullable=False, index=True),
    Column("name", String(128), nullable=False),
    Column("secret_sha256", String(64), nullable=False, unique=True),
    Column("scopes", String(128), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("last_used_at", Instant),
)

job = Table(
    "job",
    metadata,
    Column("request_id", String(36), primary_key=True),
    Column("account_id", ForeignKey("account.account_id"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("workspace_id", String(63)),
    Column("base_workspace_id", String(63)),
    Column("persistent", Boolean, nullable=False),
    Column("no_sleep", Boolean, nullable=False),
    Column("no_sync", Boolean, nullable=False),
    Column("subdomain", String(12), nullable=False, unique=True),
    Column("goal", String(16), nullable=False),
    Column("goal_version", Integer, nullable=False),
    Column("generation", Integer, nullable=False),
    # The last run. No foreign key: run names its job, and one direction is enough.
    Column("run_id", String(40), nullable=False),
    # Seconds; null: as the operator has it.
    Column("idle_timeout_s", Integer),
    Column("idempotency_key", String(255)),
    Column("idempotency_digest", String(64)),
    Column("created_at", Instant, nullable=False),
    # Large values last: SQLite reads a row up to the last column asked for.
    Column("startup_command", Text),
    Column("spec", JSON, nullable=False),
    Column("script", Text, nullable=False),
    UniqueConstraint("account_id", "idempotency_key"),
    Index(None, "account_id", "created_at"),
    Index(None, "account_id", "name", "created_at"),
    Index(None, "account_id", "workspace_id", "created_at"),
)

run = Table(
    "run",
    metadata,
    Column("run_id", String(40), primary_key=True),
    Column("request_id", ForeignKey("job.request_id"), nullable=False, index=True),
    Column("account_id", ForeignKey("account.account_id"), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("node", String(128), nullable=False),
    Column("state", String(16), nullable=False),
    Column("engine", String(32), nullable=False),
    Column("isolation", String(32), nullable=False),
    Column("vm_id", String(8), index=True),
    Column("created_at", Instant, nullable=False),
    Column("claimed_at", Instant),
    Column("started_at", Instant),
    Column("ended_at", Instant),
    Column("exit_code", Integer),
    Column("code", String(32)),
    Column("error", Text),
    # With a workspace: the version of its own that it began from, and what became of its changes.
    Column("base_version", Integer),
    Column("is_synced", Boolean),
    Column("manifest", JSON),
    # Of a persistent job, which goes on then.
    Column("script_ended_at", Instant),
    # Null: its journal was begun in this epoch.
    Column("log_epoch", Integer),
    # Of one that sleeps: since when, and the version that has all that its disk holds.
    Column("slept_at", Instant),
    Column("slept_version", Integer),
    Column("restored_from", String(128)),
    Index(None, "node", "state"),
    Index(None, "account_id", "state"),
    Index(None, "account_id", "slept_at"),
    Index(None, "ended_at"),
    # All that the usage of an account is made of, so that no row is read for it.
    Index("ix_run_usage", "account_id", "ended_at", "started_at", "code"),
)

nap = Table(
    "nap",
    metadata,
    # How long a run slept on one day: a row a day, however often it was.
    Column("run_id", ForeignKey("run.run_id"), primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("account_id", ForeignKey("account.account_id"), nullable=False),
    Column("microseconds", BigInteger, nullable=False),
    Index(None, "account_id", "day"),
)

workspace = Table(
    "workspace",
    metadata,
    Column("workspace_id", String(40), primary_key=True),
    Column("account_id", ForeignKey("account.account_id"), nullable=False),
    Column("name", String(63), nullable=False),
    Column("head_version", Integer),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    UniqueConstraint("account_id", "name"),
)

workspace_version = Table(
    "workspace_version",
    metadata,
    Column("workspace_id", ForeignKey("workspace.workspace_id"), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("account_id", ForeignKey("account.account_id"), nullable=False),
    # `pending`: its layers lie on `node` alone; `live`: the object store has them.
    Column("state", String(16), nullable=False),
    Column("node", String(128), nullable=False),
    # What the head was when it was made; null: nothing.
    Column("parent", Integer),
    # Who made it: a run, and which of its captures it was. Null: nobody's run did.
    Column("run_id", String(40), index=True),
    Column("capture", Integer),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("manifest", JSON, nullable=False),
    Index(None, "node", "state"),
)

layer = Table(
    "layer",
    metadata,
    Column("account_id", ForeignKey("account.account_id"), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
)

grant = Table(
    "grant",
    metadata,
    Column("grant_id", String(40), primary_key=True),
    Column("account_id", ForeignKey("account.account_id"), nullable=False),
    Column("request_id", ForeignKey("job.request_id"), index=True),
    Column("workspace_id", ForeignKey("workspace.workspace_id"), index=True),
    Column("kind", String(16), nullable=False),
    Column("port", Integer, nullable=False),
    Column("fingerprint", String(64), index=True),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    # Which token asked for it, and when that ends. No foreign key: tokens are deleted.
    Column("token_id", String(40), index=True),
    Column("ends_at", Instant),
)

file = Table(
    "file",
    metadata,
    Column("file_id", String(40), primary_key=True),
    Column("account_id", ForeignKey("account.account_id"), nullable=False, index=True),
    Column("name", String(255), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_at", Instant, nullable=False),
    # When a job asked for it last.
    Column("used_at", Instant, nullable=False, index=True),
    # Whether the object store has it: false before that, and when it is about to be deleted.
    Column("is_stored", Boolean, nullable=False),
)

cron = Table(
    "cron",
    metadata,
    Column("cron_id", String(40), primary_key=True),
    Column("account_id", ForeignKey("account.account_id"), nullable=False, index=True),
    Column("name", String(128), nullable=False),
    Column("expression", String(128), nullable=False),
    Column("timezone", String(64), nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("next_run_at", Instant, index=True),
    Column("last_run_at", Instant),
    Column("last_request_id", String(36)),
    Column("last_status", String(16)),
    Column("created_at", Instant, nullable=False),
)

alias = Table(
    "alias",
    metadata,
    Column("subdomain", String(63), primary_key=True),
    Column("account_id", ForeignKey("account.account_id"), nullable=False, index=True),
    Column("workspace_id", String(63), nullable=False),
    Column("port", Integer, nullable=False),
    Column("created_at", Instant, nullable=False),
)

log_index = Table(
    "log_index",
    metadata,
    Column("request_id", ForeignKey("job.request_id"), primary_key=True),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("account_id", ForeignKey("account.account_id"), nullable=False),
    Column("node", String(128), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    # When it was put away on its node, and when in the object store; null: not yet.
    Column("archived_at", Instant, nullable=False, index=True),
    Column("stored_at", Instant),
    Column("object_bytes", BigInteger),
    Column("object_sha256", String(64)),
    Index(None, "node", "stored_at"),
)

audit = Table(
    "audit",
    metadata,
    Column("audit_id", Integer, primary_key=True),
    Column("account_id", ForeignKey("account.account_id"), nullable=False, index=True),
    Column("token_id", String(40)),
    Column("action", String(64), nullable=False),
    Column("subject", String(128), nullable=False),
    Column("at", Instant, nullable=False),
)
