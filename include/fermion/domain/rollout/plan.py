"""The plan of a canary rollout: how much traffic when, what is measured, and how sure one must be. Immutable once started.

Reading one from what a person wrote is ``plan_reading.py``, what is wrong with one is ``plan_problems.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

from fermion.domain.serving.tensors import Tensor, TensorSpec

FULL: Final = 100.0
"""The weight at which the canary has all the traffic."""


class Kind(StrEnum):
    """What a metric counts."""

    PROPORTION = "proportion"  # requests with something about them, of all requests
    QUANTILE = "quantile"  # a quantile of what each request gave, from the counts in the buckets of a histogram


class Worse(StrEnum):
    """Which way is worse."""

    HIGHER = "higher"  # errors, latency
    LOWER = "lower"  # tokens per second, share of good answers


class NoData(StrEnum):
    """What too few samples mean."""

    INCONCLUSIVE = "inconclusive"  # no step is passed without them
    FAIL = "fail"  # a failure, once they were too few for as long as bake_min
    NEUTRAL = "neutral"  # the metric need not be measured; it counts whenever it can be


class OnUndecided(StrEnum):
    """What happens when a step could be neither passed nor failed within ``bake_max``."""

    EXTEND = "extend"  # once more as long, then a person decides
    PAUSE = "pause"  # a person decides
    ROLL_BACK = "roll_back"  # back to stable


class OnApprovalTimeout(StrEnum):
    """What happens when nobody answers. Going on is not among it."""

    PAUSE = "pause"
    ROLL_BACK = "roll_back"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricRule:
    """One metric and what is asked of it.

    ``quantile`` is 0 to 1 and only for quantiles. ``guard`` is the value that must never be crossed, whatever stable does;
    None means none. ``tolerance`` is the largest relative worsening that is no failure however sure it is: 0.5 lets the
    canary be worse by half. ``weight`` is its share of alpha against the others'. ``min_samples`` in each arm, None
    means the plan's ``min_requests``. A proportion is 0 to 1, a latency is in seconds.
    """

    name: str
    kind: Kind = Kind.PROPORTION
    worse: Worse = Worse.HIGHER
    quantile: float | None = None
    guard: float | None = None
    tolerance: float = 0.5
    weight: float = 1.0
    min_samples: int | None = None
    no_data: NoData = NoData.INCONCLUSIVE

    @property
    def must_be_measured(self) -> bool:
        """Whether no step is passed without enough samples of it."""
        return self.no_data is not NoData.NEUTRAL

    @property
    def tail(self) -> float:
        """The share of requests that a quantile leaves on the worse side: 0.05 for a p95 latency."""
        if self.quantile is None:
            return 0.0
        return 1 - self.quantile if self.worse is Worse.HIGHER else self.quantile


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputCheck:
    """A sample request that the canary itself is asked, beside its traffic, and what its answer must look like.

    Every number of the answer must be finite whatever ``outputs`` says; an expected shape that begins with -1 must begin with
    the number of rows of the first input.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[TensorSpec, ...] = ()

    @property
    def rows(self) -> int | None:
        """How many answers are asked for; None where the sample does not say."""
        return self.inputs[0].shape[0] if self.inputs and self.inputs[0].shape else None


class Way(StrEnum):
    """How requests come to the canary."""

    DRAWN = "drawn"  # each by itself, by the weight
    STICKY = "sticky"  # each client once, by the weight; a cookie keeps it where it is
    MATCHED = "matched"  # those that bring a header or a cookie with one value
    MIRRORED = "mirrored"  # copies; clients are answered by stable


COMPARED: Final = frozenset({Way.DRAWN, Way.MIRRORED})
"""Ways in which nothing but chance tells the arms' requests apart, so that the test may compare them."""

WEIGHTLESS: Final = frozenset({Way.MATCHED, Way.MIRRORED})
"""Ways that have nothing to do with the weight, which is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRule:
    """How requests are split otherwise than by drawing each: by a ``header`` or a ``cookie`` that clients bring with exactly
    that ``value``, or, for a cookie without one, by drawing each client once. Header names are in lower case.
    """

    header: str | None = None
    cookie: str | None = None
    value: str | None = None

    @property
    def is_sticky(self) -> bool:
        """Whether the router itself sets the cookie."""
        return self.value is None

    def __str__(self) -> str:
        if self.header is not None:
            return f"header {self.header}: {self.value}"
        return f"cookie {self.cookie}" if self.value is None else f"cookie {self.cookie}={self.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What the canary gets of the requests. Without anything it is nothing."""

    weight_percent: float = 0.0
    split: SplitRule | None = None
    mirror_percent: int = 0

    @property
    def way(self) -> Way:
        """How requests come to it."""
        if self.split is not None:
            return Way.STICKY if self.split.is_sticky else Way.MATCHED
        return Way.MIRRORED if self.mirror_percent else Way.DRAWN

    @property
    def is_nothing(self) -> bool:
        """Whether it gets no request, and no copy of one."""
        return self.weight_percent <= 0 and self.way is Way.DRAWN

    def __str__(self) -> str:
        """As a sentence names it."""
        if self.way is Way.MIRRORED:
            return f"a copy of {self.mirror_percent} %"
        if self.way is Way.MATCHED:
            return f"the group with {self.split}"
        kept = f", kept by {self.split}" if self.split else ""
        return f"{self.weight_percent:g} %{kept}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One share of the canary. The last step's weight is 100, which is the promotion; it is not baked.

    ``split`` is how requests are split where each is not drawn by itself; ``mirror_percent`` of them are copied to the
    canary, whose answers nobody gets. ``approval`` asks a person before the step after this one.
    """

    weight_percent: float
    bake_min: timedelta = timedelta(minutes=2)
    bake_max: timedelta = timedelta(minutes=15)
    approval: bool = False
    split: SplitRule | None = None
    mirror_percent: int = 0

    @property
    def share(self) -> Share:
        """What the canary gets in it."""
        return Share(weight_percent=self.weight_percent, split=self.split, mirror_percent=self.mirror_percent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The whole of it.

    ``alpha`` bounds the chance that a canary which is just as good is rolled back for being worse, over all looks and
    metrics. ``interval`` is the time between looks; ``warm_up`` after each change of weight counts nothing.
    ``min_requests`` in each arm are enough for a verdict. ``ready_timeout`` is for the canary's replicas to be ready
    at the beginning, ``unready_limit`` for how long not all may be ready later, ``shift_timeout`` for a weight to be read back.
    ``output_checks`` are asked before the first weight and at every look. ``approvers`` are the users who may approve; none
    named means everybody who may answer.
    """

    steps: tuple[Step, ...]
    metrics: tuple[MetricRule, ...]
    alpha: float = 0.01
    interval: timedelta = timedelta(seconds=30)
    warm_up: timedelta = timedelta(seconds=30)
    min_requests: int = 20
    on_undecided: OnUndecided = OnUndecided.EXTEND
    approval_timeout: timedelta = timedelta(hours=4)
    on_approval_timeout: OnApprovalTimeout = OnApprovalTimeout.PAUSE
    ready_timeout: timedelta = timedelta(minutes=20)
    unready_limit: timedelta = timedelta(minutes=1)
    shift_timeout: timedelta = timedelta(minutes=2)
    output_checks: tuple[OutputCheck, ...] = ()
    approvers: tuple[str, ...] = ()

    def may_approve(self, user: str) -> bool:
        """Whether that user's approval counts."""
        return not self.approvers or user in self.approvers

    @property
    def total_weight(self) -> float:
        """The weights of all metrics together."""
        return sum(rule.weight for rule in self.metrics)

    def alpha_of(self, rule: MetricRule) -> float:
        """That metric's part of alpha."""
        return self.alpha * rule.weight / self.total_weight

    def samples_of(self, rule: MetricRule) -> int:
        """How many requests that metric needs in each arm for a verdict."""
        return self.min_requests if rule.min_samples is None else rule.min_samples

    @property
    def asking_steps(self) -> tuple[int, ...]:
        """The steps that are left only when a person says so."""
        return tuple(number for number, step in enumerate(self.steps) if step.approval)

    def is_last(self, step: int) -> bool:
        """Whether that step is the promotion."""
        return step >= len(self.steps) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A metric that can be measured: its kind, which way is worse, and the shortest time between two measurements.

    ``tolerance`` is what a plan gets that gives none.
    """

    name: str
    kind: Kind = Kind.PROPORTION
    worse: Worse = Worse.HIGHER
    quantile: float | None = None
    tolerance: float = 0.5
    min_interval: timedelta = timedelta(seconds=1)


def _latency(name: str, quantile: float) -> Source:
    return Source(name=name, kind=Kind.QUANTILE, quantile=quantile, tolerance=0.1)


SOURCES: Final[Mapping[str, Source]] = {
    source.name: source
    for source in (
        Source(name="error_rate"),
        _latency("latency_p50", 0.5),
        _latency("latency_p90", 0.9),
        _latency("latency_p95", 0.95),
        _latency("latency_p99", 0.99),
    )
}
"""What every router measures."""

USUAL: Final = ("error_rate", "latency_p95")
"""The metrics of a plan that names none."""
