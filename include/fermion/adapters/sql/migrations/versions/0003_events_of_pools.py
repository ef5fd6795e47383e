"""The pool that an event is about, so that a line reads the events of its own pools only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it; of the events before nobody knows it, and NULL says so."""
    op.add_column("events", sa.Column("pool", sa.Text))
