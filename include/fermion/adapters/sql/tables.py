"""The tables of the platform's own database; ``docs/state.md`` says what a row of each means.

Both databases behave alike: times are aware UTC with microseconds, a metric may be NaN, text may hold any character.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeDecorator, TypeEngine

from fermion.adapters.wording import clean

REVISION = "0003"
"""The migration that makes exactly these tables."""

VERSION_TABLE = "fermion_schema"
"""Where Alembic keeps the revision; a name of its own, so that it never meets another program's ``alembic_version``."""


class UtcTime(TypeDecorator[datetime]):
    """An aware UTC time: ``timestamptz`` on Postgres; on SQLite text of one width, so that text order is time order."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[datetime]:
        kind: TypeEngine[Any] = Text() if dialect.name == "sqlite" else DateTime(timezone=True)
        return dialect.type_descriptor(kind)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | str | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"the time {value.isoformat()} has no time zone; times are aware UTC")
        value = value.astimezone(UTC)
        return value.isoformat(timespec="microseconds") if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | str | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return datetime.fromisoformat(value) if isinstance(value, str) else value.astimezone(UTC)


class Words(TypeDecorator[str]):
    """Text from outside. NUL and half surrogates, which no database can hold as text, become U+FFFD."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else clean(value)


class Number(TypeDecorator[float]):
    """A double. NaN is kept as NULL, because SQLite has no NaN: a diverged loss is still a point."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: float | None, dialect: Dialect) -> float | None:
        return None if value is None or math.isnan(value) else float(value)

    def process_result_value(self, value: float | None, dialect: Dialect) -> float:
        return math.nan if value is None else value


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)

_BIG = BigInteger().with_variant(Integer(), "sqlite")
_JSON = JSON(none_as_null=True)

jobs = Table(
    "jobs",
    metadata,
    Column("seq", _BIG, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("version", Integer, nullable=False),
    Column("phase", Text, nullable=False),
    Column("pool", Text, nullable=False),
    Column("owner", Words, nullable=False),
    Column("dag_id", Text),
    Column("run_id", Text),
    Column("attempt", Integer, nullable=False),
    Column("spec", _JSON, nullable=False),
    Column("pins", _JSON),
    Column("progress", _JSON, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Words, nullable=False),
    Column("numbers", _JSON, nullable=False),
    Column("excluded_nodes", _JSON, nullable=False),
    Column("submitted_at", UtcTime, nullable=False),
    Column("changed_at", UtcTime, nullable=False),
    Column("queued_at", UtcTime),
    Column("started_at", UtcTime),
    Column("ended_at", UtcTime),
    Column("stop_requested_at", UtcTime),
    Column("stop_requested_by", Words),
    Column("preempted_for", Text),
    Column("model_version", Integer),
    Column("restart_of", Text),
    # A cleared run trains again: it may carry several jobs, of which one is open.
    Index(
        "ux_jobs_open_run",
        "dag_id",
        "run_id",
        unique=True,
        sqlite_where=text("phase NOT IN ('completed', 'failed')"),
        postgresql_where=text("phase NOT IN ('completed', 'failed')"),
    ),
    Index("ix_jobs_run", "dag_id", "run_id", "seq"),
    Index("ix_jobs_phase_pool", "phase", "pool"),
    Index("ix_jobs_submitted_at", "submitted_at", "seq"),
    Index("ix_jobs_changed_at", "changed_at"),
)

leases = Table(
    "leases",
    metadata,
    Column("id", Text, primary_key=True),
    Column("holder_kind", Text, nullable=False),
    Column("holder_id", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("owner", Words, nullable=False),
    Column("team", Words, nullable=False),
    Column("pool", Text, nullable=False),
    Column("token", _BIG, nullable=False),
    Column("slices", _JSON, nullable=False),
    Column("granted_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("phase", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("preemptible", Boolean, nullable=False),
    Column("ends_by", UtcTime),
    Column("exec_at", UtcTime),
    Column("exit_at", UtcTime),
    Column("ended_at", UtcTime),
    Column("end_cause", Words),
    UniqueConstraint("holder_kind", "holder_id", "attempt"),
    Index("ix_leases_live", "pool", sqlite_where=text("phase = 'held'"), postgresql_where=text("phase = 'held'")),
    Index("ix_leases_ended_at", "ended_at"),
)

lease_devices = Table(
    "lease_devices",
    metadata,
    Column("lease_id", Text, ForeignKey("leases.id", ondelete="CASCADE"), primary_key=True),
    Column("node", Text, primary_key=True),
    Column("device", Text, primary_key=True),
    Column("pool", Text, nullable=False),
    Column("live", Boolean, nullable=False),
    # The database itself refuses to hold one device twice, whatever the code above it believes.
    Index(
        "ux_lease_devices_live",
        "pool",
        "node",
        "device",
        unique=True,
        sqlite_where=text("live"),
        postgresql_where=text("live"),
    ),
)

ledger = Table(
    "ledger",
    metadata,
    Column("seq", _BIG, primary_key=True, autoincrement=True),
    Column("lease_id", Text, nullable=False),
    Column("pool", Text, nullable=False),
    Column("holder", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("gpus", Integer, nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("cause", Words, nullable=False),
    Index("ix_ledger_at", "at", "seq"),
)

nodes = Table(
    "nodes",
    metadata,
    Column("cluster", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("observed_at", UtcTime, nullable=False),
    Column("ready", Boolean, nullable=False),
    Column("schedulable", Boolean, nullable=False),
    Column("labels", _JSON, nullable=False),
    Column("devices", _JSON, nullable=False),
    Column("detail", Words, nullable=False),
)

pools = Table(
    "pools",
    metadata,
    Column("id", Text, primary_key=True),
    Column("first_seen_at", UtcTime, nullable=False),
)

images = Table(
    "images",
    metadata,
    Column("id", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("category", Text, nullable=False),
    Column("source_type", Text, nullable=False),
    Column("source", Words, nullable=False),
    Column("framework", Text),
    Column("size_bytes", _BIG),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
)

dataset_versions = Table(
    "dataset_versions",
    metadata,
    Column("seq", _BIG, primary_key=True, autoincrement=True),
    Column("dataset", Text, nullable=False),
    Column("checksum", Text, nullable=False),
    Column("uri", Words, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    UniqueConstraint("dataset", "checksum"),
)

dataset_files = Table(
    "dataset_files",
    metadata,
    Column("version_seq", _BIG, ForeignKey("dataset_versions.seq", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("path", Words, nullable=False),
    Column("size", _BIG, nullable=False),
    Column("sha256", Text, nullable=False),
    sqlite_with_rowid=False,
)

decisions = Table(
    "decisions",
    metadata,
    Column("seq", _BIG, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Words, nullable=False),
    Column("rule_version", Text, nullable=False),
    Column("decided_at", UtcTime, nullable=False),
    Column("inputs", _JSON, nullable=False),
    Column("numbers", _JSON, nullable=False),
    Index("ix_decisions_subject", "subject", "decided_at"),
    Index("ix_decisions_decided_at", "decided_at"),
)

events = Table(
    "events",
    metadata,
    Column("seq", _BIG, primary_key=True, autoincrement=True),
    Column("actor", Words, nullable=False),
    Column("verb", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("message", Words, nullable=False),
    Column("data", _JSON, nullable=False),
    Column("pool", Text),
    Index("ix_events_target", "target", "seq"),
    Index("ix_events_at", "at"),
    # Without it SQLite gives the number of a deleted newest row again, and a reader that goes on after it misses a row.
    sqlite_autoincrement=True,
)

metric_points = Table(
    "metric_points",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("number", _BIG, primary_key=True),
    Column("name", Words, primary_key=True),
    Column("value", Number),
    Column("at", UtcTime, nullable=False),
    Column("epoch", _BIG),
    Column("step", _BIG),
    Index("ix_metric_points_at", "at"),
    sqlite_with_rowid=False,
)

spans = Table(
    "spans",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("stage", Text, primary_key=True),
    Column("started_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
    Column("outcome", Text),
    Column("detail", Words, nullable=False),
)

syncs = Table(
    "syncs",
    metadata,
    Column("source", Text, primary_key=True),
    Column("started_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime, nullable=False),
    Column("items", Integer, nullable=False),
    Column("error", Words),
)

memories = Table(
    "memories",
    metadata,
    Column("key", Text, primary_key=True),
    Column("payload", _JSON, nullable=False),
    Column("kept_at", UtcTime, nullable=False),
)

OPEN_REVISION = text("phase NOT IN ('failed', 'retired')")
OPEN_ROLLOUT = text("phase NOT IN ('aborted', 'promoted', 'rolled_back')")
"""Queries say it in the very words of the index, or they could not use it."""

services = Table(
    "services",
    metadata,
    Column("seq", _BIG, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("version", Integer, nullable=False),
    Column("name", Words, nullable=False),
    Column("prefix", Words, nullable=False),
    Column("port", Integer),
    Column("pool", Text, nullable=False),
    Column("owner", Words, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("closed_at", UtcTime),
    Column("payload", _JSON, nullable=False),
    # The database itself refuses two open services of one name or on one route.
    *(
        Index(
            f"ux_services_open_{name}",
            name,
            unique=True,
            sqlite_where=text("closed_at IS NULL"),
            postgresql_where=text("closed_at IS NULL"),
        )
        for name in ("name", "prefix", "port")
    ),
    Index("ix_services_created_at", "created_at", "seq"),
)

revisions = Table(
    "revisions",
    metadata,
    Column("seq", _BIG, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("service_id", Text, ForeignKey("services.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("phase", Text, nullable=False),
    Column("dag_id", Text),
    Column("run_id", Text),
    Column("payload", _JSON, nullable=False),
    UniqueConstraint("service_id", "number"),
    UniqueConstraint("dag_id", "run_id"),
    Index("ix_revisions_open", "seq", sqlite_where=OPEN_REVISION, postgresql_where=OPEN_REVISION),
)

replicas = Table(
    "replicas",
    metadata,
    Column("seq", _BIG, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False, unique=True),
    Column("service_id", Text, ForeignKey("services.id"), nullable=False),
    Column("revision_id", Text, ForeignKey("revisions.id"), nullable=False),
    Column("pool", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("phase", Text, nullable=False),
    Column("queued_at", UtcTime, nullable=False),
    Column("payload", _JSON, nullable=False),
    Index("ix_replicas_service", "service_id", "phase"),
    Index("ix_replicas_phase_pool", "phase", "pool"),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("seq", _BIG, primary_key=True, autoincrement=True),
    Column("id", Text, nullable=False, unique=True),
    Column("service_id", Text, ForeignKey("services.id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("phase", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("payload", _JSON, nullable=False),
    Index(
        "ux_rollouts_open",
        "service_id",
        unique=True,
        sqlite_where=OPEN_ROLLOUT,
        postgresql_where=OPEN_ROLLOUT,
    ),
    Index("ix_rollouts_open", "seq", sqlite_where=OPEN_ROLLOUT, postgresql_where=OPEN_ROLLOUT),
    Index("ix_rollouts_service", "service_id", "created_at", "seq"),
)

wishes = Table(
    "wishes",
    metadata,
    Column("seq", _BIG, primary_key=True, autoincrement=True),
    Column("rollout_id", Text, ForeignKey("rollouts.id"), nullable=False),
    Column("payload", _JSON, nullable=False),
    Index("ix_wishes_rollout", "rollout_id", "seq"),
)

approvals = Table(
    "approvals",
    metadata,
    Column("seq", _BIG, primary_key=True, autoincrement=True),
    Column("rollout_id", Text, ForeignKey("rollouts.id"), nullable=False),
    Column("payload", _JSON, nullable=False),
    Index("ix_approvals_rollout", "rollout_id", "seq"),
)

looks = Table(
    "looks",
    metadata,
    Column("rollout_id", Text, ForeignKey("rollouts.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("payload", _JSON, nullable=False),
)

traffic = Table(
    "traffic",
    metadata,
    Column("backend", Text, primary_key=True),
    Column("at", UtcTime, primary_key=True),
    Column("payload", _JSON, nullable=False),
    Index("ix_traffic_at", "at"),
)

counters = Table(
    "counters",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", _BIG, nullable=False),
)

notices = Table(
    "notices",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("number", _BIG, nullable=False),
    Column("payload", Words, nullable=False),
)
