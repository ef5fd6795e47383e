"""Admission: which waiting jobs start now, who is asked to make room, what is reserved, and why the others wait.

``decide`` is pure: the same snapshot and time give the same round, also after both went through their payloads. The
rules, in their order, stand in ``docs/queue.md``; a change of them changes ``RULE_VERSION``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import Any

from fermion.domain import fairshare, payloads
from fermion.domain.explain import Explainer
from fermion.domain.line import Reservation, ReservedFor, Waiting, waiting_of
from fermion.domain.picture import Picture
from fermion.domain.queues import Order, Queues
from fermion.domain.reasons import Explanation
from fermion.domain.snapshots import Grant, Preemption, Snapshot
from fermion.errors import NotFound

__all__ = [
    "RULE_VERSION",
    "Grant",
    "Preemption",
    "Reservation",
    "ReservedFor",
    "Round",
    "Snapshot",
    "Waiting",
    "decide",
    "waiting_of",
]

RULE_VERSION = "admission/3"


@dataclass(frozen=True, kw_only=True)
class Round:
    """The answer. Reasons are made when asked for: ``explain`` one job, or ``explanations`` of the first of the line."""

    decided_at: datetime
    grants: tuple[Grant, ...]
    preemptions: tuple[Preemption, ...]
    reservations: tuple[Reservation, ...]
    rule_version: str = RULE_VERSION
    _explainer: Explainer | None = field(default=None, compare=False, repr=False)
    _explained: Mapping[str, Explanation] = field(default_factory=dict, compare=False, repr=False)

    def explain(self, job_id: str) -> Explanation:
        """Why the job starts, or waits.

        Raises:
            NotFound: it is not of this round, or a stored round was not asked about it.
        """
        if job_id in self._explained:
            return self._explained[job_id]
        if self._explainer is None or job_id not in self._explainer:
            raise NotFound(f"this round decided nothing about job {job_id!r}", what="job")
        return self._explainer.explain(job_id)

    def explanations(self, *, limit: int | None = None) -> dict[str, Explanation]:
        """The reasons of jobs that were not granted, in the order of the line; of the first ``limit`` if given."""
        granted = {grant.job_id for grant in self.grants}
        ids: Iterable[str] = self._explained if self._explainer is None else self._explainer
        return {job_id: self.explain(job_id) for job_id in islice((each for each in ids if each not in granted), limit)}

    def to_payload(self, *, explain: Collection[str] | None = None) -> dict[str, Any]:
        """The round as JSON-ready data, with the reasons of the jobs in ``explain`` (None: of all that were granted or wait)."""
        ids = explain
        if ids is None:
            ids = [*(grant.job_id for grant in self.grants), *self.explanations()]
        told = {job_id: payloads.to_payload(self.explain(job_id)) for job_id in ids}
        return {**payloads.to_payload(self), "explanations": told}

    @staticmethod
    def from_payload(payload: Mapping[str, Any]) -> Round:
        """The round that ``to_payload`` wrote; it explains the jobs that were written."""
        told = {key: payloads.from_payload(Explanation, value) for key, value in payload["explanations"].items()}
        return replace(payloads.from_payload(Round, payload), _explained=told)


def decide(snapshot: Snapshot, now: datetime, *, queues: Queues | None = None) -> Round:
    """The round that these jobs, leases and pools give at ``now``.

    ``queues`` hold the snapshot's waiting jobs, where the caller keeps them; they must not change while the round is asked
    for reasons.

    1. The line is put in order: priority, jobs with a reservation, fair share, arrival.
    2. Each job in turn starts if limits, quota and placement let it, and if that delays no promise made before it.
    3. A job that does not takes from lower priorities, if it then would start.
    4. Else the first in line that has waited its grace time gets the reservation of its pool.

    The walk ends where nothing of this can happen any more.
    """
    picture = Picture(snapshot, now)
    order = Order(
        Queues(snapshot.waiting) if queues is None else queues,
        use=snapshot.use,
        weights=fairshare.weights(snapshot.pools),
        first=[reservation.job_id for reservation in snapshot.reservations],
    )
    oldest = order.queues.oldest() or now
    rooms = picture.rooms
    for job in order:
        room = rooms.get(job.pool)
        if room is None or not job.staged:
            continue
        if job.gpus > room.free or not picture.start(job):
            picture.hold(job)
            if picture.is_settled(job, oldest=oldest):
                break
    return Round(
        decided_at=now,
        grants=tuple(picture.grants.values()),
        preemptions=tuple(picture.preemptions.values()),
        reservations=tuple(picture.reservations.values()),
        _explainer=Explainer(picture, order),
    )
