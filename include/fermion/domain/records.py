"""What is written down beside the state: decisions that can be replayed, events that tell who did what, points of metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision with all it was made from. ``kind`` is admit, preempt, place, …; the same inputs give the same verdict.

    ``inputs`` and ``numbers`` are JSON-ready. ``rule_version`` names the code's rules at that time.
    """

    id: str
    kind: str
    subject: str
    verdict: str
    reason: str
    message: str
    rule_version: str
    decided_at: datetime
    inputs: Mapping[str, object] = field(default_factory=dict)
    numbers: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change: who (``actor``), what (``verb`` in the past tense, as ``job.granted``), to what (``target``), when, why.

    ``pool`` is the one whose line it is about; None tells nothing of that.
    """

    actor: str
    verb: str
    target: str
    at: datetime
    message: str = ""
    data: Mapping[str, object] = field(default_factory=dict)
    pool: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricPoint:
    """One value of one metric. ``kind`` is ``training`` (said by the code), ``system`` (measured by the driver) or
    ``exit`` (known once, when the attempt ended).

    ``number`` is the line's position in the attempt's progress file, so that reading it twice writes it once.
    """

    job_id: str
    attempt: int
    number: int
    kind: str
    name: str
    value: float
    at: datetime
    epoch: int | None = None
    step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpan:
    """How long one stage of a job took (``check_quota``, ``pull_image``, …). ``ended_at`` is None while it lasts."""

    job_id: str
    attempt: int
    stage: str
    started_at: datetime
    ended_at: datetime | None = None
    outcome: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One side of a grant or a release: ``gpus`` is positive at the grant and negative at the end, so a closed lease sums to 0."""

    lease_id: str
    pool: str
    holder: str
    kind: str
    gpus: int
    at: datetime
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRecord:
    """One finished sync of one source. A source that did not answer keeps its last state and says so in ``error``."""

    source: str
    started_at: datetime
    ended_at: datetime
    items: int
    error: str | None = None
