"""One metric over time: its extremes over every recorded point, and few enough points to keep and draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from fermion.domain.figures import Figure, Method
from fermion.domain.records import MetricPoint

SERIES_POINTS = 480
"""At most so many points of one metric are kept in a report: about as many as a chart has columns for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesPoint:
    """One value; None where what was recorded is not a finite number."""

    attempt: int
    at: datetime
    value: float | None
    epoch: int | None = None
    step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One metric over time. ``count`` points were recorded, ``points`` are those kept (see ``thin``).

    ``first`` to ``mean`` are over all recorded points that are numbers. ``reason`` says why there is no point.
    """

    name: str
    kind: str
    unit: str
    source: str
    count: int
    not_finite: int
    points: tuple[SeriesPoint, ...]
    first: Figure
    last: Figure
    lowest: Figure
    highest: Figure
    mean: Figure
    reason: str | None = None

    @property
    def is_thinned(self) -> bool:
        """Whether fewer points are kept than were recorded."""
        return len(self.points) < self.count


def build_series(
    name: str,
    points: Sequence[MetricPoint],
    *,
    kind: str,
    unit: str,
    source: str,
    now: datetime,
    reason: str = "no point was recorded",
) -> Series:
    """One metric's series with its extremes over all points; ``reason`` is used where there is none."""
    rows = [_row_of(point) for point in sorted(points, key=lambda point: (point.attempt, point.number))]
    finite = [row for row in rows if row.value is not None]
    why = "no recorded value is a finite number" if rows else reason

    def figure(row: SeriesPoint | None) -> Figure:
        return Figure(
            value=row.value if row else None,
            unit=unit,
            source=source,
            method=Method.MEASURED,
            observed_at=row.at if row else now,
            reason=None if row else why,
        )

    def worth(row: SeriesPoint) -> float:
        return row.value if row.value is not None else math.nan

    return Series(
        name=name,
        kind=kind,
        unit=unit,
        source=source,
        count=len(rows),
        not_finite=len(rows) - len(finite),
        points=thin(rows),
        first=figure(finite[0] if finite else None),
        last=figure(finite[-1] if finite else None),
        lowest=figure(min(finite, key=worth, default=None)),
        highest=figure(max(finite, key=worth, default=None)),
        mean=_mean(finite, unit=unit, source=source, now=now, reason=why),
        reason=None if finite else why,
    )


def _row_of(point: MetricPoint) -> SeriesPoint:
    return SeriesPoint(
        attempt=point.attempt,
        at=point.at,
        value=point.value if math.isfinite(point.value) else None,
        epoch=point.epoch,
        step=point.step,
    )


def _mean(finite: Sequence[SeriesPoint], *, unit: str, source: str, now: datetime, reason: str) -> Figure:
    # A plain sum: values at the end of what floats hold make it infinite, where fsum would raise.
    mean = sum(row.value or 0.0 for row in finite) / len(finite) if finite else math.nan
    is_number = math.isfinite(mean)
    return Figure(
        value=mean if is_number else None,
        unit=unit,
        source=f"mean of {len(finite)} points: {source}",
        method=Method.DERIVED,
        observed_at=now,
        reason=None if is_number else (f"the sum is too large: {mean}" if finite else reason),
    )


def thin(points: Sequence[SeriesPoint], limit: int = SERIES_POINTS) -> tuple[SeriesPoint, ...]:
    """At most ``limit`` (8 or more) of the points, in order, such that the picture stays honest.

    The first and last stay; of each of equally long buckets between them the lowest, the highest and the first that is
    not a number stay, so that no spike and no gap is smoothed away. Nothing is averaged or made up.
    """
    if len(points) <= limit:
        return tuple(points)
    inner = range(1, len(points) - 1)
    each = 3 if any(point.value is None for point in points) else 2
    buckets = (limit - 2) // each
    kept = {0, len(points) - 1}
    for bucket in range(buckets):
        indexes = inner[bucket * len(inner) // buckets : (bucket + 1) * len(inner) // buckets]
        finite = [(value, i) for i in indexes if (value := points[i].value) is not None]
        gaps = [i for i in indexes if points[i].value is None]
        if finite:
            kept |= {min(finite)[1], max(finite)[1]}
        kept |= set(gaps[:1])
    return tuple(points[i] for i in sorted(kept))
