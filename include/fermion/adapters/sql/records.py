"""Decisions, events, metric points, spans and syncs in the database. Keeps ``ports.Records``.

Decisions and events of a transaction are written together at its end. On Postgres the events take a lock just before
the commit, so that their numbers become visible in order: a reader that goes on after the last number misses none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import cache

from sqlalchemy import Column, Executable, Table, Text, and_, bindparam, delete, func, literal, null, or_, select

from fermion.adapters.sql.bulk import Appended, Duplicate, Kind, among, insert_all
from fermion.adapters.sql.codec import (
    decision_of,
    decision_values,
    event_of,
    event_values,
    point_of,
    point_values,
    span_of,
    span_values,
    sync_of,
    sync_values,
)
from fermion.adapters.sql.link import Link
from fermion.adapters.sql.tables import decisions, events, memories, metric_points, spans, syncs
from fermion.domain.records import Decision, Event, MetricPoint, StageSpan, SyncRecord

_DECISION = Kind(decisions, Duplicate.SKIPPED)
_EVENT = Kind(events, exclusive="events")
_SPAN = Kind(spans, Duplicate.REPLACES)
_MEMORY = Kind(memories, Duplicate.REPLACES)
_DECISIONS = select(decisions).order_by(decisions.c.decided_at.desc(), decisions.c.seq.desc())
_EVENTS = select(events).where(events.c.seq > bindparam("after")).order_by(events.c.seq)
_NEWEST_EVENT = select(func.coalesce(func.max(events.c.seq), 0))
_NO_END = (1 << 63) - 1
_POINTS = (
    select(metric_points)
    .where(metric_points.c.job_id == bindparam("job"))
    .order_by(metric_points.c.at, metric_points.c.attempt, metric_points.c.number, metric_points.c.name)
)
_SPANS = select(spans).where(spans.c.job_id == bindparam("job")).order_by(spans.c.started_at, spans.c.attempt)
_MEMORY_OF = select(memories.c.payload).where(memories.c.key == bindparam("memory"))


@cache
def _touched(dialect: str) -> Executable:
    """The newest number, and after it the targets. A range of two ends goes by the index; of one end only, Postgres takes it
    for a third of the table and reads it all."""
    is_newer = and_(events.c.seq > bindparam("after"), events.c.seq <= bindparam("end"))
    is_wanted = or_(events.c.pool.is_(None), among(dialect, events.c.pool, "pools"))
    newest = select(func.max(events.c.seq), literal(None, Text))
    return newest.union_all(select(null(), events.c.target).where(is_newer, is_wanted))


_AGES: dict[str, tuple[Table, Column[datetime]]] = {
    "decisions": (decisions, decisions.c.decided_at),
    "events": (events, events.c.at),
    "points": (metric_points, metric_points.c.at),
}


class SqlRecords:
    """What is only ever appended."""

    def __init__(self, link: Link, appended: Appended) -> None:
        self._link = link
        self._appended = appended

    def add_decision(self, decision: Decision) -> None:
        """Written at the end of the transaction; one that is there already (by id) stays as it is."""
        self._appended.add(_DECISION, decision_values(decision))

    def decisions(self, *, subject: str | None = None, kind: str | None = None, limit: int = 100) -> Sequence[Decision]:
        """Newest first."""
        self._appended.flush()
        query = _DECISIONS.limit(limit)
        if subject is not None:
            query = query.where(decisions.c.subject == subject)
        if kind is not None:
            query = query.where(decisions.c.kind == kind)
        return [decision_of(row) for row in self._link.rows(query)]

    def add_event(self, event: Event) -> None:
        """Written at the end of the transaction."""
        self._appended.add(_EVENT, event_values(event))

    def events(self, *, target: str | None = None, after: int = 0, limit: int = 100) -> Sequence[tuple[int, Event]]:
        """Oldest first."""
        self._appended.flush()
        query = _EVENTS.limit(limit) if target is None else _EVENTS.where(events.c.target == target).limit(limit)
        return [(row.seq, event_of(row)) for row in self._link.rows(query, {"after": after})]

    def touched(self, after: int | None, *, pools: Collection[str]) -> tuple[int, frozenset[str]]:
        """One statement, so that number and targets are of one moment."""
        self._appended.flush()
        if after is None:
            return int(self._link.scalar(_NEWEST_EVENT)), frozenset()
        values = {"after": after, "end": _NO_END, "pools": sorted(pools)}
        rows = self._link.rows(_touched(self._link.dialect), values)
        newest = next((row[0] for row in rows if row[0] is not None), after)
        return max(newest, after), frozenset(row[1] for row in rows if row[1] is not None)

    def add_points(self, points: Sequence[MetricPoint]) -> int:
        """One statement for all."""
        rows = [point_values(point) for point in points]
        return insert_all(self._link, metric_points, rows, Duplicate.SKIPPED)

    def points(self, job_id: str, *, kind: str | None = None, name: str | None = None) -> Sequence[MetricPoint]:
        """By time, attempt and number."""
        query = _POINTS if kind is None else _POINTS.where(metric_points.c.kind == kind)
        query = query if name is None else query.where(metric_points.c.name == name)
        return [point_of(row) for row in self._link.rows(query, {"job": job_id})]

    def put_span(self, span: StageSpan) -> None:
        """Written at the end of the transaction."""
        self._appended.add(_SPAN, span_values(span))

    def put_spans(self, spans_: Sequence[StageSpan]) -> None:
        """Written at the end of the transaction."""
        for span in spans_:
            self.put_span(span)

    def spans(self, job_id: str) -> Sequence[StageSpan]:
        """By start."""
        self._appended.flush()
        return [span_of(row) for row in self._link.rows(_SPANS, {"job": job_id})]

    def put_sync(self, sync: SyncRecord) -> None:
        """Upsert; one that ended before the one known is dropped."""
        statement = self._link.insert(syncs)
        changed = {key: statement.excluded[key] for key in ("started_at", "ended_at", "items", "error")}
        newer = statement.excluded.ended_at >= syncs.c.ended_at
        statement = statement.on_conflict_do_update(index_elements=["source"], set_=changed, where=newer)
        self._link.write(statement, sync_values(sync))

    def syncs(self) -> Sequence[SyncRecord]:
        """By source."""
        return [sync_of(row) for row in self._link.rows(select(syncs).order_by(syncs.c.source))]

    def put_memory(self, key: str, payload: Mapping[str, object], *, now: datetime) -> None:
        """Written at the end of the transaction."""
        self._appended.add(_MEMORY, {"key": key, "payload": dict(payload), "kept_at": now})

    def memory(self, key: str) -> Mapping[str, object] | None:
        """By its key."""
        self._appended.flush()
        found: Mapping[str, object] | None = self._link.scalar(_MEMORY_OF, {"memory": key})
        return found

    def forget(self, *, before: datetime, kinds: Collection[str]) -> int:
        """``kinds``: ``decisions``, ``events``, ``points``.

        Raises:
            ValueError: a kind that is none of these.
        """
        unknown = set(kinds) - set(_AGES)
        if unknown:
            raise ValueError(f"cannot forget {', '.join(sorted(unknown))}; only {', '.join(_AGES)}")
        self._appended.flush()
        ages = [_AGES[kind] for kind in sorted(set(kinds))]
        return sum(self._link.write(delete(table).where(age < before)) for table, age in ages)
