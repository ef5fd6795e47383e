"""The task of ``release_model`` over a platform in memory: which versions its run is about, and how it ends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from serving_world import ServingWorld

from fermion.domain.serving.services import SERVICE_DAG
from fermion_airflow.operators import releasing, training


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServingWorld:
    """With a service that follows."""
    made = ServingWorld(tmp_path)
    monkeypatch.setattr(training.FermionHook, "platform", lambda _: made.ctx)
    made.serving(follow=True)
    return made


def execute(*, partition: str | None = None, events: tuple[Any, ...] = ()) -> None:
    from airflow.sdk import DAG

    with DAG(dag_id="release_model", schedule=None):
        task = releasing.ReleaseModel(task_id="release", retries=2)
    run = SimpleNamespace(run_id="r1", partition_key=partition, consumed_asset_events=list(events))
    task.execute({"dag_run": run, "run_id": "r1"})


def event(partition: str | None, path: str | None) -> Any:
    return SimpleNamespace(partition_key=partition, extra={"path": path} if path else {})


def runs(world: ServingWorld) -> list[str]:
    with world.ctx.store.read() as tx:
        return [
            each.run[1] for each in tx.services.revisions(world.service().id) if each.run and "follows" in each.run[1]
        ]


def test_the_partition_of_a_run_is_released_once_however_often_its_task_runs(world: ServingWorld) -> None:
    world.publish("better")
    execute(partition="digits/2")
    with pytest.raises(AirflowSkipException, match="digits/2"):
        execute(partition="digits/2")
    assert runs(world) == ["inf-digits-001-follows-digits-2"]
    assert world.runs.state(SERVICE_DAG, runs(world)[0]).state == "queued"


def test_every_event_that_was_merged_into_a_run_is_released(world: ServingWorld) -> None:
    for text in ("b", "c"):
        world.publish(text)
    execute(events=(event("digits/3", None), event(None, "digits/2"), event(None, "letters/9")))
    assert runs(world) == [f"inf-digits-001-follows-digits-{number}" for number in (2, 3)]


def test_a_run_started_by_hand_releases_whatever_was_not(world: ServingWorld) -> None:
    world.publish("better")
    execute()
    assert runs(world) == ["inf-digits-001-follows-digits-2"]


def test_a_version_that_is_refused_fails_the_task_for_good_and_an_outage_lets_it_be_tried_again(
    world: ServingWorld,
) -> None:
    world.publish("better")
    world.runs.line.cut()
    with pytest.raises(AirflowException) as away:
        execute(partition="digits/2")
    assert not isinstance(away.value, AirflowFailException)
    world.runs.line.mend()
    world.publish("damaged")
    file = world.folder / "models" / "digits" / "3" / "model.joblib"
    file.chmod(0o644)
    file.write_text("changed")
    with pytest.raises(AirflowFailException, match=r"digits/3 does not go to digits: .*damaged"):
        execute(partition="digits/3")


def test_a_version_that_nobody_follows_is_skipped(world: ServingWorld) -> None:
    with pytest.raises(AirflowSkipException, match="letters/1"):
        execute(partition="letters/1")
