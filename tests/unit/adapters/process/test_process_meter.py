"""What a runner measures of its processes."""

from __future__ import annotations

import time

import pytest

from fermion.adapters.process.runner import meter
from fermion.adapters.process.runner.meter import LEAST_SPAN_S, Meter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock and the CPU seconds of what has ended, both told to move."""
    now = [100.0, 0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(meter, "reaped_cpu_s", lambda: now[1])
    return now


def test_no_mean_is_told_before_there_was_time_for_one(clock: list[float]) -> None:
    measured = Meter()
    assert measured.usage([])["cpu_cores"] is None, "a zero would be the first sample of every training"
    clock[:] = [100.0 + LEAST_SPAN_S, 0.4]
    assert measured.usage([])["cpu_cores"] == pytest.approx(0.8)
    clock[:] = [100.1 + LEAST_SPAN_S, 0.5]
    assert measured.usage([])["cpu_cores"] is None
    clock[:] = [100.0 + 3 * LEAST_SPAN_S, 0.9]
    assert measured.usage([])["cpu_cores"] == pytest.approx(0.5), "over all that it was not told for"
