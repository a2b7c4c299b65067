"""Accounts have quotas of their own."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_LIMITS = ("jobs_max", "vcpus_max", "memory_mb_max", "disk_gb_max")


def upgrade() -> None:
    for name in _LIMITS:
        op.add_column("account", sa.Column(name, sa.Integer()))


def downgrade() -> None:
    with op.batch_alter_table("account") as batch:
        for name in reversed(_LIMITS):
            batch.drop_column(name)
