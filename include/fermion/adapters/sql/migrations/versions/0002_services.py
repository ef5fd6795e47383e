"""Services, their revisions and replicas, rollouts with their looks, and what the router counted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")


def upgrade() -> None:
    """Make them."""
    _make_services()
    _make_revisions()
    _make_replicas()
    _make_rollouts()
    _make_answers("wishes")
    _make_answers("approvals")
    _make_looks()
    _make_traffic()


def _make_services() -> None:
    op.create_table(
        "services",
        sa.Column("seq", _BIG, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("prefix", sa.Text, nullable=False),
        sa.Column("port", sa.Integer),
        sa.Column("pool", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("closed_at", _TIME),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_services"),
        sa.UniqueConstraint("id", name="uq_services_id"),
    )
    for name in ("name", "prefix", "port"):
        _make_partial_index(f"ux_services_open_{name}", "services", name, where="closed_at IS NULL", unique=True)
    op.create_index("ix_services_created_at", "services", ["created_at", "seq"])


def _make_revisions() -> None:
    op.create_table(
        "revisions",
        sa.Column("seq", _BIG, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("service_id", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("phase", sa.Text, nullable=False),
        sa.Column("dag_id", sa.Text),
        sa.Column("run_id", sa.Text),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_revisions"),
        sa.UniqueConstraint("id", name="uq_revisions_id"),
        sa.UniqueConstraint("service_id", "number", name="uq_revisions_service_id_number"),
        sa.UniqueConstraint("dag_id", "run_id", name="uq_revisions_dag_id_run_id"),
        sa.ForeignKeyConstraint(["service_id"], ["services.id"], name="fk_revisions_service_id"),
    )
    _make_partial_index("ix_revisions_open", "revisions", "seq", where="phase NOT IN ('failed', 'retired')")


def _make_replicas() -> None:
    op.create_table(
        "replicas",
        sa.Column("seq", _BIG, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("service_id", sa.Text, nullable=False),
        sa.Column("revision_id", sa.Text, nullable=False),
        sa.Column("pool", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("phase", sa.Text, nullable=False),
        sa.Column("queued_at", _TIME, nullable=False),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_replicas"),
        sa.UniqueConstraint("name", name="uq_replicas_name"),
        sa.ForeignKeyConstraint(["service_id"], ["services.id"], name="fk_replicas_service_id"),
        sa.ForeignKeyConstraint(["revision_id"], ["revisions.id"], name="fk_replicas_revision_id"),
    )
    op.create_index("ix_replicas_service", "replicas", ["service_id", "phase"])
    op.create_index("ix_replicas_phase_pool", "replicas", ["phase", "pool"])


def _make_rollouts() -> None:
    op.create_table(
        "rollouts",
        sa.Column("seq", _BIG, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("service_id", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("phase", sa.Text, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_rollouts"),
        sa.UniqueConstraint("id", name="uq_rollouts_id"),
        sa.ForeignKeyConstraint(["service_id"], ["services.id"], name="fk_rollouts_service_id"),
    )
    open_ = "phase NOT IN ('aborted', 'promoted', 'rolled_back')"
    _make_partial_index("ux_rollouts_open", "rollouts", "service_id", where=open_, unique=True)
    _make_partial_index("ix_rollouts_open", "rollouts", "seq", where=open_)
    op.create_index("ix_rollouts_service", "rollouts", ["service_id", "created_at", "seq"])


def _make_answers(table: str) -> None:
    op.create_table(
        table,
        sa.Column("seq", _BIG, nullable=False),
        sa.Column("rollout_id", sa.Text, nullable=False),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("seq", name=f"pk_{table}"),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollouts.id"], name=f"fk_{table}_rollout_id"),
    )
    op.create_index(f"ix_{table}_rollout", table, ["rollout_id", "seq"])


def _make_looks() -> None:
    op.create_table(
        "looks",
        sa.Column("rollout_id", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("rollout_id", "number", name="pk_looks"),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollouts.id"], name="fk_looks_rollout_id"),
    )


def _make_traffic() -> None:
    op.create_table(
        "traffic",
        sa.Column("backend", sa.Text, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("backend", "at", name="pk_traffic"),
    )
    op.create_index("ix_traffic_at", "traffic", ["at"])


def _make_partial_index(name: str, table: str, column: str, *, where: str, unique: bool = False) -> None:
    op.create_index(name, table, [column], unique=unique, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
