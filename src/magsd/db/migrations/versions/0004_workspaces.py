"""Workspaces: what a run began from, and versions that are not stored yet."""

from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_OF_RUN: Final[dict[str, Any]] = {
    "base_version": sa.Integer(),
    "is_synced": sa.Boolean(),
    "manifest": sa.JSON(),
}
_OF_VERSION: Final[dict[str, Any]] = {
    "state": sa.String(length=16),
    "node": sa.String(length=128),
    "parent": sa.Integer(),
    "run_id": sa.String(length=40),
    "capture": sa.Integer(),
}
_REQUIRED = ("state", "node")


def upgrade() -> None:
    for name, kind in _OF_RUN.items():
        op.add_column("run", sa.Column(name, kind))
    # Nothing ever wrote to this table before.
    with op.batch_alter_table("workspace_version") as batch:
        for name, kind in _OF_VERSION.items():
            batch.add_column(sa.Column(name, kind, nullable=name not in _REQUIRED))
    op.create_index(op.f("ix_workspace_version_run_id"), "workspace_version", ["run_id"])
    op.create_index(op.f("ix_workspace_version_node_state"), "workspace_version", ["node", "state"])


def downgrade() -> None:
    op.drop_index(op.f("ix_workspace_version_node_state"), "workspace_version")
    op.drop_index(op.f("ix_workspace_version_run_id"), "workspace_version")
    for table, columns in (("workspace_version", _OF_VERSION), ("run", _OF_RUN)):
        with op.batch_alter_table(table) as batch:
            for name in columns:
                batch.drop_column(name)
