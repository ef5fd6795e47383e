"""When ``keep_house`` runs: at its time of day, and not at once on a fresh installation, whatever the hour it was made."""

from __future__ import annotations

import json
import runpy
from datetime import UTC, datetime

import pytest

from airflow_home import ROOT

DAY = datetime(2026, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "first"),
    [
        pytest.param(DAY.replace(hour=3, minute=16), DAY.replace(hour=3, minute=17), id="a minute before"),
        pytest.param(DAY.replace(hour=3, minute=18), DAY.replace(day=2, hour=3, minute=17), id="a minute after"),
        pytest.param(DAY.replace(hour=5), DAY.replace(day=2, hour=3, minute=17), id="within a tenth of a day"),
        pytest.param(DAY.replace(hour=12), DAY.replace(day=2, hour=3, minute=17), id="at noon"),
    ],
)
def test_its_first_run_is_at_its_next_time(now: datetime, first: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.serialization.serialized_objects import DagSerialization
    from airflow.timetables.base import TimeRestriction

    dag = runpy.run_path(str(ROOT / "dags/keep_house.py"))["dag"]
    stored = json.loads(json.dumps(DagSerialization.to_dict(dag)))
    monkeypatch.setattr("airflow.timetables.trigger.utcnow", lambda: now)
    found = DagSerialization.from_dict(stored).timetable.next_dagrun_info_v2(
        last_dagrun_info=None, restriction=TimeRestriction(earliest=None, latest=None, catchup=False)
    )
    assert found is not None
    assert found.run_after == first
