"""The tasks that keep the platform's house, over a platform in memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time.context import OutletEventAccessors
from structlog.testing import capture_logs

from fermion.usecases.datasets import register_dataset
from fermion_airflow.assets import DATASETS
from fermion_airflow.operators import upkeep
from platforms import Platform


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    return Platform(tmp_path)


def context_of(run_id: str) -> dict[str, Any]:
    return {"run_id": run_id, "dag_run": SimpleNamespace(run_id=run_id), "outlet_events": OutletEventAccessors()}


def task(kind: type[Any]) -> Any:
    from airflow.sdk import DAG

    with DAG(dag_id="upkeep", schedule=None):
        return kind(task_id="task")


def test_what_keeping_house_freed_is_in_the_tasks_log(platform: Platform, tmp_path: Path) -> None:
    left = tmp_path / "models" / ".staging" / "dead"
    left.mkdir(parents=True)
    (left / "weights").write_bytes(b"x" * 12_345)
    with capture_logs() as logged:
        task(upkeep.KeepHouse).work(platform.ctx, context_of("h1"))
    assert "1 leftovers of dead publishers, 12,345 bytes" in [str(entry["event"]) for entry in logged]


def test_a_registered_dataset_is_announced_as_a_partition_of_its_asset(platform: Platform) -> None:
    platform.source.put("file:///srv/data/faces", {"a.csv": b"1"})
    version = register_dataset(platform.ctx, "faces", "file:///srv/data/faces", actor="ann").version
    context = context_of("s1")
    platform.runs.trigger("upkeep", "s1", {})
    task(upkeep.SyncPlatform).work(platform.ctx, context)
    assert f"faces@{version.checksum}" in context["outlet_events"][DATASETS].partition_keys
