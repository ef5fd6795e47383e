"""The graph of ``train_model``: who follows whom, what always runs, and what decides the run's state."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from airflow_home import ROOT

EDGES = {
    "check_quota": {"enqueue"},
    "enqueue": {"pull_image", "mount_dataset", "clone_repository", "release_gpus"},
    "pull_image": {"wait_for_gpus"},
    "mount_dataset": {"wait_for_gpus"},
    "clone_repository": {"wait_for_gpus"},
    "wait_for_gpus": {"train"},
    "train": {"save_model"},
    "save_model": {"release_gpus"},
    "release_gpus": {"write_report"},
    "write_report": set(),
}


@pytest.fixture(scope="module")
def dag() -> Any:
    return runpy.run_path(str(ROOT / "dags/train_model.py"))["dag"]


def test_the_tasks_and_edges_are_those_of_the_design(dag: Any) -> None:
    assert {task.task_id: set(task.downstream_task_ids) for task in dag.tasks} == EDGES


def test_enqueue_is_the_only_setup(dag: Any) -> None:
    assert [task.task_id for task in dag.tasks if task.is_setup] == ["enqueue"]


def test_releasing_decides_the_state_and_the_report_after_it_does_not(dag: Any) -> None:
    flags = {task.task_id: task.on_failure_fail_dagrun for task in dag.tasks if task.is_teardown}
    assert flags == {"release_gpus": True, "write_report": False}


def test_the_report_has_no_setup_so_that_it_runs_whatever_was_refused(dag: Any) -> None:
    report = dag.get_task("write_report")
    assert not [each for each in report.upstream_list if each.is_setup]
    assert report.trigger_rule.value == "all_done_setup_success"


def test_every_task_is_tried_again_after_a_restart_of_the_server(dag: Any) -> None:
    assert {task.task_id: task.retries for task in dag.tasks if task.retries < 1} == {}


def test_tasks_of_running_runs_go_before_first_tasks_of_new_ones(dag: Any) -> None:
    assert {task.task_id: task.weight_rule for task in dag.tasks if task.weight_rule != "upstream"} == {}


def test_training_begins_and_ends_in_its_trigger(dag: Any) -> None:
    train = dag.get_task("train")
    assert train.start_from_trigger
    assert train.start_trigger_args.trigger_cls == "fermion_airflow.triggers.jobs.TrainTrigger"


def test_only_saving_announces_a_model(dag: Any) -> None:
    assert {task.task_id: [asset.name for asset in task.outlets] for task in dag.tasks if task.outlets} == {
        "save_model": ["fermion_models"]
    }


def test_the_form_offers_what_the_sync_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fermion_airflow.forms import train_form

    monkeypatch.setenv("FERMION_STATE", str(tmp_path))
    kept = {"pools": ["local/declared", "local/h100"], "images": ["digits:1"], "datasets": ["digits", "faces"]}
    (tmp_path / "choices.json").write_text(json.dumps(kept))
    form = train_form()
    assert form["pool"].schema["enum"] == kept["pools"]
    assert form["image"].schema["enum"] == kept["images"]
    assert form["datasets"].schema["examples"] == kept["datasets"]


def test_an_untouched_form_does_not_train_in_the_image_of_a_model_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fermion_airflow.forms import train_form

    monkeypatch.setenv("FERMION_STATE", str(tmp_path))
    kept = {"pools": ["local/declared"], "images": ["digits-server:1", "digits:1", "python:3"], "datasets": []}
    (tmp_path / "choices.json").write_text(json.dumps(kept))
    image = train_form()["image"]
    assert image.value == "digits:1"
    assert image.schema["enum"] == ["digits:1", "python:3", "digits-server:1"]


def test_the_server_takes_every_value_so_that_the_check_answers_all_problems_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk import DAG
    from airflow.serialization.serialized_objects import DagSerialization

    from fermion_airflow.forms import train_form

    monkeypatch.setenv("FERMION_STATE", str(tmp_path))
    kept = {"pools": ["local/declared"], "images": ["digits:1"], "datasets": ["digits"]}
    (tmp_path / "choices.json").write_text(json.dumps(kept))
    with DAG(dag_id="form", schedule=None, params=train_form()) as dag:
        pass
    stored = json.loads(json.dumps(DagSerialization.to_dict(dag)))
    params = DagSerialization.from_dict(stored).params
    for wrong in ("no such thing", "", None, -1, 0.5, True, [1], {"a": {"b": None}}):
        conf = dict.fromkeys(params, wrong)
        assert params.deep_merge(conf).validate() == conf
    assert params.get_param("pool").schema["enum"] == kept["pools"], "the form is drawn with its choices all the same"
    assert params.get_param("gpus_per_node").schema["minimum"] == 1


def test_the_examples_url_is_one_also_where_the_folder_has_a_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fermion.adapters.git.remotes import Remote, Rules, parse
    from fermion.domain.request import parse_request
    from fermion_airflow.forms import digits_request, train_form

    state = tmp_path / "mein Büro" / "run"
    (state / "examples" / "digits.git").mkdir(parents=True)
    monkeypatch.setenv("FERMION_STATE", str(state))
    url = train_form()["repository"].value
    assert url == digits_request()["repository"]
    assert parse_request(digits_request()).repository == url
    remote = parse(url, Rules(file_roots=[state / "examples"], embedded=True))
    assert isinstance(remote, Remote)
    assert remote.folder == state / "examples" / "digits.git"


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"pools": null}'])
def test_a_form_without_choices_is_still_a_form(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fermion_airflow.forms import train_form

    monkeypatch.setenv("FERMION_STATE", str(tmp_path))
    if text is not None:
        (tmp_path / "choices.json").write_text(text)
    form = train_form()
    assert "enum" not in form["pool"].schema


def test_what_the_form_holds_when_nobody_touches_it_parses_but_for_what_must_be_filled_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fermion.domain.request import parse_request
    from fermion.errors import RequestRefused
    from fermion_airflow.forms import train_form

    monkeypatch.setenv("FERMION_STATE", str(tmp_path))
    (tmp_path / "choices.json").write_text(
        json.dumps({"pools": ["local/declared"], "images": ["digits:1"], "datasets": ["digits"]})
    )
    values = {name: param.value for name, param in train_form().items()}
    with pytest.raises(RequestRefused) as refused:
        parse_request(values)
    assert {problem.field for problem in refused.value.problems} == {"repository", "output_model"}
