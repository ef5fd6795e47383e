"""``train_model`` on a live platform: what a run's state says, clearing, links, assets, and the REST door. One installation."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e.live import Live, wait_until

pytestmark = [pytest.mark.live, pytest.mark.timeout(400)]

RUNS = "/api/v2/dags/train_model/dagRuns"
QUICK = {"seconds": 1, "epochs": 2}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    installation = Live(tmp_path_factory.mktemp("train-model"))
    try:
        installation.up()
        yield installation
    finally:
        installation.down()


def trigger(live: Live, run_id: str, conf: dict[str, object]) -> httpx.Response:
    return live.call("POST", RUNS, {"dag_run_id": run_id, "logical_date": None, "conf": conf})


def end_of(live: Live, run_id: str, dag_id: str = "train_model") -> dict[str, Any]:
    """The ended run."""
    path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}"
    wait_until(
        lambda: live.call("GET", path).json().get("state") in {"success", "failed"},
        within_s=150,
        what=f"end of {run_id}",
    )
    found: dict[str, Any] = live.call("GET", path).json()
    return found


def states(live: Live, run_id: str) -> dict[str, str]:
    found = live.call("GET", f"{RUNS}/{run_id}/taskInstances").json()["task_instances"]
    return {task["task_id"]: task["state"] for task in found}


def clear(live: Live, run_id: str, **what: object) -> None:
    body = {"dry_run": False, "dag_run_id": run_id, "only_failed": False, "reset_dag_runs": True, **what}
    assert live.call("POST", "/api/v2/dags/train_model/clearTaskInstances", body).status_code == 200


def jobs_of(live: Live, run_id: str) -> list[tuple[str, str | None]]:
    """Phase and the job that it follows, newest first."""
    with live.ctx.store.read() as tx:
        return [(str(job.phase), job.restart_of) for job in tx.jobs.find() if job.run == ("train_model", run_id)]


def test_a_run_with_the_names_of_the_api_succeeds_and_its_id_is_taken_then(live: Live) -> None:
    spec = live.spec(hyperparameters=QUICK)
    conf: dict[str, object] = {
        "jobName": "camel",
        "poolId": spec["pool"],
        "imageId": spec["image"],
        "gitRepo": spec["repository"],
        "gitBranch": "main",
        "entrypoint": spec["entrypoint"],
        "gpuCount": 1,
        "hyperparameters": QUICK,
        "outputModel": "camel",
    }
    assert trigger(live, "camel", conf).status_code == 200
    assert trigger(live, "camel", conf).status_code == 409
    assert end_of(live, "camel")["state"] == "success"
    assert set(states(live, "camel").values()) == {"success"}


def test_the_links_of_its_tasks_open_for_who_is_signed_in_and_for_nobody_else(live: Live) -> None:
    opened = {}
    for task_id in ("wait_for_gpus", "train", "save_model", "release_gpus", "write_report"):
        links = live.call("GET", f"{RUNS}/camel/taskInstances/{task_id}/links").json()["extra_links"]
        for name, link in links.items():
            assert live.call("GET", link).status_code == 200, (task_id, name)
            assert httpx.get(live.settings.airflow_url + link, timeout=30).status_code == 401
            opened[name] = link
    assert set(opened) == {"Training log", "Report", "Model"}


def test_clearing_train_and_what_follows_trains_again(live: Live) -> None:
    clear(live, "camel", task_ids=["train"], include_downstream=True)
    assert end_of(live, "camel")["state"] == "success"
    (newest, follows), (oldest, first) = jobs_of(live, "camel")
    assert (newest, oldest, first) == ("completed", "completed", None)
    assert follows is not None


def test_clearing_the_whole_run_trains_again_and_clearing_only_the_end_does_not(live: Live) -> None:
    clear(live, "camel")
    assert end_of(live, "camel")["state"] == "success"
    assert len(jobs_of(live, "camel")) == 3
    clear(live, "camel", task_ids=["save_model"], include_downstream=True)
    assert end_of(live, "camel")["state"] == "success"
    assert len(jobs_of(live, "camel")) == 3


def test_each_published_version_was_announced_once(live: Live) -> None:
    assets = live.call("GET", "/api/v2/assets?name_pattern=fermion_models").json()["assets"]
    events = live.call("GET", f"/api/v2/assets/events?asset_id={assets[0]['id']}").json()["asset_events"]
    assert sorted(event["partition_key"] for event in events) == ["camel/1", "camel/2", "camel/3"]


def test_a_request_that_does_not_parse_fails_its_run_with_every_problem_in_the_note(live: Live) -> None:
    conf: dict[str, object] = {"gitRepoo": "x", "gpuCount": 0, "pool": "local/h100", "preemptible": "perhaps"}
    assert trigger(live, "misspelt", conf).status_code == 200
    run = end_of(live, "misspelt")
    assert run["state"] == "failed"
    assert "Did you mean gitRepo?" in run["note"]
    assert "0 is out of range" in run["note"]
    assert "'perhaps' is neither true nor false" in run["note"], "the form's own rules refuse nothing"
    assert "no pool 'local/h100'" in run["note"], "what can be read is looked up"
    found = states(live, "misspelt")
    assert (found["check_quota"], found["release_gpus"], found["write_report"]) == (
        "failed",
        "upstream_failed",
        "skipped",
    )


def test_what_the_database_could_not_keep_makes_no_run_and_is_named_with_all_else(live: Live) -> None:
    conf = json.dumps({**live.spec(), "gpus": 0, "hyperparameters": {"a": "@1", "b": "@2", "c": "@3", "d": "x\0y"}})
    for mark, written in (("@1", "NaN"), ("@2", "1e20"), ("@3", "9223372036854775808")):
        conf = conf.replace(f'"{mark}"', written)
    body = f'{{"dag_run_id": "unkept", "logical_date": null, "conf": {conf}}}'
    answer = live.call("POST", RUNS, body.encode())
    assert answer.status_code == 400
    assert {each["field"]: each["code"] for each in answer.json()["problems"]} == {
        "gpus": "out_of_range",
        "hyperparameters.a": "not_finite",
        "hyperparameters.b": "too_large",
        "hyperparameters.c": "too_large",
        "hyperparameters.d": "control_character",
    }
    assert live.call("GET", f"{RUNS}/unkept").status_code == 404
    assert live.call("POST", RUNS, b'{"conf": {"x": "' + b"x" * 9 * 1024 * 1024 + b'"}}').status_code == 413


def test_a_refused_check_fails_the_run_and_leaves_a_report(live: Live) -> None:
    trigger(live, "refused", dict(live.spec(ref="nowhere")))
    assert end_of(live, "refused")["state"] == "failed"
    assert states(live, "refused")["write_report"] == "success"


def test_a_training_that_fails_fails_its_run_and_leaves_a_report(live: Live) -> None:
    trigger(live, "broken", dict(live.spec(hyperparameters={**QUICK, "fail": True})))
    assert end_of(live, "broken")["state"] == "failed"
    found = states(live, "broken")
    assert (found["train"], found["save_model"]) == ("failed", "upstream_failed")
    assert (found["release_gpus"], found["write_report"]) == ("failed", "success")


def test_a_run_that_is_marked_failed_ends_failed_with_its_gpus_released(live: Live) -> None:
    trigger(live, "marked", dict(live.spec(hyperparameters={"seconds": 120, "epochs": 60})))
    job = wait_until(
        lambda: next((job for job in live.open_jobs() if str(job.phase) == "running"), None), what="the training"
    )
    assert live.call("PATCH", f"{RUNS}/marked", {"state": "failed"}).status_code == 200
    wait_until(lambda: states(live, "marked")["write_report"] == "success", what="the report")
    assert end_of(live, "marked")["state"] == "failed"
    assert live.job(job.id).is_failed
    with live.ctx.store.read() as tx:
        assert tx.leases.live() == []


def test_a_backfill_trains_each_day_once_at_low_priority(live: Live) -> None:
    live.call("PATCH", "/api/v2/dags/retrain_digits_daily", {"is_paused": False})
    body = {"dag_id": "retrain_digits_daily", "from_date": "2026-01-05T00:00:00Z", "to_date": "2026-01-06T00:00:00Z"}
    assert live.call("POST", "/api/v2/backfills", body).status_code == 200
    for day in ("2026-01-05", "2026-01-06"):
        assert end_of(live, f"digits-{day}")["state"] == "success"
        assert end_of(live, f"backfill__{day}T00:00:00+00:00", "retrain_digits_daily")["state"] == "success"
    with live.ctx.store.read() as tx:
        trained = [job for job in tx.jobs.find() if job.run and job.run[1].startswith("digits-2026-01-0")]
    assert sorted((job.run or ("", ""))[1] for job in trained) == ["digits-2026-01-05", "digits-2026-01-06"]
    assert {job.spec.priority for job in trained} == {-100}


def test_a_new_version_of_the_dataset_starts_one_training(live: Live) -> None:
    live.call("PATCH", "/api/v2/dags/retrain_on_dataset", {"is_paused": False})
    file = next((Path(live.environ["FERMION_STATE"]) / "examples/datasets/digits").rglob("*.gz"))
    lines = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    file.unlink()
    file.write_bytes(gzip.compress(b"".join(lines[:-1])))

    def runs() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = live.call("GET", "/api/v2/dags/retrain_on_dataset/dagRuns").json()["dag_runs"]
        return found

    wait_until(lambda: any(run["state"] == "success" for run in runs()), within_s=150, what="the retraining")
    assert len(runs()) == 1
    assert runs()[0]["partition_key"].startswith("digits@sha256:")


def test_keeping_house_cleans_the_engine_too(live: Live) -> None:
    path = "/api/v2/dags/keep_house/dagRuns"
    assert live.call("POST", path, {"dag_run_id": "now", "logical_date": None}).status_code == 200
    assert end_of(live, "now", "keep_house")["state"] == "success"
