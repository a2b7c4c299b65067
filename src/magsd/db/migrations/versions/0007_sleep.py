"""Sleep: since when, how long on which day, after which time, and whose journal goes on."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_OF_RUN = ("log_epoch", "slept_at", "slept_version", "restored_from")


def upgrade() -> None:
    op.add_column("job", sa.Column("idle_timeout_s", sa.Integer()))
    op.add_column("run", sa.Column("log_epoch", sa.Integer()))
    op.add_column("run", sa.Column("slept_at", sa.BigInteger()))
    op.add_column("run", sa.Column("slept_version", sa.Integer()))
    op.add_column("run", sa.Column("restored_from", sa.String(128)))
    op.create_index("ix_run_account_id_slept_at", "run", ["account_id", "slept_at"])
    op.create_table(
        "nap",
        sa.Column("run_id", sa.String(40), nullable=False),
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("account_id", sa.String(40), nullable=False),
        sa.Column("microseconds", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.run_id"], name="fk_nap_run_id_run"),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.account_id"], name="fk_nap_account_id_account"
        ),
        sa.PrimaryKeyConstraint("run_id", "day", name="pk_nap"),
    )
    op.create_index("ix_nap_account_id_day", "nap", ["account_id", "day"])


def downgrade() -> None:
    op.drop_table("nap")
    op.drop_index("ix_run_account_id_slept_at", "run")
    with op.batch_alter_table("run") as batch:
        for name in _OF_RUN:
            batch.drop_column(name)
    with op.batch_alter_table("job") as batch:
        batch.drop_column("idle_timeout_s")
