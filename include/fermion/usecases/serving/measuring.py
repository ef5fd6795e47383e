"""From two readings of the router's counters to what a look is judged from, and to a service's live figures."""

from __future__ import annotations

from datetime import datetime

from fermion.domain.rollout.looks import CheckReading, Measured, Reading, proportion
from fermion.domain.rollout.plan import Kind, MetricRule, Plan, Way
from fermion.domain.serving.traffic import Window

ERROR_RATE = "error_rate"


def measured(
    plan: Plan,
    *,
    step: int,
    canary: Window | None,
    stable: Window | None,
    trouble: str = "",
    told_by: str = "the router",
    started_at: datetime,
    ended_at: datetime,
    checks: tuple[CheckReading, ...] = (),
) -> Measured:
    """What each of the plan's metrics gave in the window of that step. An arm without readings is an error, never a zero.

    ``trouble`` is why nothing could be read, empty where it could; ``told_by`` is who was asked. ``checks`` are what came of
    the output checks.
    """
    share = plan.steps[step].share
    if share.way is Way.MIRRORED and any(each.resets for each in (canary, stable) if each is not None):
        # What was counted of copies before may be in the later counts or not: nobody can tell.
        trouble = trouble or "what was counted of copies began anew in this window, because replicas changed."
    readings = [_reading(rule, canary, stable, trouble, told_by) for rule in plan.metrics]
    return Measured(
        step=step,
        weight_percent=share.weight_percent,
        split=share.split,
        mirror_percent=share.mirror_percent,
        started_at=started_at,
        ended_at=ended_at,
        readings=tuple(readings),
        checks=checks,
    )


def _reading(rule: MetricRule, canary: Window | None, stable: Window | None, trouble: str, told_by: str) -> Reading:
    if trouble:
        return Reading(metric=rule.name, error=trouble)
    if canary is None or stable is None:
        arm = "canary" if canary is None else "stable"
        return Reading(metric=rule.name, error=f"{told_by} told nothing about the {arm}'s requests in this window.")
    if rule.name == ERROR_RATE:
        return proportion(
            rule.name, canary=(canary.failures, canary.requests), stable=(stable.failures, stable.requests)
        )
    if rule.kind is Kind.QUANTILE:
        if canary.bounds_ms != stable.bounds_ms:
            return Reading(metric=rule.name, error="the two arms' latencies were counted in different buckets.")
        return Reading(
            metric=rule.name,
            canary=canary.buckets,
            stable=stable.buckets,
            bounds=tuple(bound / 1000 for bound in canary.bounds_ms),
        )
    return Reading(metric=rule.name, error=f"nothing measures {rule.name!r} here.")
