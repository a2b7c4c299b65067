"""Logs are kept in the object store, and what has ended is found by its age."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("log_index", sa.Column("stored_at", sa.BigInteger()))
    op.add_column("log_index", sa.Column("object_bytes", sa.BigInteger()))
    op.add_column("log_index", sa.Column("object_sha256", sa.String(length=64)))
    op.create_index(op.f("ix_log_index_node_stored_at"), "log_index", ["node", "stored_at"])
    op.create_index(op.f("ix_run_ended_at"), "run", ["ended_at"])


def downgrade() -> None:
    op.drop_index(op.f("ix_run_ended_at"), "run")
    op.drop_index(op.f("ix_log_index_node_stored_at"), "log_index")
    with op.batch_alter_table("log_index") as batch:
        for name in ("object_sha256", "object_bytes", "stored_at"):
            batch.drop_column(name)
