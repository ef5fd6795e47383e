"""The rows of the memory store: published whole at each commit, so that a reader keeps the moment it began with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from fermion.domain.artifacts import DatasetVersion, Image
from fermion.domain.jobs import Job
from fermion.domain.leases import Lease
from fermion.domain.pools import Node
from fermion.domain.records import Decision, Event, LedgerEntry, MetricPoint, StageSpan, SyncRecord
from fermion.domain.rollout.looks import Look
from fermion.domain.rollout.rollouts import Approval, Rollout, Wish
from fermion.domain.serving.services import Replica, Revision, Service
from fermion.domain.serving.traffic import Counters
from fermion.errors import OutsideBroken

PointKey = tuple[str, int, str, int, str]


@dataclass(frozen=True, slots=True)
class Tables:
    """One moment. No dict in it changes once it is published."""

    jobs: Mapping[str, Job] = field(default_factory=dict)  # in order of insertion
    runs: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)  # a run to its jobs, oldest first
    leases: Mapping[str, Lease] = field(default_factory=dict)
    attempts: Mapping[tuple[str, str, int], str] = field(default_factory=dict)
    devices: Mapping[tuple[str, str, str], str] = field(default_factory=dict)  # held now: device to lease
    ledger: Mapping[int, LedgerEntry] = field(default_factory=dict)
    nodes: Mapping[tuple[str, str], Node] = field(default_factory=dict)
    pools: Mapping[str, datetime] = field(default_factory=dict)
    images: Mapping[str, Image] = field(default_factory=dict)
    datasets: Mapping[tuple[str, str], DatasetVersion] = field(default_factory=dict)
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    events: Mapping[int, Event] = field(default_factory=dict)
    points: Mapping[PointKey, MetricPoint] = field(default_factory=dict)
    spans: Mapping[tuple[str, int, str], StageSpan] = field(default_factory=dict)
    syncs: Mapping[str, SyncRecord] = field(default_factory=dict)
    memories: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    services: Mapping[str, Service] = field(default_factory=dict)  # in order of insertion, as all that follow
    revisions: Mapping[str, Revision] = field(default_factory=dict)
    replicas: Mapping[str, Replica] = field(default_factory=dict)
    rollouts: Mapping[str, Rollout] = field(default_factory=dict)
    wishes: Mapping[str, tuple[Wish, ...]] = field(default_factory=dict)  # a rollout to its own, oldest first
    approvals: Mapping[str, tuple[Approval, ...]] = field(default_factory=dict)
    looks: Mapping[str, tuple[Look, ...]] = field(default_factory=dict)  # a rollout to its own, by number
    traffic: Mapping[str, tuple[Counters, ...]] = field(default_factory=dict)  # a backend to its own, by time
    counters: Mapping[str, int] = field(default_factory=dict)


class Draft:
    """A transaction's view: the moment it began with, and its own copies of the tables that it writes."""

    def __init__(self, seen: Tables, *, read_only: bool) -> None:
        self.read_only = read_only
        self._seen = seen
        self._written: dict[str, dict[Any, Any]] = {}

    def see(self, table: str) -> Mapping[Any, Any]:
        """The table as this transaction sees it."""
        written = self._written.get(table)
        if written is not None:
            return written
        seen: Mapping[Any, Any] = getattr(self._seen, table)
        return seen

    def write(self, table: str) -> dict[Any, Any]:
        """This transaction's own copy of the table."""
        if self.read_only:
            raise OutsideBroken(f"a transaction that only reads cannot write {table}; use begin()", what="store")
        if table not in self._written:
            self._written[table] = dict(self.see(table))
        return self._written[table]

    def next(self, counter: str) -> int:
        """The counter's next number, from 1."""
        counters = self.write("counters")
        counters[counter] = counters.get(counter, 0) + 1
        return int(counters[counter])

    def published(self) -> Tables:
        """The next moment."""
        return replace(self._seen, **self._written)
