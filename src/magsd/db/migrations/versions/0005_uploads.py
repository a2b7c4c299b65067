"""Uploads, their quota, and an index for the usage of an account."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Nothing ever wrote to this table before.
    with op.batch_alter_table("file") as batch:
        batch.add_column(sa.Column("sha256", sa.String(length=64), nullable=False))
        batch.add_column(sa.Column("used_at", sa.BigInteger(), nullable=False))
        batch.add_column(sa.Column("is_stored", sa.Boolean(), nullable=False))
    op.create_index(op.f("ix_file_used_at"), "file", ["used_at"])
    op.add_column("account", sa.Column("files_mb_max", sa.Integer()))
    op.create_index("ix_run_usage", "run", ["account_id", "ended_at", "started_at", "code"])


def downgrade() -> None:
    op.drop_index("ix_run_usage", "run")
    with op.batch_alter_table("account") as batch:
        batch.drop_column("files_mb_max")
    op.drop_index(op.f("ix_file_used_at"), "file")
    with op.batch_alter_table("file") as batch:
        for name in ("is_stored", "used_at", "sha256"):
            batch.drop_column(name)
