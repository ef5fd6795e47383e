"""New model versions go to the services that follow their model: each once, in order, whoever dies in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from serving_world import PLAN, ServingWorld

from fermion.domain.serving.request import parse_service, request_of
from fermion.domain.serving.services import SERVICE_DAG, RevisionPhase
from fermion.errors import OutsideUnavailable
from fermion.usecases.serving.follow import Release, release_versions
from fermion.usecases.serving.stage import stage
from fermion.usecases.serving.submit import submit
from fermion.usecases.serving.wishes import close


@pytest.fixture
def world(tmp_path: Path) -> ServingWorld:
    """With a service that follows."""
    made = ServingWorld(tmp_path)
    made.serving(follow=True, priority=7, environment={"A": "b"})
    return made


def release(world: ServingWorld, *announced: str) -> list[Release]:
    return release_versions(world.ctx, world.runs, set(announced) or None)


def revisions(world: ServingWorld) -> list[tuple[int, str]]:
    with world.ctx.store.read() as tx:
        return [(each.number, each.model_path) for each in tx.services.revisions(world.service().id)]


def test_a_new_version_is_deployed_by_the_services_own_request_and_only_once(world: ServingWorld) -> None:
    world.publish("better")
    for expected in ("inf-digits-001-r2", None):
        found = release(world, "digits/2")
        assert [each.revision for each in found] == ([expected] if expected else [])
    run_id = "inf-digits-001-follows-digits-2"
    conf = world.runs.conf(SERVICE_DAG, run_id)
    with world.ctx.store.read() as tx:
        first, second = tx.services.revisions(world.service().id)
    assert (second.run, second.model_path) == ((SERVICE_DAG, run_id), "digits/2")
    assert (second.spec.priority, second.spec.environment, second.spec.plan) == (7, {"A": "b"}, first.spec.plan)
    again = submit(world.ctx, conf, run_id=run_id, actor="airflow")
    assert again.id == second.id, "the run's own check finds it"


def test_versions_that_come_at_once_or_out_of_order_are_each_deployed_in_order(world: ServingWorld) -> None:
    for text in ("b", "c", "d"):
        world.publish(text)
    assert [each.path for each in release(world, "digits/3")] == ["digits/2", "digits/3"]
    assert release(world, "digits/2") == []
    assert [each.path for each in release(world, "digits/4")] == ["digits/4"]
    assert revisions(world) == [(1, "digits/1"), (2, "digits/2"), (3, "digits/3"), (4, "digits/4")]


def test_a_followed_version_takes_the_place_of_the_one_before_by_the_services_plan(world: ServingWorld) -> None:
    world.publish("better")
    release(world, "digits/2")
    made = stage(world.ctx, world.service().id, 2)
    world.rounds(80, requests=40)
    assert world.rollout(made).plan.steps[0].weight_percent == 20
    assert world.service().stable == 2


def test_another_model_and_a_service_that_does_not_follow_are_left_alone(world: ServingWorld) -> None:
    world.publish("better")
    assert release(world, "letters/2") == []
    world.submit_service(follow=False, version=1)
    assert release(world, "digits/2") == [], "the newest request says no more of following"
    world.submit_service(follow=True)
    world.publish("best")
    assert [each.path for each in release(world)] == ["digits/3"]
    close(world.ctx, "digits", by="ann")
    world.publish("too late")
    assert release(world, "digits/4") == []


def test_a_release_that_died_before_the_run_was_started_starts_it_when_it_is_repeated(world: ServingWorld) -> None:
    world.publish("better")
    world.runs.line.cut()
    with pytest.raises(OutsideUnavailable):
        release(world, "digits/2")
    world.runs.line.mend()
    assert release(world, "digits/2") == []
    assert world.runs.state(SERVICE_DAG, "inf-digits-001-follows-digits-2").state == "queued"
    assert len(revisions(world)) == 2


def test_a_version_that_cannot_be_deployed_is_refused_with_the_reason_and_the_next_one_goes_on(
    world: ServingWorld,
) -> None:
    version = world.publish("damaged")
    (world.folder / "models" / "digits" / "2" / "model.joblib").chmod(0o644)
    (world.folder / "models" / "digits" / "2" / "model.joblib").write_text("changed")
    assert world.models.verify(version)
    (refused,) = release(world, "digits/2")
    assert "is damaged" in str(refused.refused)
    world.publish("good")
    assert [(each.path, each.refused) for each in release(world, "digits/3")] == [("digits/3", None)]
    assert world.decisions(world.service().id, "follow") == ["refused"]


def test_what_failed_here_is_not_released_again_by_itself(world: ServingWorld) -> None:
    world.publish("bad")
    release(world, "digits/2")
    made = stage(world.ctx, world.service().id, 2)
    world.rounds(6, requests=40)
    world.driver.router.answers(made.id, 500)
    world.rounds(80, requests=40)
    assert world.revision(made).phase is RevisionPhase.FAILED
    world.publish("bad")
    (refused,) = release(world, "digits/3")
    assert "failed as inf-digits-001-r2" in str(refused.refused)
    assert len(revisions(world)) == 2


RICH: dict[str, Any] = {
    "version": 3,
    "follow": True,
    "repository": "https://git.example/server.git",
    "memory_mib": 512,
    "cpus": 0.5,
    "port": 9001,
    "prefix": "/v/digits",
    "replicas": 3,
    "capacity": "swap",
    "when_busy": "supersede",
    "keep_warm": "1h30m",
    "ready_timeout": "0.5s",
    "environment": {"A": "b", "C": "d e"},
    "autoscaling": {"metric": "qps", "target": 12.5, "min": 2, "max": 4, "down_window": "7m"},
    "probes": {
        "readiness": {"kind": "exec", "command": ["a b", "c"], "period": "250ms"},
        "liveness": {"path": "/live"},
    },
    "plan": {
        "steps": [{"weight": 1, "bake_min": "5m", "approval": True}, 10, 100],
        "alpha": 0.02,
        "on_undecided": "roll_back",
        "on_approval_timeout": "roll_back",
        "metrics": [
            "error_rate",
            {
                "name": "latency_p95",
                "tolerance": 0.1,
                "guard": "500ms",
                "no_data": "fail",
                "min_samples": 7,
                "weight": 2,
            },
        ],
    },
}


@pytest.mark.parametrize(
    "changes", [{}, {"plan": PLAN}, RICH, {"engine": "kserve", "command": None, "api_type": "grpc"}]
)
def test_a_spec_as_a_request_means_the_same_spec(world: ServingWorld, changes: dict[str, Any]) -> None:
    spec = parse_service(world.service_request(**changes))
    assert parse_service(request_of(spec)) == spec
