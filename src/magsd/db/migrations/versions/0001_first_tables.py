"""The first tables: accounts and tokens, jobs and their runs, and what later parts hang on them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table, those that others name first."""
    _create_account()
    _create_alias()
    _create_audit()
    _create_cron()
    _create_file()
    _create_job()
    _create_layer()
    _create_token()
    _create_workspace()
    _create_grant()
    _create_log_index()
    _create_run()
    _create_workspace_version()


def downgrade() -> None:
    """Drop every table, in the reverse order."""
    for table in (
        "workspace_version",
        "run",
        "log_index",
        "grant",
        "workspace",
        "token",
        "layer",
        "job",
        "file",
        "cron",
        "audit",
        "alias",
        "account",
    ):
        op.drop_table(table)


def _create_account() -> None:
    op.create_table(
        "account",
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_account")),
        sa.UniqueConstraint("name", name=op.f("uq_account_name")),
    )


def _create_alias() -> None:
    op.create_table(
        "alias",
        sa.Column("subdomain", sa.String(length=63), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("workspace_id", sa.String(length=63), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.account_id"], name=op.f("fk_alias_account_id")
        ),
        sa.PrimaryKeyConstraint("subdomain", name=op.f("pk_alias")),
    )
    op.create_index(op.f("ix_alias_account_id"), "alias", ["account_id"], unique=False)


def _create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("audit_id", sa.Integer(), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("token_id", sa.String(length=40), nullable=True),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=128), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.account_id"], name=op.f("fk_audit_account_id")
        ),
        sa.PrimaryKeyConstraint("audit_id", name=op.f("pk_audit")),
    )
    op.create_index(op.f("ix_audit_account_id"), "audit", ["account_id"], unique=False)


def _create_cron() -> None:
    op.create_table(
        "cron",
        sa.Column("cron_id", sa.String(length=40), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("expression", sa.String(length=128), nullable=False),
        sa.Column("timezone", sa.String(length=64), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("next_run_at", sa.BigInteger(), nullable=True),
        sa.Column("last_run_at", sa.BigInteger(), nullable=True),
        sa.Column("last_request_id", sa.String(length=36), nullable=True),
        sa.Column("last_status", sa.String(length=16), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.account_id"], name=op.f("fk_cron_account_id")
        ),
        sa.PrimaryKeyConstraint("cron_id", name=op.f("pk_cron")),
    )
    op.create_index(op.f("ix_cron_account_id"), "cron", ["account_id"], unique=False)
    op.create_index(op.f("ix_cron_next_run_at"), "cron", ["next_run_at"], unique=False)


def _create_file() -> None:
    op.create_table(
        "file",
        sa.Column("file_id", sa.String(length=40), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.account_id"], name=op.f("fk_file_account_id")
        ),
        sa.PrimaryKeyConstraint("file_id", name=op.f("pk_file")),
    )
    op.create_index(op.f("ix_file_account_id"), "file", ["account_id"], unique=False)


def _create_job() -> None:
    op.create_table(
        "job",
        sa.Column("request_id", sa.String(length=36), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("workspace_id", sa.String(length=63), nullable=True),
        sa.Column("base_workspace_id", sa.String(length=63), nullable=True),
        sa.Column("persistent", sa.Boolean(), nullable=False),
        sa.Column("no_sleep", sa.Boolean(), nullable=False),
        sa.Column("no_sync", sa.Boolean(), nullable=False),
        sa.Column("subdomain", sa.String(length=12), nullable=False),
        sa.Column("goal", sa.String(length=16), nullable=False),
        sa.Column("goal_version", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=40), nullable=False),
        sa.Column("idempotency_key", sa.String(length=255), nullable=True),
        sa.Column("idempotency_digest", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("startup_command", sa.Text(), nullable=True),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("script", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.account_id"], name=op.f("fk_job_account_id")
        ),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_job")),
        sa.UniqueConstraint(
            "account_id", "idempotency_key", name=op.f("uq_job_account_id_idempotency_key")
        ),
        sa.UniqueConstraint("subdomain", name=op.f("uq_job_subdomain")),
    )
    op.create_index(
        op.f("ix_job_account_id_created_at"), "job", ["account_id", "created_at"], unique=False
    )
    for column in ("name", "workspace_id"):
        op.create_index(
            op.f(f"ix_job_account_id_{column}_created_at"),
            "job",
            ["account_id", column, "created_at"],
            unique=False,
        )


def _create_layer() -> None:
    op.create_table(
        "layer",
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.account_id"], name=op.f("fk_layer_account_id")
        ),
        sa.PrimaryKeyConstraint("account_id", "sha256", name=op.f("pk_layer")),
    )


def _create_token() -> None:
    op.create_table(
        "token",
        sa.Column("token_id", sa.String(length=40), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("secret_sha256", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.account_id"], name=op.f("fk_token_account_id")
        ),
        sa.PrimaryKeyConstraint("token_id", name=op.f("pk_token")),
        sa.UniqueConstraint("secret_sha256", name=op.f("uq_token_secret_sha256")),
    )
    op.create_index(op.f("ix_token_account_id"), "token", ["account_id"], unique=False)


def _create_workspace() -> None:
    op.create_table(
        "workspace",
        sa.Column("workspace_id", sa.String(length=40), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("head_version", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.account_id"], name=op.f("fk_workspace_account_id")
        ),
        sa.PrimaryKeyConstraint("workspace_id", name=op.f("pk_workspace")),
        sa.UniqueConstraint("account_id", "name", name=op.f("uq_workspace_account_id_name")),
    )


def _create_grant() -> None:
    op.create_table(
        "grant",
        sa.Column("grant_id", sa.String(length=40), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("request_id", sa.String(length=36), nullable=True),
        sa.Column("workspace_id", sa.String(length=40), nullable=True),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.account_id"], name=op.f("fk_grant_account_id")
        ),
        sa.ForeignKeyConstraint(
            ["request_id"], ["job.request_id"], name=op.f("fk_grant_request_id")
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id"], ["workspace.workspace_id"], name=op.f("fk_grant_workspace_id")
        ),
        sa.PrimaryKeyConstraint("grant_id", name=op.f("pk_grant")),
    )
    op.create_index(op.f("ix_grant_fingerprint"), "grant", ["fingerprint"], unique=False)
    op.create_index(op.f("ix_grant_request_id"), "grant", ["request_id"], unique=False)
    op.create_index(op.f("ix_grant_workspace_id"), "grant", ["workspace_id"], unique=False)


def _create_log_index() -> None:
    op.create_table(
        "log_index",
        sa.Column("request_id", sa.String(length=36), nullable=False),
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("node", sa.String(length=128), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("archived_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.account_id"], name=op.f("fk_log_index_account_id")
        ),
        sa.ForeignKeyConstraint(
            ["request_id"], ["job.request_id"], name=op.f("fk_log_index_request_id")
        ),
        sa.PrimaryKeyConstraint("request_id", "epoch", name=op.f("pk_log_index")),
    )
    op.create_index(op.f("ix_log_index_archived_at"), "log_index", ["archived_at"], unique=False)


def _create_run() -> None:
    op.create_table(
        "run",
        sa.Column("run_id", sa.String(length=40), nullable=False),
        sa.Column("request_id", sa.String(length=36), nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("node", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("engine", sa.String(length=32), nullable=False),
        sa.Column("isolation", sa.String(length=32), nullable=False),
        sa.Column("vm_id", sa.String(length=8), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("claimed_at", sa.BigInteger(), nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("code", sa.String(length=32), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.account_id"], name=op.f("fk_run_account_id")
        ),
        sa.ForeignKeyConstraint(["request_id"], ["job.request_id"], name=op.f("fk_run_request_id")),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_run")),
    )
    op.create_index(op.f("ix_run_account_id_state"), "run", ["account_id", "state"], unique=False)
    op.create_index(op.f("ix_run_node_state"), "run", ["node", "state"], unique=False)
    op.create_index(op.f("ix_run_request_id"), "run", ["request_id"], unique=False)
    op.create_index(op.f("ix_run_vm_id"), "run", ["vm_id"], unique=False)


def _create_workspace_version() -> None:
    op.create_table(
        "workspace_version",
        sa.Column("workspace_id", sa.String(length=40), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("account_id", sa.String(length=40), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.account_id"], name=op.f("fk_workspace_version_account_id")
        ),
        sa.ForeignKeyConstraint(
            ["workspace_id"],
            ["workspace.workspace_id"],
            name=op.f("fk_workspace_version_workspace_id"),
        ),
        sa.PrimaryKeyConstraint("workspace_id", "version", name=op.f("pk_workspace_version")),
    )
