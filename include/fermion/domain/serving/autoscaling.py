"""How many replicas a service should have for its load: the formula of Kubernetes' HorizontalPodAutoscaler. Pure.

Source: kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale, "Algorithm details" and "Stabilization window".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum


class TargetMetric(StrEnum):
    """What is kept near its target."""

    CPU = "cpu"  # mean cores used over cores asked for, in percent
    GPU = "gpu"  # mean utilisation of the replicas' GPUs, in percent
    QPS = "qps"  # requests a second of each replica


_ROUNDING = 1e-9
"""So that exactly the tolerance is within it, whatever a quotient is rounded to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaling:
    """The wish. ``target`` is in the metric's own unit, per replica. Within ``tolerance`` of it nothing changes.

    Of the answers within ``down_window`` the largest counts, so that a dip takes nothing away; of those within
    ``up_window`` the smallest. A zero window acts at once.
    """

    metric: TargetMetric
    target: float
    min_replicas: int = 1
    max_replicas: int = 1
    tolerance: float = 0.1
    up_window: timedelta = timedelta(0)
    down_window: timedelta = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One answer of the formula, remembered for the windows."""

    at: datetime
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """What to do, with the numbers it was made from. ``value`` is None where nothing could be measured: nothing changes then."""

    replicas: int
    advised: int
    value: float | None
    current: int
    message: str
    recent: tuple[Advice, ...]


def decide(
    wish: Autoscaling,
    *,
    current: int,
    ready: int,
    value: float | None,
    recent: Sequence[Advice],
    now: datetime,
) -> Scaling:
    """How many replicas there should be.

    ``current`` is how many are wanted now, ``ready`` how many of them were measured, ``value`` the mean over those.

    1. Nothing measured: as it is, within the bounds. 2. Within the tolerance of the target: as it is.
    3. Else ``ceil(ready * value / target)``. 4. Scaling down waits for the largest advice of ``down_window``, scaling up
    for the smallest of ``up_window``. 5. Never below ``min_replicas`` or above ``max_replicas``.
    """
    advised = _advice(wish, current=current, ready=ready, value=value)
    known = [each for each in recent if now - each.at <= max(wish.up_window, wish.down_window)]
    if not recent:
        known.append(Advice(at=now, replicas=current))  # the first look takes nothing away at once
    known.append(Advice(at=now, replicas=advised))
    calm = _stabilised(wish, current=current, advised=advised, recent=known, now=now)
    replicas = min(max(calm, wish.min_replicas), wish.max_replicas)
    return Scaling(
        replicas=replicas,
        advised=advised,
        value=value,
        current=current,
        message=_message(wish, current=current, advised=advised, calm=calm, replicas=replicas, value=value),
        recent=tuple(known),
    )


def _advice(wish: Autoscaling, *, current: int, ready: int, value: float | None) -> int:
    if value is None or ready < 1 or not math.isfinite(value):
        return current
    ratio = value / wish.target
    return current if abs(ratio - 1.0) <= wish.tolerance + _ROUNDING else math.ceil(ready * ratio)


def _stabilised(wish: Autoscaling, *, current: int, advised: int, recent: Sequence[Advice], now: datetime) -> int:
    if advised > current and wish.up_window:
        floor = min(each.replicas for each in recent if now - each.at <= wish.up_window)
        return max(current, floor)
    if advised < current and wish.down_window:
        ceiling = max(each.replicas for each in recent if now - each.at <= wish.down_window)
        return min(current, ceiling)
    return advised


def _message(wish: Autoscaling, *, current: int, advised: int, calm: int, replicas: int, value: float | None) -> str:
    if value is None:
        return f"{wish.metric} was not measured; it stays at {replicas}."
    told = f"{wish.metric} is {value:.4g} a replica, its target {wish.target:.4g}: {advised} of {current} replicas"
    if calm != advised:
        told += f", {calm} while the stabilisation window lasts"
    if replicas != calm:
        told += f", {replicas} within {wish.min_replicas} to {wish.max_replicas}"
    return told + "."
