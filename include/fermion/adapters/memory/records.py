"""Decisions, events, metric points, spans and syncs in memory. Keeps ``ports.Records``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Any

from fermion.adapters.memory.jsonlike import as_json
from fermion.adapters.memory.tables import Draft
from fermion.adapters.wording import clean
from fermion.domain.records import Decision, Event, MetricPoint, StageSpan, SyncRecord

_AGES: dict[str, Callable[[Any], datetime]] = {
    "decisions": lambda decision: decision.decided_at,
    "events": lambda event: event.at,
    "points": lambda point: point.at,
}


class MemoryRecords:
    """What is only ever appended."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def add_decision(self, decision: Decision) -> None:
        """One that is there already (by id) stays as it is."""
        plain = replace(
            decision,
            message=clean(decision.message),
            inputs=as_json(decision.inputs),
            numbers=as_json(decision.numbers),
        )
        self._draft.write("decisions").setdefault(decision.id, plain)

    def decisions(self, *, subject: str | None = None, kind: str | None = None, limit: int = 100) -> Sequence[Decision]:
        """Newest first."""
        stored: Sequence[Decision] = list(self._draft.see("decisions").values())[::-1]
        newest = sorted(stored, key=lambda decision: decision.decided_at, reverse=True)
        found = (
            decision
            for decision in newest
            if (subject is None or decision.subject == subject) and (kind is None or decision.kind == kind)
        )
        return list(islice(found, limit))

    def add_event(self, event: Event) -> None:
        """Append."""
        self._draft.write("events")[self._draft.next("events")] = replace(
            event, message=clean(event.message), data=as_json(event.data)
        )

    def events(self, *, target: str | None = None, after: int = 0, limit: int = 100) -> Sequence[tuple[int, Event]]:
        """Oldest first."""
        found = (
            (number, event)
            for number, event in self._draft.see("events").items()
            if number > after and (target is None or event.target == target)
        )
        return list(islice(found, limit))

    def touched(self, after: int | None, *, pools: Collection[str]) -> tuple[int, frozenset[str]]:
        """From the newest number back."""
        events = self._draft.see("events")
        newest = max(events, default=0)
        since = newest if after is None else after
        wanted = {None, *pools}
        return newest, frozenset(
            event.target for number, event in events.items() if number > since and event.pool in wanted
        )

    def add_points(self, points: Sequence[MetricPoint]) -> int:
        """Skip those that are there."""
        stored = self._draft.write("points")
        before = len(stored)
        for point in points:
            stored.setdefault((point.job_id, point.attempt, point.kind, point.number, point.name), point)
        return len(stored) - before

    def points(self, job_id: str, *, kind: str | None = None, name: str | None = None) -> Sequence[MetricPoint]:
        """By time, attempt and number."""
        found = [
            point
            for point in self._draft.see("points").values()
            if point.job_id == job_id and (kind is None or point.kind == kind) and (name is None or point.name == name)
        ]
        return sorted(found, key=lambda point: (point.at, point.attempt, point.number, point.name))

    def put_span(self, span: StageSpan) -> None:
        """Insert or replace."""
        self._draft.write("spans")[span.job_id, span.attempt, span.stage] = replace(span, detail=clean(span.detail))

    def put_spans(self, spans: Sequence[StageSpan]) -> None:
        """One after the other."""
        for span in spans:
            self.put_span(span)

    def spans(self, job_id: str) -> Sequence[StageSpan]:
        """By start."""
        found = [span for span in self._draft.see("spans").values() if span.job_id == job_id]
        return sorted(found, key=lambda span: (span.started_at, span.attempt, span.stage))

    def put_sync(self, sync: SyncRecord) -> None:
        """One that ended before the one known is dropped."""
        stored = self._draft.write("syncs")
        known: SyncRecord | None = stored.get(sync.source)
        if known is None or sync.ended_at >= known.ended_at:
            stored[sync.source] = sync

    def syncs(self) -> Sequence[SyncRecord]:
        """By source."""
        stored = self._draft.see("syncs")
        return [stored[key] for key in sorted(stored)]

    def put_memory(self, key: str, payload: Mapping[str, object], *, now: datetime) -> None:
        """Replaced whole."""
        self._draft.write("memories")[key] = as_json(payload)

    def memory(self, key: str) -> Mapping[str, object] | None:
        """By its key."""
        found: Mapping[str, object] | None = self._draft.see("memories").get(key)
        return found

    def forget(self, *, before: datetime, kinds: Collection[str]) -> int:
        """``kinds``: ``decisions``, ``events``, ``points``.

        Raises:
            ValueError: a kind that is none of these.
        """
        unknown = set(kinds) - set(_AGES)
        if unknown:
            raise ValueError(f"cannot forget {', '.join(sorted(unknown))}; only {', '.join(_AGES)}")
        return sum(self._forget(kind, before) for kind in set(kinds))

    def _forget(self, kind: str, before: datetime) -> int:
        stored = self._draft.write(kind)
        old = [key for key, value in stored.items() if _AGES[kind](value) < before]
        for key in old:
            del stored[key]
        return len(old)
