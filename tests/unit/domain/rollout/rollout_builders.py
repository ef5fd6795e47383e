"""Builders of rollout values for these tests: every argument has a default, so a test names only what it is about."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from builders import NOW, at, seconds
from fermion.domain.rollout.judging import judge
from fermion.domain.rollout.looks import Look, Measured, Reading, proportion
from fermion.domain.rollout.plan import Kind, MetricRule, Plan, Share, SplitRule, Step
from fermion.domain.rollout.reasons import Explanation, Reason
from fermion.domain.rollout.rollouts import Phase, Rollout

INTERVAL = timedelta(seconds=30)
ERRORS = MetricRule(name="error_rate")
LATENCY = MetricRule(name="latency_p95", kind=Kind.QUANTILE, quantile=0.95, tolerance=0.1)
BOUNDS = (0.1, 0.2, 0.4)
GROUP = SplitRule(header="x-group", value="beta")
BETA = SplitRule(cookie="beta", value="1")
STICKY = SplitRule(cookie="variant")
SHARES = {
    "drawn": Share(weight_percent=10),
    "header": Share(split=GROUP),
    "cookie": Share(split=BETA),
    "sticky": Share(weight_percent=10, split=STICKY),
    "copies": Share(mirror_percent=20),
}
"""One of each way."""


def make_step(weight_percent: float = 10, **changes: Any) -> Step:
    """A step that bakes one to five minutes."""
    return Step(**{"weight_percent": weight_percent, "bake_min": seconds(60), "bake_max": seconds(300), **changes})


def make_plan(weights: Sequence[float | Step] = (10, 50, 100), **changes: Any) -> Plan:
    """A plan that measures errors, a look every 30 s, 30 s of warm-up."""
    steps = tuple(each if isinstance(each, Step) else make_step(each) for each in weights)
    return Plan(**{"steps": steps, "metrics": (ERRORS,), "interval": INTERVAL, "warm_up": seconds(30), **changes})


def errors(
    canary: tuple[int, int] = (1, 100), stable: tuple[int, int] = (9, 900), *, metric: str = "error_rate"
) -> Reading:
    """A reading of the error rate: (bad, of all) in each arm."""
    return proportion(metric, canary=canary, stable=stable)


def latency(canary: Sequence[int], stable: Sequence[int], *, metric: str = "latency_p95") -> Reading:
    """A reading of four buckets that end at 100, 200 and 400 ms."""
    return Reading(metric=metric, canary=tuple(canary), stable=tuple(stable), bounds=BOUNDS)


def make_look(
    *readings: Reading,
    plan: Plan | None = None,
    previous: Look | None = None,
    step: int = 0,
    ended_s: float | None = None,
    share: Share | None = None,
) -> Look:
    """The look at these readings, one interval after the previous one; without readings one that passes."""
    begin = NOW if previous is None else previous.measured.ended_at
    end = begin + INTERVAL if ended_s is None else at(ended_s)
    share = share or Share(weight_percent=10)
    measured = Measured(
        step=step,
        weight_percent=share.weight_percent,
        split=share.split,
        mirror_percent=share.mirror_percent,
        started_at=end - INTERVAL,
        ended_at=end,
        readings=readings or (errors(),),
    )
    return judge(plan or make_plan(), measured, previous)


def make_rollout(phase: Phase = Phase.BAKING, **changes: Any) -> Rollout:
    """A rollout that entered its phase and its first step at ``NOW``."""
    had_none = phase in (Phase.WAITING, Phase.ABORTED)
    given: dict[str, Any] = {
        "id": "rollout-1",
        "service": "digits",
        "canary": "digits-2",
        "stable": "digits-1",
        "plan": make_plan(),
        "phase": phase,
        "explanation": Explanation(Reason.CREATED, "because"),
        "created_at": at(-600),
        "changed_at": NOW,
        "step_since": None if had_none else NOW,
        "baking_since": NOW if phase in (Phase.BAKING, Phase.AWAITING_APPROVAL, Phase.PAUSED) else None,
    }
    return Rollout(**{**given, **changes})
