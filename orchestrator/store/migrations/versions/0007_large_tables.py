"""Indices for studies with many trials, and databases with many delivered events.

Revision ID: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_OWED = sa.text("delivered_at IS NULL")
_OPEN = sa.text("state IN ('waiting', 'running')")


def upgrade() -> None:
    op.drop_index("ix_outbox_owed", "outbox")
    op.create_index(
        "ix_outbox_owed", "outbox", ["study_id", "rejected", "id"], sqlite_where=_OWED, postgresql_where=_OWED
    )
    op.create_index("ix_trials_stage_id", "trials", ["stage_id", "id"])
    op.create_index("ix_trials_open", "trials", ["stage_id"], sqlite_where=_OPEN, postgresql_where=_OPEN)


def downgrade() -> None:
    op.drop_index("ix_trials_open", "trials")
    op.drop_index("ix_trials_stage_id", "trials")
    op.drop_index("ix_outbox_owed", "outbox")
    op.create_index("ix_outbox_owed", "outbox", ["delivered_at", "rejected", "id"])
