"""Grants: the token that asked for one, and when that ends."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("grant", sa.Column("token_id", sa.String(length=40)))
    op.add_column("grant", sa.Column("ends_at", sa.BigInteger()))
    op.create_index(op.f("ix_grant_token_id"), "grant", ["token_id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_grant_token_id"), "grant")
    with op.batch_alter_table("grant") as batch:
        for name in ("ends_at", "token_id"):
            batch.drop_column(name)
