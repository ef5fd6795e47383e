"""The graph of ``deploy_service``: who follows whom, what always runs, what decides the run's state, and its form."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from airflow_home import ROOT

EDGES = {
    "check_request": {"enqueue", "approve"},
    "enqueue": {"wait_for_gpus", "release_gpus"},
    "wait_for_gpus": {"deploy_revision"},
    "deploy_revision": {"wait_ready"},
    "wait_ready": {"canary"},
    "canary": {"approve", "watch_approval"},
    "approve": {"promote"},
    "watch_approval": {"promote"},
    "promote": {"retire_old"},
    "retire_old": {"release_gpus"},
    "release_gpus": {"write_verdict"},
    "write_verdict": set(),
}


@pytest.fixture(scope="module")
def dag() -> Any:
    return runpy.run_path(str(ROOT / "dags/deploy_service.py"))["dag"]


def test_the_tasks_and_edges_are_those_of_the_design(dag: Any) -> None:
    assert {task.task_id: set(task.downstream_task_ids) for task in dag.tasks} == EDGES


def test_enqueue_is_the_only_setup_and_releasing_decides_the_state(dag: Any) -> None:
    assert [task.task_id for task in dag.tasks if task.is_setup] == ["enqueue"]
    flags = {task.task_id: task.on_failure_fail_dagrun for task in dag.tasks if task.is_teardown}
    assert flags == {"release_gpus": True, "write_verdict": False}


def test_an_approval_that_nobody_needs_is_skipped_and_does_not_keep_the_promotion_from_coming(dag: Any) -> None:
    assert dag.get_task("promote").trigger_rule.value == "none_failed"


def test_every_task_is_tried_again_after_a_restart_of_the_server(dag: Any) -> None:
    assert [task.task_id for task in dag.tasks if task.retries < 1] == []


def test_who_answers_the_question_may_say_why_and_sees_no_field_of_the_deployment(dag: Any) -> None:
    from airflow.sdk import DAG

    from fermion_airflow.operators.serving import Approve

    with DAG(dag_id="asks", schedule=None, params=dag.params):
        assert list(Approve(task_id="another", step=0).params) == ["note"]


def test_every_wait_of_the_graph_is_for_a_stage_that_there_is(dag: Any) -> None:
    from fermion.usecases.serving.queries import STAGES

    told = [task if hasattr(task, "stage") else task.operator_class for task in dag.tasks]
    waits = [each.stage for each in told if hasattr(each, "stage")]
    assert sorted(waits) == sorted(STAGES)


def test_a_trigger_is_its_class_and_its_stage() -> None:
    from fermion_airflow.triggers.services import DeploymentTrigger

    path, arguments = DeploymentTrigger(stage="ready").serialize()
    assert (path, arguments) == ("fermion_airflow.triggers.services.DeploymentTrigger", {"stage": "ready"})
    assert DeploymentTrigger(stage="asked", step=1).serialize()[1] == {"stage": "asked", "step": 1}


def test_what_the_form_holds_when_nobody_touches_it_is_a_deployment_of_the_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fermion.domain.serving.request import parse_service
    from fermion_airflow.forms import deploy_form

    (tmp_path / "examples" / "digits.git").mkdir(parents=True)
    monkeypatch.setenv("FERMION_STATE", str(tmp_path))
    kept = {"pools": ["local/declared"], "images": ["digits:1", "digits-server:1"], "datasets": []}
    (tmp_path / "choices.json").write_text(json.dumps(kept))
    form = deploy_form()
    assert form["image"].schema["enum"] == ["digits-server:1"]
    spec = parse_service({name: param.value for name, param in form.items()})
    assert (spec.name, spec.model, spec.engine, spec.image) == ("digits", "digits", "kserve", "digits-server:1")
    assert spec.retry_failed is False
    assert parse_service({**{name: each.value for name, each in form.items()}, "retry_failed": True}).retry_failed


def test_the_steps_that_the_form_explains_are_taken() -> None:
    from fermion.domain.rollout.plan_reading import parse_plan
    from fermion_airflow.forms import PLAN_HELP, deploy_form

    assert deploy_form()["plan"].description == PLAN_HELP
    steps, at = [], 0
    while (at := PLAN_HELP.find("{", at)) >= 0:
        step, at = json.JSONDecoder().raw_decode(PLAN_HELP, at)
        steps.append(step)
    guarded = [{"name": "error_rate", "guard": 0.05}]
    ways = [parse_plan({"steps": [step, 100], "metrics": guarded}).steps[0].share.way for step in steps]
    assert ways == ["mirrored", "matched", "sticky", "drawn"]


def test_the_server_takes_every_value_so_that_the_check_answers_all_problems_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fermion_airflow.forms import deploy_form

    monkeypatch.setenv("FERMION_STATE", str(tmp_path))
    for name, param in deploy_form().items():
        for wrong in ("no such thing", None, -1, [1], {"a": {}}):
            assert param.resolve(wrong) == wrong, name
