"""Submitting, checking and launching: one job a run, all problems at once, nothing left without a run."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from world import DAG, POOL, REPOSITORY, World

from builders import make_node, make_policy, make_quota
from fermion.adapters.sql import migrate, open_store
from fermion.domain.forms import to_form
from fermion.domain.jobs import Phase
from fermion.domain.reasons import Reason
from fermion.domain.request import parse_request
from fermion.errors import Conflict, OutsideUnavailable, RequestRefused
from fermion.usecases.carrying import START_GRACE
from fermion.usecases.check import check, problems_of
from fermion.usecases.launch import launch
from fermion.usecases.stage import enqueue
from fermion.usecases.stop import request_stop, restart_request
from fermion.usecases.submit import submit
from fermion.usecases.sync import reconcile_runs, sync_platform


def codes(refused: RequestRefused) -> set[str]:
    return {problem.code for problem in refused.problems}


# --- submit -----------------------------------------------------------------------------------------------------------


def test_a_run_that_submits_twice_finds_its_job(world: World) -> None:
    first = world.submit(run_id="run-1")
    again = world.submit(run_id="run-1", actor="bob")
    assert again.id == first.id
    assert again.spec.owner == "ann", "whoever came first owns it"
    assert world.verbs(first.id) == ["job.submitted"]


def test_a_run_that_asks_for_something_else_is_refused(world: World) -> None:
    world.submit(run_id="run-1")
    with pytest.raises(RequestRefused, match=r"run-1.*job-20260302-001") as refused:
        world.submit(run_id="run-1", gpus_per_node=2)
    assert codes(refused.value) == {"run_id_taken"}


def test_the_owner_is_who_asks_whatever_the_request_says(world: World) -> None:
    job = world.submit(actor="mallory", owner="root")
    assert job.spec.owner == "mallory"


def test_without_a_run_the_jobs_id_is_the_runs(world: World) -> None:
    job = world.submit()
    assert job.run == (DAG, job.id)


def test_a_bad_request_makes_no_job(world: World) -> None:
    with pytest.raises(RequestRefused) as refused:
        world.submit(gpus_per_node=0, entrypoint="train.py; rm -rf /", repository="ext::sh -c id")
    assert {problem.field for problem in refused.value.problems} == {"gpus_per_node", "entrypoint", "repository"}
    with world.ctx.store.read() as tx:
        assert not tx.jobs.find()


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("usecases") / "fermion.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_fifty_threads_submit_one_run_once(tmp_path: Path, empty_database: Path, kind: str) -> None:
    store = None
    if kind == "sqlite":
        shutil.copy(empty_database, tmp_path / "fermion.db")
        store = open_store(f"sqlite:///{tmp_path / 'fermion.db'}")
    world = World(tmp_path, store=store)
    found: list[str] = []

    def ask() -> None:
        found.append(submit(world.ctx, world.request(), dag_id=DAG, run_id="run-1", actor="ann").id)

    threads = [threading.Thread(target=ask) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == [found[0]] * 50
    with world.ctx.store.read() as tx:
        assert len(tx.jobs.find()) == 1
    assert world.verbs(found[0]) == ["job.submitted"]
    if store is not None:
        store.close()


# --- check ------------------------------------------------------------------------------------------------------------


def test_what_names_meant_is_pinned_and_stays_pinned(world: World) -> None:
    job = check(world.ctx, world.submit().id)
    assert job.pins is not None
    assert (job.pins.commit, job.pins.image_digest) == (world.commit, "sha256:" + "1" * 64)
    assert set(job.pins.datasets) == {"digits"}
    world.driver.code.commit(REPOSITORY, {"train.py": b"another"})
    world.source.put("file:///data/digits", {"digits.csv": b"other"})
    assert check(world.ctx, job.id).pins == job.pins


def test_all_problems_come_at_once_and_the_job_keeps_them(tmp_path: Path) -> None:
    world = World(tmp_path, gpus=2, max_gpus_per_job=1)
    job = world.submit(
        image="unknown:1",
        datasets=["digits", "nothing"],
        ref="no-such-branch",
        gpus_per_node=8,
        checkpoint="job-20250101-001",
    )
    with pytest.raises(RequestRefused) as refused:
        check(world.ctx, job.id)
    expected = {
        "unknown_image",
        "unknown_dataset",
        "ref_not_found",
        "over_job_limit",
        "over_pool",
        "over_node",
        "no_checkpoint",
    }
    assert codes(refused.value) == expected
    kept = world.job(job.id)
    assert (kept.phase, kept.explanation.reason) == (Phase.FAILED, Reason.CHECK_REFUSED)
    assert problems_of(kept) == list(refused.value.problems)
    with pytest.raises(RequestRefused) as again:
        check(world.ctx, job.id)
    assert again.value.problems == refused.value.problems
    assert world.verbs(job.id) == ["job.submitted", "job.failed"], "refused once"


@pytest.mark.parametrize("pool", ["local/h100", "nowhere/declared"])
def test_an_unknown_pool_does_not_hide_what_else_is_wrong(world: World, pool: str) -> None:
    sync_platform(world.ctx)
    job = world.submit(pool=pool, datasets=["nothing"])
    with pytest.raises(RequestRefused, match=POOL) as refused:
        check(world.ctx, job.id)
    assert {"unknown_pool", "unknown_dataset"} <= codes(refused.value)


def test_an_entrypoint_that_the_commit_lacks_is_a_problem(world: World) -> None:
    with pytest.raises(RequestRefused, match=r"no file 'other\.py'") as refused:
        check(world.ctx, world.submit(entrypoint="other.py").id)
    assert codes(refused.value) == {"entrypoint_missing"}


def test_a_limit_itself_is_not_over_it(tmp_path: Path) -> None:
    world = World(tmp_path, gpus=2, max_gpus_per_job=2, max_gpus_per_user=2)
    assert check(world.ctx, world.submit(gpus_per_node=2).id).pins is not None


@pytest.mark.parametrize("outage", ["cluster", "dataset source", "store"])
def test_while_something_does_not_answer_nothing_is_refused(world: World, outage: str) -> None:
    job = world.submit()
    lines: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "cluster": (world.driver.line.cut, world.driver.line.mend),
        "dataset source": (world.source_line.cut, world.source_line.mend),
        "store": (world.memory.fail, world.memory.recover),
    }
    cut, mend = lines[outage]
    cut()
    with pytest.raises(OutsideUnavailable):
        check(world.ctx, job.id)
    mend()
    assert world.job(job.id).phase is Phase.SUBMITTED
    assert check(world.ctx, job.id).pins is not None


def test_a_job_that_was_stopped_during_its_check_is_answered_as_it_is(world: World) -> None:
    job = world.submit()
    request_stop(world.ctx, job.id, actor="bob")
    world.tend()
    checked = check(world.ctx, job.id)
    assert (checked.phase, checked.explanation.reason) == (Phase.FAILED, Reason.STOPPED)


def test_a_stop_between_the_look_and_the_write_does_not_lose_the_pins(world: World) -> None:
    job = world.submit()

    class StopsMeanwhile:
        """Somebody stops the job while its datasets are read."""

        def scan(self, *args: object, **kwargs: object) -> object:
            request_stop(world.ctx, job.id, actor="bob")
            return world.source.scan(*args, **kwargs)  # type: ignore[arg-type]

    checked = check(replace(world.ctx, dataset_source=StopsMeanwhile()), job.id)  # type: ignore[arg-type]
    assert checked.pins is not None
    assert checked.stop_requested_by == "bob"


def test_a_team_may_ask_for_what_its_cohort_could_lend(tmp_path: Path) -> None:
    teams = {"a": make_quota(1), "b": make_quota(3)}
    world = World(tmp_path, policies={POOL: make_policy(teams=teams, cohort="all")})
    assert check(world.ctx, world.submit(team="a", gpus_per_node=4).id).pins is not None
    with pytest.raises(RequestRefused):
        check(world.ctx, world.submit(team="a", gpus_per_node=5).id)


# --- launch -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_runtime", "value"), [("90s", 0.1), ("12d", 1e16), ("30d", 1e20), ("90s", -0.0)])
def test_a_launched_job_has_a_run_whose_form_asks_for_the_same(world: World, max_runtime: str, value: float) -> None:
    asked = world.request(max_runtime=max_runtime, hyperparameters={"a": value})
    job = launch(world.ctx, world.runs, asked, actor="ann")
    conf = world.runs.conf(DAG, job.id)
    assert submit(world.ctx, conf, dag_id=DAG, run_id=job.id, actor="airflow").id == job.id
    assert replace(parse_request(to_form(job.spec)), owner="ann") == job.spec


def test_a_launched_job_is_in_line_before_its_run_comes_to_it_and_its_run_changes_nothing(world: World) -> None:
    job = launch(world.ctx, world.runs, world.request(), actor="ann")
    assert (job.phase, job.queued_at) == (Phase.STAGING, world.ctx.clock.now())
    world.pass_time(60)
    assert check(world.ctx, job.id) == job
    assert enqueue(world.ctx, job.id) == job


def test_a_launched_job_that_cannot_join_the_line_now_is_left_to_its_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    trigger = world.runs.trigger

    def then_cut(*args: object) -> bool:
        monkeypatch.setattr(world.ctx.store, "begin", unavailable)
        return trigger(*args)  # type: ignore[arg-type]

    def unavailable(**_: object) -> object:
        raise OutsideUnavailable("the database does not answer", what="store")

    monkeypatch.setattr(world.runs, "trigger", then_cut)
    job = launch(world.ctx, world.runs, world.request(), actor="ann")
    monkeypatch.undo()
    assert (job.phase, world.runs.state(DAG, job.id).state) == (Phase.SUBMITTED, "queued")
    assert enqueue(world.ctx, job.id).phase is Phase.STAGING


def test_a_refused_request_starts_no_run(world: World) -> None:
    with pytest.raises(RequestRefused):
        launch(world.ctx, world.runs, world.request(image="unknown:1"), actor="ann")
    assert world.runs.state(DAG, "job-20260302-001").state == "absent"


@pytest.mark.parametrize("outage", ["engine", "cluster", "dataset source"])
def test_a_request_that_cannot_be_looked_up_leaves_no_job(world: World, outage: str) -> None:
    silent = {"engine": world.runs.line, "cluster": world.driver.line, "dataset source": world.source_line}[outage]
    silent.cut("connection refused")
    for _ in range(2):
        with pytest.raises(OutsideUnavailable, match="connection refused"):
            launch(world.ctx, world.runs, world.request(), actor="ann")
    with world.ctx.store.read() as tx:
        assert list(tx.jobs.find()) == []
    silent.mend()
    assert launch(world.ctx, world.runs, world.request(), actor="ann").pins is not None


def test_a_request_is_looked_up_once(world: World) -> None:
    class Counted:
        scans = 0

        def scan(self, *args: object, **kwargs: object) -> object:
            self.scans += 1
            return world.source.scan(*args, **kwargs)  # type: ignore[arg-type]

    counted = Counted()
    ctx = replace(world.ctx, dataset_source=counted)  # type: ignore[arg-type]
    job = launch(ctx, world.runs, world.request(), actor="ann")
    assert counted.scans == 1
    with world.ctx.store.read() as tx:
        assert list(tx.records.spans(job.id)) == [], "it was looked up before there was a job"


def test_a_job_whose_run_cannot_be_started_says_so_and_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> bool:
        raise OutsideUnavailable("connection reset.", what="airflow")

    monkeypatch.setattr(world.runs, "trigger", breaks)
    with pytest.raises(OutsideUnavailable, match=r"connection reset\. Job job-20260302-001 has failed because of it\."):
        launch(world.ctx, world.runs, world.request(), actor="ann")
    job = world.job("job-20260302-001")
    assert (job.phase, job.explanation.reason) == (Phase.FAILED, Reason.RUN_ENDED)
    assert "connection reset" in job.explanation.message


def test_a_slow_check_does_not_cost_a_job_its_run(world: World) -> None:
    job = submit(world.ctx, world.request(), dag_id=DAG, run_id=None, actor="ann")
    world.pass_time(START_GRACE.total_seconds() - 1)
    assert not reconcile_runs(world.ctx)
    world.pass_time(1)
    assert len(reconcile_runs(world.ctx)) == 1
    assert world.job(job.id).explanation.reason is Reason.RUN_ENDED, "but one that never gets a run ends"


# --- restart ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [False, True])
def test_a_restart_asks_for_the_same_code_and_perhaps_the_checkpoint(world: World, resume: bool) -> None:
    job = world.running()
    world.driver.space.write(world.driver.space.checkpoints(job.id), {"last.pt": b"weights"})
    request_stop(world.ctx, job.id, actor="ann")
    for _ in range(3):
        world.tend()
    world.driver.code.commit(REPOSITORY, {"train.py": b"newer"})
    request = restart_request(world.ctx, job.id, resume=resume)
    again = launch(world.ctx, world.runs, request, actor="bob", restart_of=job.id)
    assert again.pins is not None
    assert again.pins.commit == world.commit
    assert (again.spec.checkpoint, again.restart_of, again.spec.owner) == (job.id if resume else None, job.id, "bob")


def test_what_runs_is_not_restarted(world: World) -> None:
    with pytest.raises(Conflict, match="stop it first"):
        restart_request(world.ctx, world.running().id, resume=True)


def test_a_new_node_is_known_at_the_next_check(world: World) -> None:
    world.driver.nodes.put(make_node("n0", gpus=4), make_node("n1", gpus=8))
    assert check(world.ctx, world.submit(gpus_per_node=8).id).pins is not None
