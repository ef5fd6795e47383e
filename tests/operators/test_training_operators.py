"""The tasks of ``train_model`` over a platform in memory: which outcome of a use case becomes which outcome of a task."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
from airflow.sdk.execution_time.context import OutletEventAccessors

from fermion.errors import RequestRefused
from fermion_airflow.assets import MODELS
from fermion_airflow.operators import training
from platforms import DAG, REQUEST, Platform


@dataclass
class Try:
    """What a task sees of itself: its further tries, and the states of its run's other tasks."""

    max_tries: int = 2
    states: dict[str, str | None] = field(default_factory=dict)

    def get_task_states(self, *, dag_id: str, task_ids: list[str], run_ids: list[str]) -> dict[str, Any]:
        chosen = {task_id: state for task_id, state in self.states.items() if task_id in task_ids}
        return {run_id: chosen for run_id in run_ids}


CLEARED = 5
"""More further tries than the task has of its own."""


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    return Platform(tmp_path)


def context_of(conf: dict[str, object] | None = None, *, run_id: str = "r1", **tries: Any) -> dict[str, Any]:
    run = SimpleNamespace(run_id=run_id, conf=dict(REQUEST) if conf is None else conf, triggering_user_name="ann")
    return {"dag_run": run, "run_id": run_id, "params": {}, "ti": Try(**tries), "outlet_events": OutletEventAccessors()}


def task(kind: type[training.PlatformOperator], task_id: str) -> Any:
    """One task of a DAG with the DAG's name and tries."""
    from airflow.sdk import DAG as Dag

    with Dag(dag_id=DAG, schedule=None):
        return kind(task_id=task_id, retries=2)


def check_quota(platform: Platform, context: dict[str, Any]) -> None:
    platform.runs.trigger(DAG, context["run_id"], {})
    task(training.CheckQuota, "check_quota").work(platform.ctx, context)


def carried(platform: Platform, run_id: str = "r1") -> str | None:
    with platform.ctx.store.read() as tx:
        job = tx.jobs.by_run(DAG, run_id)
    return job.id if job else None


def test_the_check_makes_the_job_of_its_run_and_pins_it(platform: Platform) -> None:
    check_quota(platform, context_of())
    job = platform.job(str(carried(platform)))
    assert (job.spec.owner, job.pins is not None) == ("ann", True)


def test_a_request_that_does_not_parse_is_noted_whole_on_the_run_and_makes_no_job(platform: Platform) -> None:
    with pytest.raises(RequestRefused):
        check_quota(platform, context_of({**REQUEST, "gitRepoo": "x", "gpus": 0}))
    note = platform.runs.notes(DAG, "r1")["check_quota"]
    assert "2 problems" in note
    assert "Did you mean gitRepo?" in note
    assert "0 is out of range" in note
    assert carried(platform) is None


def test_a_request_that_parses_and_can_never_run_is_noted_and_leaves_a_failed_job(platform: Platform) -> None:
    with pytest.raises(RequestRefused):
        check_quota(platform, context_of({**REQUEST, "ref": "nowhere", "datasets": ["nothing"]}))
    note = platform.runs.notes(DAG, "r1")["check_quota"]
    assert "**ref**" in note
    assert "**datasets**" in note
    assert platform.job(str(carried(platform))).is_failed


def test_what_is_misspelt_and_what_is_unknown_are_one_answer_with_a_line_for_each_problem(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"gpus": 0, "pool": "local/h100", "image": "nothing:1", "datasets": ["nothing"], "ref": "nowhere"}
    monkeypatch.setattr(training.FermionHook, "platform", lambda _: platform.ctx)
    platform.runs.trigger(DAG, "r1", {})
    operator = task(training.CheckQuota, "check_quota")
    with pytest.raises(AirflowFailException) as failed:
        operator.execute(context_of({**REQUEST, **wrong}))
    heading, *lines = str(failed.value).splitlines()
    assert "5 problems" in heading
    assert sorted(line.split(":")[0] for line in lines) == [
        "  - datasets",
        "  - gpus",
        "  - image",
        "  - pool",
        "  - ref",
    ]
    note = platform.runs.notes(DAG, "r1")["check_quota"]
    assert all(f"**{name}**" in note for name in wrong)
    assert "log of check_quota" in note


def test_a_refusal_stands_also_when_it_cannot_be_noted(platform: Platform) -> None:
    with pytest.raises(RequestRefused):
        task(training.CheckQuota, "check_quota").work(platform.ctx, context_of({"gpus": 0}))


def test_a_report_of_a_run_without_a_job_is_skipped_and_its_release_fails_the_run(platform: Platform) -> None:
    with pytest.raises(AirflowSkipException, match="Nothing to report"):
        task(training.WriteReport, "write_report").work(platform.ctx, context_of())
    with pytest.raises(AirflowFailException, match="carries no job"):
        task(training.ReleaseGpus, "release_gpus").work(platform.ctx, context_of())


def test_a_refused_job_has_a_report(platform: Platform) -> None:
    with pytest.raises(RequestRefused):
        check_quota(platform, context_of({**REQUEST, "ref": "nowhere"}))
    task(training.WriteReport, "write_report").work(platform.ctx, context_of())
    assert platform.ctx.reports.page(str(carried(platform))) is not None


def test_a_run_that_was_marked_failed_before_its_setup_lets_its_job_go_before_the_report(platform: Platform) -> None:
    job = platform.submit()
    task(training.WriteReport, "write_report").work(platform.ctx, context_of())
    after = platform.job(job.id)
    assert (after.status, str(after.explanation.reason)) == ("failed", "run_ended")
    report = platform.ctx.reports.read(job.id)
    assert report is not None
    assert report.outcome.status == "failed"


def test_a_job_that_was_stopped_before_its_run_came_to_it_is_not_trained(platform: Platform) -> None:
    from fermion.usecases.stop import request_stop

    job = platform.submit()
    request_stop(platform.ctx, job.id, actor="ann")
    assert platform.tend(job).is_failed
    with pytest.raises(AirflowFailException, match="Stopped by ann"):
        check_quota(platform, context_of())
    assert carried(platform) == job.id


def test_a_job_that_was_stopped_in_line_before_its_run_came_to_it_is_not_trained(platform: Platform) -> None:
    from fermion.usecases.launch import launch
    from fermion.usecases.stop import request_stop

    job = launch(platform.ctx, platform.runs, REQUEST, actor="ann")
    request_stop(platform.ctx, job.id, actor="ann")
    assert platform.tend(job).is_failed
    with pytest.raises(AirflowFailException, match="Stopped by ann"):
        check_quota(platform, context_of(run_id=job.id))
    assert carried(platform, job.id) == job.id


def test_a_run_of_the_same_name_that_is_made_anew_carries_a_new_job(platform: Platform) -> None:
    old = platform.trained()
    check_quota(platform, context_of())
    new = platform.job(str(carried(platform)))
    assert (new.restart_of, new.is_final) == (old.id, False)


def test_a_run_cleared_from_the_start_carries_a_new_job_with_the_same_pins(platform: Platform) -> None:
    old = platform.trained()
    platform.driver.code.commit(str(REQUEST["repository"]), {"train.py": b"print(2)"})
    check_quota(platform, context_of(max_tries=CLEARED))
    new = platform.job(str(carried(platform)))
    assert (new.restart_of, new.pins, new.is_final) == (old.id, old.pins, False)


def test_a_run_cleared_from_train_on_carries_a_new_job_that_is_in_line(platform: Platform) -> None:
    old = platform.trained()
    states = {"train": None, "save_model": None}
    task(training.Enqueue, "enqueue").work(platform.ctx, context_of(max_tries=CLEARED, states=states))
    new = platform.job(str(carried(platform)))
    assert (new.restart_of, str(new.phase)) == (old.id, "staging")


def test_whoever_tends_the_jobs_prepares_one_whose_staging_tasks_were_not_cleared(platform: Platform) -> None:
    platform.trained()
    states = {"train": None, "save_model": None}
    task(training.Enqueue, "enqueue").work(platform.ctx, context_of(max_tries=CLEARED, states=states))
    new = platform.tend(platform.job(str(carried(platform))), rounds=3)
    assert str(new.phase) == "running"
    assert platform.finish(new).output_model_path == "digits/2"


def test_a_job_restarted_in_a_run_of_its_own_is_left_to_its_staging_tasks(platform: Platform) -> None:
    from fermion.usecases.check import check
    from fermion.usecases.stage import enqueue
    from fermion.usecases.submit import submit

    old = platform.trained()
    new = submit(platform.ctx, REQUEST, dag_id=DAG, run_id="r2", actor="ann", restart_of=old.id)
    check(platform.ctx, new.id)
    enqueue(platform.ctx, new.id)
    assert str(platform.tend(new).phase) == "staging"


def test_clearing_only_what_follows_the_training_trains_nothing_again(platform: Platform) -> None:
    old = platform.trained()
    states = {"train": "success", "save_model": None}
    task(training.Enqueue, "enqueue").work(platform.ctx, context_of(max_tries=CLEARED, states=states))
    assert carried(platform) == old.id


def test_clearing_the_training_without_what_publishes_it_is_refused(platform: Platform) -> None:
    old = platform.trained()
    states = {"train": None, "save_model": "success"}
    with pytest.raises(AirflowFailException, match="with its downstream tasks"):
        task(training.Enqueue, "enqueue").work(platform.ctx, context_of(max_tries=CLEARED, states=states))
    assert carried(platform) == old.id


def test_clearing_a_run_whose_training_still_runs_leaves_it_alone(platform: Platform) -> None:
    job = platform.start(platform.submit())
    states = {"train": None, "save_model": None}
    task(training.Enqueue, "enqueue").work(platform.ctx, context_of(max_tries=CLEARED, states=states))
    assert (carried(platform), str(platform.job(job.id).phase)) == (job.id, "running")


def saving(platform: Platform) -> Any:
    """A job whose training has ended well and whose model is not published yet."""
    from fermion.domain.workloads import workload_name

    job = platform.start(platform.submit())
    platform.driver.space.write(platform.driver.space.output(job.id, 1), {"model.bin": b"weights"})
    platform.driver.workloads.exit(workload_name(job.id, 1), 0)
    return platform.tend(job)


def test_a_published_model_is_announced_with_its_path_checksum_and_job(platform: Platform) -> None:
    job, context = saving(platform), context_of()
    operator = task(training.SaveModel, "save_model")
    operator.work(platform.ctx, context)
    announced = context["outlet_events"][MODELS]
    assert announced.partition_keys == {"digits/1"}
    version = platform.ctx.models.get("digits", 1)
    assert version is not None
    assert announced.extra == {"path": "digits/1", "checksum": version.checksum, "job": job.id}
    assert operator.outlets == [MODELS]


def test_saving_again_after_a_crash_announces_and_saving_again_after_a_clear_does_not(platform: Platform) -> None:
    platform.trained()
    again = task(training.SaveModel, "save_model")
    again.work(platform.ctx, context_of())
    assert again.outlets == [MODELS]
    cleared = task(training.SaveModel, "save_model")
    cleared.work(platform.ctx, context_of(max_tries=CLEARED))
    assert cleared.outlets == []


@pytest.mark.parametrize(("code", "fails"), [(0, False), (1, True)])
def test_releasing_fails_the_run_unless_a_model_was_published(platform: Platform, code: int, fails: bool) -> None:
    platform.trained(code=code)
    operator = task(training.ReleaseGpus, "release_gpus")
    if not fails:
        operator.work(platform.ctx, context_of())
        return
    with pytest.raises(AirflowFailException, match="failed"):
        operator.work(platform.ctx, context_of())
    with platform.ctx.store.read() as tx:
        assert tx.leases.live() == []
