"""The first tables: jobs, leases with their ledger, the catalog, records, counters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_TIME = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")


def upgrade() -> None:
    """Make them."""
    _make_jobs()
    _make_leases()
    _make_lease_devices()
    _make_ledger()
    _make_catalog()
    _make_datasets()
    _make_records()
    _make_spans_and_syncs()
    _make_counters()


def _make_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("seq", _BIG, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("phase", sa.Text, nullable=False),
        sa.Column("pool", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("dag_id", sa.Text),
        sa.Column("run_id", sa.Text),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("pins", sa.JSON),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("numbers", sa.JSON, nullable=False),
        sa.Column("excluded_nodes", sa.JSON, nullable=False),
        sa.Column("submitted_at", _TIME, nullable=False),
        sa.Column("changed_at", _TIME, nullable=False),
        sa.Column("queued_at", _TIME),
        sa.Column("started_at", _TIME),
        sa.Column("ended_at", _TIME),
        sa.Column("stop_requested_at", _TIME),
        sa.Column("stop_requested_by", sa.Text),
        sa.Column("preempted_for", sa.Text),
        sa.Column("model_version", sa.Integer),
        sa.Column("restart_of", sa.Text),
        sa.PrimaryKeyConstraint("seq", name="pk_jobs"),
        sa.UniqueConstraint("id", name="uq_jobs_id"),
    )
    op.create_index("ix_jobs_changed_at", "jobs", ["changed_at"])
    op.create_index("ix_jobs_phase_pool", "jobs", ["phase", "pool"])
    op.create_index("ix_jobs_run", "jobs", ["dag_id", "run_id", "seq"])
    op.create_index("ix_jobs_submitted_at", "jobs", ["submitted_at", "seq"])
    op.create_index(
        "ux_jobs_open_run",
        "jobs",
        ["dag_id", "run_id"],
        unique=True,
        sqlite_where=sa.text("phase NOT IN ('completed', 'failed')"),
        postgresql_where=sa.text("phase NOT IN ('completed', 'failed')"),
    )


def _make_leases() -> None:
    op.create_table(
        "leases",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("holder_kind", sa.Text, nullable=False),
        sa.Column("holder_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("team", sa.Text, nullable=False),
        sa.Column("pool", sa.Text, nullable=False),
        sa.Column("token", _BIG, nullable=False),
        sa.Column("slices", sa.JSON, nullable=False),
        sa.Column("granted_at", _TIME, nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.Column("phase", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("preemptible", sa.Boolean, nullable=False),
        sa.Column("ends_by", _TIME),
        sa.Column("exec_at", _TIME),
        sa.Column("exit_at", _TIME),
        sa.Column("ended_at", _TIME),
        sa.Column("end_cause", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_leases"),
        sa.UniqueConstraint("holder_kind", "holder_id", "attempt", name="uq_leases_holder_kind_holder_id_attempt"),
    )
    op.create_index("ix_leases_ended_at", "leases", ["ended_at"])
    op.create_index(
        "ix_leases_live",
        "leases",
        ["pool"],
        sqlite_where=sa.text("phase = 'held'"),
        postgresql_where=sa.text("phase = 'held'"),
    )


def _make_lease_devices() -> None:
    op.create_table(
        "lease_devices",
        sa.Column("lease_id", sa.Text, nullable=False),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("pool", sa.Text, nullable=False),
        sa.Column("live", sa.Boolean, nullable=False),
        sa.ForeignKeyConstraint(["lease_id"], ["leases.id"], name="fk_lease_devices_lease_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("lease_id", "node", "device", name="pk_lease_devices"),
    )
    op.create_index(
        "ux_lease_devices_live",
        "lease_devices",
        ["pool", "node", "device"],
        unique=True,
        sqlite_where=sa.text("live"),
        postgresql_where=sa.text("live"),
    )


def _make_ledger() -> None:
    op.create_table(
        "ledger",
        sa.Column("seq", _BIG, nullable=False),
        sa.Column("lease_id", sa.Text, nullable=False),
        sa.Column("pool", sa.Text, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("gpus", sa.Integer, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_ledger"),
    )
    op.create_index("ix_ledger_at", "ledger", ["at", "seq"])


def _make_catalog() -> None:
    op.create_table(
        "nodes",
        sa.Column("cluster", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("observed_at", _TIME, nullable=False),
        sa.Column("ready", sa.Boolean, nullable=False),
        sa.Column("schedulable", sa.Boolean, nullable=False),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("devices", sa.JSON, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("cluster", "name", name="pk_nodes"),
    )
    op.create_table(
        "pools",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("first_seen_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_pools"),
    )
    op.create_table(
        "images",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("category", sa.Text, nullable=False),
        sa.Column("source_type", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("framework", sa.Text),
        sa.Column("size_bytes", _BIG),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("updated_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_images"),
    )


def _make_datasets() -> None:
    op.create_table(
        "dataset_versions",
        sa.Column("seq", _BIG, nullable=False),
        sa.Column("dataset", sa.Text, nullable=False),
        sa.Column("checksum", sa.Text, nullable=False),
        sa.Column("uri", sa.Text, nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_dataset_versions"),
        sa.UniqueConstraint("dataset", "checksum", name="uq_dataset_versions_dataset_checksum"),
    )
    op.create_table(
        "dataset_files",
        sa.Column("version_seq", _BIG, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("size", _BIG, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(
            ["version_seq"], ["dataset_versions.seq"], name="fk_dataset_files_version_seq", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("version_seq", "number", name="pk_dataset_files"),
        sqlite_with_rowid=False,
    )


def _make_records() -> None:
    op.create_table(
        "decisions",
        sa.Column("seq", _BIG, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("rule_version", sa.Text, nullable=False),
        sa.Column("decided_at", _TIME, nullable=False),
        sa.Column("inputs", sa.JSON, nullable=False),
        sa.Column("numbers", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_decisions"),
        sa.UniqueConstraint("id", name="uq_decisions_id"),
    )
    op.create_index("ix_decisions_decided_at", "decisions", ["decided_at"])
    op.create_index("ix_decisions_subject", "decisions", ["subject", "decided_at"])
    op.create_table(
        "events",
        sa.Column("seq", _BIG, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("verb", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_events"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_at", "events", ["at"])
    op.create_index("ix_events_target", "events", ["target", "seq"])
    op.create_table(
        "metric_points",
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("number", _BIG, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("epoch", _BIG),
        sa.Column("step", _BIG),
        sa.PrimaryKeyConstraint("job_id", "attempt", "kind", "number", "name", name="pk_metric_points"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_metric_points_at", "metric_points", ["at"])


def _make_spans_and_syncs() -> None:
    op.create_table(
        "spans",
        sa.Column("job_id", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("stage", sa.Text, nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME),
        sa.Column("outcome", sa.Text),
        sa.Column("detail", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("job_id", "attempt", "stage", name="pk_spans"),
    )
    op.create_table(
        "syncs",
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME, nullable=False),
        sa.Column("items", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
        sa.PrimaryKeyConstraint("source", name="pk_syncs"),
    )
    op.create_table(
        "memories",
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.Column("kept_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_memories"),
    )


def _make_counters() -> None:
    op.create_table(
        "counters",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", _BIG, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_counters"),
    )
    op.create_table(
        "notices",
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("number", _BIG, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("topic", name="pk_notices"),
    )
