"""What is known of a running job: only what its lease, its progress and its limits tell."""

from __future__ import annotations

from datetime import datetime

import pytest

from builders import NOW, at, make_job, make_lease, make_spec, seconds
from fermion.domain.jobs import Job, Phase, Progress
from fermion.domain.running import expected_end, numbers_of


def running(percent: float, *, heard_s: float = 10, **changes: object) -> Job:
    progress = Progress(percent=percent, epoch=3, epochs=10, at=at(-heard_s))
    return make_job(phase=Phase.RUNNING, progress=progress, **changes)


def test_everything_that_is_known_is_told() -> None:
    lease = make_lease(gpus=2, held_s=63, exec_at=at(-60))
    assert numbers_of(running(25), lease, limit=seconds(300), now=NOW) == {
        "gpus": 2,
        "granted_at": at(-63).isoformat(),
        "running_since": at(-60).isoformat(),
        "ran_s": 60.0,
        "attempt": 1,
        "progress_percent": 25,
        "epoch": 3,
        "epochs": 10,
        "expected_end": at(140).isoformat(),
        "ends_by": at(240).isoformat(),
    }


def test_what_is_not_known_is_left_out() -> None:
    told = numbers_of(make_job(phase=Phase.STARTING), make_lease(held_s=3), limit=seconds(300), now=NOW)
    assert told == {"gpus": 1, "granted_at": at(-3).isoformat(), "attempt": 1}


@pytest.mark.parametrize(
    ("job", "began", "expected"),
    [
        pytest.param(running(50), at(-60), at(40), id="half done in 50 s"),
        pytest.param(running(100), at(-60), at(-10), id="done"),
        pytest.param(running(1), at(-60), at(4940), id="at the least progress that counts"),
        pytest.param(running(0.9), at(-60), None, id="below it"),
        pytest.param(running(50, attempt=2), at(-60), None, id="it went on from where an attempt ended"),
        pytest.param(
            running(50, spec=make_spec(checkpoint="job-20260302-001")), at(-60), None, id="it began at a checkpoint"
        ),
        pytest.param(running(50), None, None, id="its process was not seen"),
        pytest.param(running(50), at(-10), None, id="it was heard when it began"),
        pytest.param(make_job(phase=Phase.RUNNING), at(-60), None, id="it was never heard"),
    ],
)
def test_the_expected_end_is_told_by_the_pace_so_far(
    job: Job, began: datetime | None, expected: datetime | None
) -> None:
    assert expected_end(job, began) == expected
