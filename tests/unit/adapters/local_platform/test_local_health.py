"""When the running platform counts as healthy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fermion.adapters.local_platform.health import COMPONENTS, problems, unread

START = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
STARTED = dict.fromkeys(COMPONENTS, START)


def make_health(*, beat: datetime = START, **changed: dict[str, Any]) -> dict[str, Any]:
    parts: dict[str, Any] = {"metadatabase": {"status": "healthy"}}
    for component in COMPONENTS:
        parts[component] = {"status": "healthy", f"latest_{component}_heartbeat": beat.isoformat()}
    return {**parts, **changed}


def test_healthy_parts_with_a_sign_of_life_since_the_start_are_healthy() -> None:
    assert problems(make_health(), started=STARTED) == []


def test_a_sign_of_life_left_by_a_killed_predecessor_does_not_count() -> None:
    found = problems(make_health(beat=START - timedelta(seconds=1)), started=STARTED)

    assert found == [
        f"the {name} has not given a sign of life since its start"
        for name in ("scheduler", "dag processor", "triggerer")
    ]


def test_without_a_known_start_the_status_alone_counts() -> None:
    assert problems(make_health(beat=START - timedelta(days=1)), started={}) == []


@pytest.mark.parametrize(
    ("health", "sentence"),
    [
        pytest.param(None, "the API server does not answer yet", id="no answer"),
        pytest.param(
            make_health(metadatabase={"status": "unhealthy"}), "Airflow's database is not healthy", id="database"
        ),
        pytest.param(make_health(triggerer={"status": None}), "the triggerer is not there", id="no triggerer yet"),
        pytest.param(
            make_health(dag_processor={"status": "unhealthy"}), "the dag processor is unhealthy", id="unhealthy"
        ),
        pytest.param(make_health(scheduler=None), "the scheduler is not there", id="not even mentioned"),
        pytest.param(
            make_health(scheduler={"status": "healthy", "latest_scheduler_heartbeat": None}),
            "the scheduler has not given a sign of life since its start",
            id="healthy without a heartbeat",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(health: dict[str, Any] | None, sentence: str) -> None:
    assert problems(health, started=STARTED) == [sentence]


def test_a_file_is_read_when_it_gave_a_dag_or_an_import_error() -> None:
    dags = [{"relative_fileloc": "a.py", "is_stale": False}, {"relative_fileloc": "old.py", "is_stale": True}]

    assert unread({"a.py", "broken.py", "old.py", "new.py"}, dags=dags, errors={"broken.py": "..."}) == [
        "new.py",
        "old.py",
    ]
