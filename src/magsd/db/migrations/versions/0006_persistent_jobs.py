"""Persistent jobs: when a script was over whose VM stays."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("run", sa.Column("script_ended_at", sa.BigInteger()))


def downgrade() -> None:
    with op.batch_alter_table("run") as batch:
        batch.drop_column("script_ended_at")
