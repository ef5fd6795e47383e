"""``release_model``: one run for each published version, in order, from the beginning."""

from __future__ import annotations

import runpy
from typing import Any

import pytest

from airflow_home import ROOT


@pytest.fixture(scope="module")
def dag() -> Any:
    return runpy.run_path(str(ROOT / "dags/release_model.py"))["dag"]


def test_each_version_is_a_run_of_its_own_and_none_overtakes_another(dag: Any) -> None:
    from airflow.sdk import PartitionedAssetTimetable

    from fermion_airflow.assets import MODELS

    assert isinstance(dag.timetable, PartitionedAssetTimetable)
    assert dag.timetable.asset_condition == MODELS
    assert (dag.max_active_runs, dag.is_paused_upon_creation) == (1, False)


def test_its_one_task_is_tried_again_after_a_restart_of_the_server(dag: Any) -> None:
    assert [(task.task_id, task.retries >= 1) for task in dag.tasks] == [("release", True)]
