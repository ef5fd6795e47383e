"""One look at a canary: what was measured in a window, what it means for each metric and in all.

A look holds what it was judged from and all that the next one needs, so a look costs the same after a thousand others, and
judging it again gives the same (``replay.py``). The rules, in their order, stand in ``docs/rollouts.md``; a change of them
changes ``RULE_VERSION``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from fermion.domain.rollout.evidence import Evidence
from fermion.domain.rollout.plan import MetricRule, Plan, Share, SplitRule, Way
from fermion.domain.serving.output_check import OutputSeen

RULE_VERSION: Final = "rollout/3"


class Outcome(StrEnum):
    """What a look says, of one metric or in all."""

    ERROR = "error"  # it could not be measured; neither a pass nor a failure
    NODATA = "nodata"  # too few samples yet
    FAIL = "fail"  # a guard is crossed, or the canary is surely and clearly worse
    PASS = "pass"  # nothing of that, with enough samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was measured of one metric in the window: counts by bucket in each arm (see ``measures.py``), or why not.

    A proportion is made by ``proportion``. Of a quantile ``bounds`` are the ends of all buckets but the last, increasing.
    """

    metric: str
    canary: tuple[int, ...] = ()
    stable: tuple[int, ...] = ()
    bounds: tuple[float, ...] = ()
    error: str | None = None


def proportion(metric: str, *, canary: tuple[int, int], stable: tuple[int, int]) -> Reading:
    """The reading of a proportion: (with it, of all) in each arm."""
    return Reading(metric=metric, canary=(canary[1] - canary[0], canary[0]), stable=(stable[1] - stable[0], stable[0]))


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReading:
    """What came of one output check. ``replica`` was asked; None: none of the canary's was ready.

    ``outputs`` are its answer; ``refused`` is what it said where that was no outputs; ``error`` is why it could not be asked.
    """

    check: str
    replica: str | None = None
    outputs: tuple[OutputSeen, ...] = ()
    refused: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All that was measured in one window. What the canary gets did not change within it.

    Before the first step it gets nothing, and there is no traffic to read: such a look judges the ``checks`` only. Of copies
    the readings are those of what replicas answered, in both arms.
    """

    step: int
    weight_percent: float
    started_at: datetime
    ended_at: datetime
    readings: tuple[Reading, ...]
    checks: tuple[CheckReading, ...] = ()
    split: SplitRule | None = None
    mirror_percent: int = 0

    @property
    def share(self) -> Share:
        """What the canary got."""
        return Share(weight_percent=self.weight_percent, split=self.split, mirror_percent=self.mirror_percent)

    @property
    def is_before_traffic(self) -> bool:
        """Whether the canary got nothing yet."""
        return self.share.is_nothing

    @property
    def counted_percent(self) -> float | None:
        """The canary's part of all requests that were counted, the split as it really was; None without any.

        Of copies too: they are no part of the requests.
        """
        arms = next((each for each in self.readings if each.canary or each.stable), None)
        if arms is None or self.share.way is Way.MIRRORED:
            return None
        canary, stable = sum(arms.canary), sum(arms.stable)
        return 100 * canary / (canary + stable) if canary + stable else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What the next look needs to know of one metric.

    ``evidence`` is of the whole rollout. All else is of this step and empty at the beginning of the next: ``lately_*``
    are the counts of its looks, those of older ones counting less; ``fresh_*`` those since the last verdict, which began at
    ``fresh_since``; ``passed_at`` is when it passed last.
    """

    evidence: Evidence = field(default_factory=Evidence)
    bounds: tuple[float, ...] = ()
    lately_canary: tuple[float, ...] = ()
    lately_stable: tuple[float, ...] = ()
    fresh_canary: tuple[int, ...] = ()
    fresh_stable: tuple[int, ...] = ()
    fresh_since: datetime | None = None
    passed_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricLook:
    """What one look says of one metric.

    ``statistic`` is the log of the evidence against "both arms are alike", ``bound`` what a failure needs of it: the log of
    one over the metric's alpha. The values and ``worsening`` (relative; 0.5 is worse by half) are of the step so far, older
    looks counting less; None where unknown or without end. ``canary_samples`` and ``stable_samples`` are those since the
    last verdict.
    """

    metric: str
    outcome: Outcome
    sentence: str
    statistic: float
    bound: float
    canary_value: float | None = None
    stable_value: float | None = None
    worsening: float | None = None
    canary_samples: int = 0
    stable_samples: int = 0
    carried: Carried = Carried()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckLook:
    """What one look says of one output check."""

    check: str
    outcome: Outcome
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look. ``number`` counts from 1 through the whole rollout.

    ``failed_look`` is the number of the first look that failed, this one or one before, and ``failure`` its sentence:
    a failure is never forgotten, also where whoever looked then could not act on it.
    """

    number: int
    measured: Measured
    outcome: Outcome
    sentence: str
    metrics: tuple[MetricLook, ...]
    checks: tuple[CheckLook, ...] = ()
    failed_look: int | None = None
    failure: str = ""
    rule_version: str = RULE_VERSION

    def of(self, metric: str) -> MetricLook | None:
        """What it says of that metric."""
        return next((each for each in self.metrics if each.metric == metric), None)

    @property
    def has_passed_checks(self) -> bool:
        """Whether the canary was asked every output check, and gave what each of them wants."""
        return all(each.outcome is Outcome.PASS for each in self.checks)


def has_passed(plan: Plan, look: Look, *, since: datetime) -> bool:
    """Whether the step, which bakes since then, may be left by what was measured in it.

    Every metric that must be measured has passed since, no longer ago than the step's ``bake_min`` (or one interval, if
    that is longer), and the look found no error and no failure. Silence is not enough: without new samples a pass grows old,
    and an output check that nobody was ready to answer lets no step be left.
    """
    if look.failed_look is not None or look.outcome in (Outcome.ERROR, Outcome.FAIL) or not look.has_passed_checks:
        return False
    return any(each.carried.passed_at for each in look.metrics) and not missing(plan, look, since=since)


def missing(plan: Plan, look: Look, *, since: datetime) -> tuple[MetricRule, ...]:
    """The metrics that keep a step, which bakes since then, from being left: they have not passed, or too long ago."""
    recent = max(since, look.measured.ended_at - max(plan.steps[look.measured.step].bake_min, plan.interval))
    found = {each.metric: each for each in look.metrics}
    needed = (rule for rule in plan.metrics if rule.must_be_measured)
    return tuple(rule for rule in needed if not _passed_since(found.get(rule.name), recent))


def _passed_since(found: MetricLook | None, recent: datetime) -> bool:
    return found is not None and found.carried.passed_at is not None and found.carried.passed_at >= recent
