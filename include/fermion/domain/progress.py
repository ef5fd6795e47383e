"""What a training says of itself: one JSON object a line, ``{"progress": 35, "epoch": 3, "epochs": 10, "metrics": {"loss": 0.1}}``.

The lines come from user code, so nothing in them is trusted: what cannot be understood is left out with a remark,
never an error, and every size is bounded. Known keys are ``progress`` (percent), ``epoch``, ``epochs``, ``step``,
``metrics`` (name to number) and ``at`` (ISO 8601 or Unix seconds); others are ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, cast

from fermion.domain.jobs import Progress
from fermion.domain.records import MetricPoint

MAX_LINE_LENGTH: Final = 64 * 1024
MAX_METRIC_NAMES: Final = 100
MAX_NAME_LENGTH: Final = 80
MAX_COUNT: Final = 2**53
"""Epochs and steps above this are not counts any more, and cannot be kept exactly by every reader of JSON."""

_CLOCK_SKEW: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """Something in the lines that was left out or corrected; ``number`` is the first such line, ``count`` how many there were."""

    code: str
    message: str
    number: int
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricValue:
    """One finite value of one metric. ``number`` is its line's position in the attempt's progress file, from 0."""

    number: int
    name: str
    value: float
    at: datetime
    epoch: int | None = None
    step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedProgress:
    """The progress after the lines. ``names`` and ``next_number`` go into the next call; one remark for each kind."""

    progress: Progress
    points: tuple[MetricValue, ...]
    remarks: tuple[Remark, ...]
    names: frozenset[str]
    next_number: int

    def to_points(self, job_id: str, attempt: int) -> tuple[MetricPoint, ...]:
        """The values as records of one attempt."""
        return tuple(
            MetricPoint(
                job_id=job_id,
                attempt=attempt,
                number=point.number,
                kind="training",
                name=point.name,
                value=point.value,
                at=point.at,
                epoch=point.epoch,
                step=point.step,
            )
            for point in self.points
        )


def parse(
    lines: str | Iterable[str],
    previous: Progress,
    *,
    now: datetime,
    first_number: int = 0,
    names: frozenset[str] = frozenset(),
) -> ParsedProgress:
    """The progress and metric values that the lines say, going on from ``previous``.

    ``first_number`` is the position of the first line in the attempt's file; every line counts, also a broken one.
    ``names`` are the metric names of this attempt so far, so that their number stays bounded over many calls.
    Without ``progress``, the percent follows from ``epoch`` (finished ones) of ``epochs``. ``now`` is the time of lines
    that carry none.
    """
    reader = _Reader(previous, now=now, names=names)
    number = first_number
    for line in _split(lines) if isinstance(lines, str) else lines:
        reader.read(number, line)
        number += 1
    return ParsedProgress(
        progress=reader.progress,
        points=tuple(reader.points),
        remarks=tuple(reader.remarks.values()),
        names=frozenset(reader.names),
        next_number=number,
    )


def _split(text: str) -> list[str]:
    """Lines end with a line feed and nothing else; JSON strings may hold other characters that look like line ends."""
    return text.removesuffix("\n").split("\n") if text else []


class _Reader:
    """Gathers what line after line says."""

    def __init__(self, previous: Progress, *, now: datetime, names: frozenset[str]) -> None:
        self.progress = previous
        self.points: list[MetricValue] = []
        self.remarks: dict[str, Remark] = {}
        self.names = set(names)
        self._now = now
        self._at_line = 0

    def read(self, number: int, line: str) -> None:
        self._at_line = number
        said = self._object_of(line)
        if said is None:
            return
        at = self._time(said)
        epoch, epochs = self._epochs(said)
        step = self._count(said, "step")
        percent = self._percent(said)
        of = self.progress.epochs if epochs is None else epochs
        if percent is None and epoch is not None and of:
            percent = 100.0 * epoch / of
        metrics = self._metrics(said)
        self.points += [
            MetricValue(number=number, name=name, value=value, at=at, epoch=epoch, step=step) for name, value in metrics
        ]
        if metrics or any(value is not None for value in (percent, epoch, epochs, step)):
            self._move(percent, epoch, epochs, at)

    def _move(self, percent: float | None, epoch: int | None, epochs: int | None, at: datetime) -> None:
        before = self.progress
        self.progress = Progress(
            percent=before.percent if percent is None else percent,
            epoch=before.epoch if epoch is None else epoch,
            epochs=before.epochs if epochs is None else epochs,
            at=at,
        )

    def _object_of(self, line: str) -> Mapping[str, object] | None:
        if not line.strip():
            return None
        if len(line) > MAX_LINE_LENGTH:
            self._remark("too_long", f"a line has {len(line):,} characters; at most {MAX_LINE_LENGTH:,} are read")
            return None
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            self._remark("broken_json", "a line is not JSON")
            return None
        if not isinstance(said, dict):
            self._remark("not_an_object", "a line is JSON, but not an object")
            return None
        return cast(dict[str, object], said)

    def _percent(self, said: Mapping[str, object]) -> float | None:
        percent = self._number(said, "progress")
        if percent is not None and not 0 <= percent <= 100:
            self._remark("clamped", f"progress {percent:g} % was clamped to 0 to 100")
            return min(100.0, max(0.0, percent))
        return percent

    def _epochs(self, said: Mapping[str, object]) -> tuple[int | None, int | None]:
        epoch, epochs = self._count(said, "epoch"), self._count(said, "epochs")
        of = self.progress.epochs if epochs is None else epochs
        if epoch is not None and of is not None and epoch > of:
            self._remark("epoch_beyond", f"epoch {epoch} of {of} was taken as {of}")
            epoch = of
        return epoch, epochs

    def _count(self, said: Mapping[str, object], key: str) -> int | None:
        number = self._number(said, key)
        if number is not None and not 0 <= number <= MAX_COUNT:
            self._remark(f"{key}_out_of_range", f"{key} {number:g} is not a count")
            return None
        return None if number is None else int(number)

    def _metrics(self, said: Mapping[str, object]) -> list[tuple[str, float]]:
        metrics = said.get("metrics")
        if metrics is None:
            return []
        if not isinstance(metrics, dict):
            self._remark("metrics_not_an_object", "metrics are not an object of names and numbers")
            return []
        found = []
        for name in metrics:
            value = self._number(metrics, name, shown="a metric")
            if value is not None and self._is_name(name):
                found.append((name, value))
        return found

    def _is_name(self, name: str) -> bool:
        if name in self.names:
            return True
        if not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable():
            self._remark(
                "bad_metric_name", f"a metric's name is empty, unprintable or over {MAX_NAME_LENGTH} characters"
            )
        elif len(self.names) >= MAX_METRIC_NAMES:
            self._remark(
                "too_many_metrics", f"there are over {MAX_METRIC_NAMES} metric names; the later ones are left out"
            )
        else:
            self.names.add(name)
            return True
        return False

    def _time(self, said: Mapping[str, object]) -> datetime:
        value = said.get("at")
        if value is None:
            return self._now
        at = _time_of(value)
        if at is None or not self._now - timedelta(days=365) <= at <= self._now + _CLOCK_SKEW:
            self._remark("bad_time", "a line's time is none, lies in the future or over a year back; it was replaced")
            return self._now
        return min(at, self._now)

    def _number(self, said: Mapping[str, object], key: str, *, shown: str | None = None) -> float | None:
        """The finite number under a key, or None."""
        value = said.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._remark("not_a_number", f"{shown or key} is not a number")
            return None
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self._remark("not_finite", f"{shown or key} is not finite")
            return None
        return number

    def _remark(self, code: str, message: str) -> None:
        known = self.remarks.get(code)
        first = known or Remark(code=code, message=message, number=self._at_line, count=0)
        self.remarks[code] = Remark(code=code, message=first.message, number=first.number, count=first.count + 1)


def _time_of(value: object) -> datetime | None:
    try:
        if isinstance(value, str):
            at = datetime.fromisoformat(value)
            return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return None
