"""Saving, releasing, reconciling, examining, reporting: nothing is left behind, and nothing is said that is not so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from world import DAG, NO_PATIENCE, POOL, World, check_at_rest, check_invariants

from builders import make_lease, make_node, seconds
from fermion.adapters.memory.driver import MemoryDriver
from fermion.adapters.models.local import LocalModels
from fermion.domain.artifacts import ModelDraft, ModelVersion
from fermion.domain.figures import Method
from fermion.domain.jobs import FINAL, HOLDING, Job, Phase, Status
from fermion.domain.leases import TERM, LeasePhase
from fermion.domain.reasons import Reason
from fermion.domain.workloads import ExitCause, WorkloadState
from fermion.errors import Conflict, NotFound, OutsideUnavailable, RequestRefused
from fermion.usecases.again import train_again
from fermion.usecases.carrying import RUN_GRACE
from fermion.usecases.check import check
from fermion.usecases.doctor import examine
from fermion.usecases.moving import load
from fermion.usecases.queries import job_of_run, leases_of, pool_states
from fermion.usecases.release import release
from fermion.usecases.report import compose_report, write_report
from fermion.usecases.save import save_model
from fermion.usecases.stage import clone_repository
from fermion.usecases.stop import request_stop
from fermion.usecases.sync import reconcile, sync_platform
from fermion.usecases.tend import Tender

# --- save -------------------------------------------------------------------------------------------------------------


def test_a_model_is_published_once_with_its_lineage(world: World) -> None:
    job = world.saving()
    version = save_model(world.ctx, job.id)
    assert save_model(world.ctx, job.id) == version
    assert [each.number for each in world.models.versions("digits")] == [1]
    lineage = version.lineage
    assert lineage["run"] == {"dag_id": DAG, "run_id": job.id}
    assert [lease["token"] for lease in lineage["leases"]] == [1]  # type: ignore[attr-defined]
    assert lineage["code"]["commit"] == world.commit  # type: ignore[index]
    assert world.job(job.id).output_model_path == "digits/1"
    assert world.verbs("digits/1") == ["model.published"]


def test_a_training_that_wrote_no_file_has_failed(world: World) -> None:
    job = world.running()
    world.driver.workloads.exit(world.name(job.id), 0)
    world.tend()
    with pytest.raises(RequestRefused):
        save_model(world.ctx, job.id)
    assert world.job(job.id).explanation.reason is Reason.NO_MODEL
    with pytest.raises(Conflict, match="only a saving job"):
        save_model(world.ctx, job.id)


class Repository(LocalModels):
    """A real repository with an accident: it is away, or something happens while it publishes."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, reserve=0)
        self.is_away = False
        self.meanwhile: Callable[[], object] = lambda: None

    def publish(self, draft: ModelDraft, folder: Path, *, key: str) -> ModelVersion:
        if self.is_away:
            raise OutsideUnavailable("the repository does not answer")
        version = super().publish(draft, folder, key=key)
        self.meanwhile()
        return version


@pytest.fixture
def repository(world: World, tmp_path: Path) -> Repository:
    models = Repository(tmp_path / "models")
    world.models = models
    world.ctx = replace(world.ctx, models=models)
    return models


def test_a_repository_that_is_away_may_be_tried_again(world: World, repository: Repository) -> None:
    job = world.saving()
    repository.is_away = True
    with pytest.raises(OutsideUnavailable):
        save_model(world.ctx, job.id)
    assert world.job(job.id).phase is Phase.SAVING
    repository.is_away = False
    assert save_model(world.ctx, job.id).number == 1


def test_a_repository_that_stays_away_is_the_reason(world: World, repository: Repository) -> None:
    job = world.saving()
    repository.is_away = True
    with pytest.raises(OutsideUnavailable):
        save_model(world.ctx, job.id)
    ended = release(world.ctx, job.id)
    assert ended.explanation.reason is Reason.SAVE_FAILED
    assert "the repository does not answer" in ended.explanation.message


def test_a_stop_while_the_model_is_published_does_not_lose_it(world: World, repository: Repository) -> None:
    job = world.saving()
    repository.meanwhile = lambda: request_stop(world.ctx, job.id, actor="bob")
    save_model(world.ctx, job.id)
    assert world.job(job.id).phase is Phase.COMPLETED


def test_a_job_that_was_ended_while_its_model_was_published_says_so(world: World, repository: Repository) -> None:
    job = world.saving()
    repository.meanwhile = lambda: release(world.ctx, job.id)
    with pytest.raises(Conflict, match=r"digits/1 was published, but job .* had ended meanwhile"):
        save_model(world.ctx, job.id)
    assert world.job(job.id).explanation.reason is Reason.RUN_ENDED


# --- release ----------------------------------------------------------------------------------------------------------


def bring_to(world: World, phase: Phase) -> Job:
    """A job in that phase."""
    if phase is Phase.SUBMITTED:
        return world.submit()
    if phase is Phase.STAGING:
        return world.stage(world.submit().id)
    if phase is Phase.WAITING:
        return world.waiting()
    if phase is Phase.STARTING:
        return world.started()
    if phase is Phase.RUNNING:
        return world.running()
    if phase is Phase.STOPPING:
        job = world.running()
        world.driver.workloads.ignore_term(world.name(job.id))
        request_stop(world.ctx, job.id, actor="bob")
        world.tend()
        return world.job(job.id)
    job = world.saving()
    if phase is Phase.COMPLETED:
        save_model(world.ctx, job.id)
    if phase is Phase.FAILED:
        release(world.ctx, job.id)
    return world.job(job.id)


HELD = [WorkloadState.RUNNING, WorkloadState.EXITED, WorkloadState.LOST, WorkloadState.ABSENT]
WORKLOADS: dict[Phase, list[WorkloadState]] = {
    Phase.SUBMITTED: [WorkloadState.ABSENT],
    Phase.STAGING: [WorkloadState.ABSENT],
    Phase.WAITING: [WorkloadState.SUSPENDED, WorkloadState.ABSENT],
    Phase.STARTING: [WorkloadState.SUSPENDED, *HELD],
    Phase.RUNNING: HELD,
    Phase.STOPPING: HELD,
    Phase.SAVING: [WorkloadState.EXITED, WorkloadState.ABSENT],
    Phase.COMPLETED: [WorkloadState.EXITED, WorkloadState.ABSENT],
    Phase.FAILED: [WorkloadState.ABSENT],
}


def put_workload(world: World, job: Job, state: WorkloadState) -> None:
    """Bring the workload into that state."""
    workloads, name = world.driver.workloads, world.name(job.id)
    if workloads.look(name).state is state:
        return
    if state is WorkloadState.EXITED:
        workloads.exit(name, 1)
    elif state is WorkloadState.LOST:
        workloads.lose(name, orphans=1)
    elif workloads.look(name).state is WorkloadState.RUNNING:
        workloads.lose(name)
        workloads.remove(name)
    else:
        workloads.remove(name)
    assert workloads.look(name).state is state


@pytest.mark.parametrize(
    ("phase", "state"), [(phase, state) for phase, states in WORKLOADS.items() for state in states], ids=str
)
@pytest.mark.parametrize("is_stopped", [False, True], ids=["", "stop asked"])
def test_after_a_release_nothing_is_left_whatever_was(
    world: World, phase: Phase, state: WorkloadState, is_stopped: bool
) -> None:
    if state is WorkloadState.SUSPENDED:
        world.driver.workloads.start_late(seconds(1000))
    job = bring_to(world, phase)
    assert job.phase is phase
    put_workload(world, job, state)
    if is_stopped:
        request_stop(world.ctx, job.id, actor="bob")
    if phase is Phase.STOPPING:
        world.pass_time(10)  # its grace
    ended = release(world.ctx, job.id)
    assert ended.phase in FINAL
    assert not world.leases(job.id)
    assert world.driver.workloads.names() == []
    assert (ended.phase is Phase.COMPLETED) is (phase is Phase.COMPLETED)
    if is_stopped and phase not in (Phase.SAVING, Phase.COMPLETED, Phase.FAILED):
        has_ended_by_itself = phase in HOLDING and state is WorkloadState.EXITED
        assert ended.explanation.reason is (
            Reason.USER_CODE if has_ended_by_itself and phase is not Phase.STOPPING else Reason.STOPPED
        )
    again = release(world.ctx, job.id)
    assert again == ended
    check_at_rest(world)
    sync_platform(world.ctx)
    check_at_rest(world)


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.RUNNING])
def test_a_run_that_was_marked_failed_ends_its_training_as_that(world: World, phase: Phase) -> None:
    job = bring_to(world, phase)
    ended = release(world.ctx, job.id, why="Task train was marked failed.")
    assert (ended.status, ended.explanation.reason) == (Status.FAILED, Reason.RUN_ENDED)
    assert "Task train was marked failed." in ended.explanation.message
    (lease,) = world.leases(job.id, live_only=False)
    assert (lease.phase, lease.end_cause) == (LeasePhase.RELEASED, "run_ended")


def test_a_training_that_ended_by_itself_keeps_its_own_reason(world: World) -> None:
    job = world.running()
    world.driver.workloads.exit(world.name(job.id), cause=ExitCause.OUT_OF_MEMORY)
    assert release(world.ctx, job.id).explanation.reason is Reason.OUT_OF_MEMORY


def test_a_stage_that_gave_up_is_the_reason(world: World) -> None:
    job = world.submit()
    world.stage(job.id)
    with world.line_cut(), pytest.raises(OutsideUnavailable):
        clone_repository(world.ctx, job.id)
    ended = release(world.ctx, job.id)
    assert ended.explanation.reason is Reason.STAGING_FAILED
    assert "clone_repository failed: the cluster does not answer" in ended.explanation.message


def test_a_run_that_is_marked_failed_while_it_stages_is_not_a_failed_stage(world: World) -> None:
    assert release(world.ctx, bring_to(world, Phase.STAGING).id).explanation.reason is Reason.RUN_ENDED


def test_a_victim_whose_run_ends_does_not_go_back_into_line(world: World) -> None:
    low = world.running(gpus_per_node=4)
    world.driver.workloads.ignore_term(world.name(low.id))
    world.waiting(gpus_per_node=4, priority=9)
    for _ in range(2):
        world.tend()
    assert world.job(low.id).phase is Phase.STOPPING
    world.pass_time(10)
    ended = release(world.ctx, low.id)
    assert (ended.phase, ended.explanation.reason) == (Phase.FAILED, Reason.RUN_ENDED)
    for _ in range(3):
        world.tend()
    assert world.job(low.id) == ended
    assert low.id not in {lease.holder_id for lease in world.leases()}


def test_what_was_lost_and_would_be_tried_again_is_not_once_its_run_has_ended(world: World) -> None:
    job = world.running()
    world.driver.workloads.lose(world.name(job.id))
    ended = release(world.ctx, job.id)
    assert (ended.phase, ended.explanation.reason) == (Phase.FAILED, Reason.RUN_ENDED)
    assert not world.driver.workloads.names()


def test_a_workload_that_does_not_end_keeps_its_lease_until_it_does(world: World) -> None:
    job = world.running()
    world.driver.workloads.ignore_term(world.name(job.id))
    with pytest.raises(OutsideUnavailable, match="stay leased"):
        release(world.ctx, job.id, patience=NO_PATIENCE)
    check_invariants(world)
    assert world.job(job.id).phase is Phase.STOPPING
    world.pass_time(10)
    sync_platform(world.ctx)
    assert world.job(job.id).explanation.reason is Reason.RUN_ENDED
    check_at_rest(world)


def test_a_release_while_the_cluster_is_away_is_finished_by_the_sync(world: World) -> None:
    job = world.running()
    with world.line_cut():
        with pytest.raises(OutsideUnavailable):
            release(world.ctx, job.id)
        sync_platform(world.ctx)
        assert world.job(job.id).phase is Phase.STOPPING
        assert len(world.leases(job.id)) == 1
    world.pass_time(5)
    for _ in range(2):
        sync_platform(world.ctx)
    assert world.job(job.id).explanation.reason is Reason.RUN_ENDED
    check_at_rest(world)


def test_the_next_in_line_starts_at_the_release(world: World) -> None:
    first = world.running(gpus_per_node=4)
    second = world.waiting(gpus_per_node=4)
    release(world.ctx, first.id)
    assert world.job(second.id).phase is Phase.STARTING


# --- sync -------------------------------------------------------------------------------------------------------------


def kinds(found: object) -> list[str]:
    return sorted(difference.kind for difference in found)  # type: ignore[attr-defined]


def leak(world: World) -> None:
    """A lease whose job has ended: what a bug or a restored backup would leave."""
    now = world.clock.now()
    lease = make_lease(holder_id="job-20260101-001", pool=POOL, granted_at=now, first=3)
    with world.ctx.store.begin() as tx:
        tx.leases.add(replace(lease, expires_at=now + seconds(60)))


@pytest.mark.parametrize(("waits", "phase"), [(10, LeasePhase.RELEASED), (61, LeasePhase.EXPIRED)])
def test_a_leaked_lease_is_ended_once_and_told(world: World, waits: float, phase: LeasePhase) -> None:
    leak(world)
    world.pass_time(waits)
    assert kinds(sync_platform(world.ctx)) == ["leak"]
    assert not sync_platform(world.ctx)
    assert world.leases("job-20260101-001", live_only=False)[0].phase is phase
    assert world.verbs("lease-1") == ["reconcile.leak"]


def test_a_training_that_runs_without_its_job_is_ended_before_its_gpus_are_free(world: World) -> None:
    job = world.running()
    name = world.name(job.id)
    world.driver.workloads.ignore_term(name)
    with world.ctx.store.begin() as tx:  # the job's row was lost and restored from a backup
        tx.jobs.save(replace(load(tx, job.id), phase=Phase.FAILED))
    assert "ghost" in kinds(reconcile(world.ctx))
    assert len(world.leases(job.id)) == 1
    world.pass_time(10)
    reconcile(world.ctx)
    reconcile(world.ctx)
    assert not world.leases(job.id)
    assert not world.driver.workloads.names()


@pytest.mark.parametrize("is_running", [False, True])
def test_a_workload_without_an_open_job_is_ended_and_forgotten(world: World, is_running: bool) -> None:
    job = world.running() if is_running else world.waiting()
    spec = replace(world.driver.workloads._workloads[world.name(job.id)].spec, name="job-20260101-009-a1")
    world.driver.workloads.prepare(spec)
    if is_running:
        grant = world.driver.workloads._workloads[world.name(job.id)].grant
        assert grant is not None
        world.driver.workloads.resume(spec.name, grant)
    assert kinds(sync_platform(world.ctx)) == ["stray"]
    assert not sync_platform(world.ctx)
    assert spec.name not in world.driver.workloads.names()
    assert world.name(job.id) in world.driver.workloads.names()


def test_a_workload_that_is_made_while_the_sync_looks_is_no_stray(world: World) -> None:
    made: list[str] = []

    class Busy(type(world.driver.workloads)):  # type: ignore[misc]
        """Right after its names were listed, a task prepares another job's workload."""

        def __init__(self) -> None:
            pass

        def __getattribute__(self, name: str) -> object:
            found = getattr(world.driver.workloads, name)
            if name == "names" and not made:
                names = found()
                made.append(world.waiting().id)
                return lambda: names
            return found

    driver = MemoryDriver(world.clock)
    driver.__dict__.update(world.driver.__dict__, workloads=Busy())
    assert not reconcile(replace(world.ctx, drivers={"local": driver}))
    assert world.state(made[0]) is WorkloadState.SUSPENDED


def test_orphans_are_ended_and_told(world: World) -> None:
    job = world.running(gpus_per_node=4)
    world.driver.workloads.lose(world.name(job.id), orphans=2)
    sync_platform(world.ctx)
    assert not world.driver.workloads.orphans()
    with world.ctx.store.read() as tx:
        told = [event for _, event in tx.records.events(limit=1000) if event.verb == "reconcile.orphan"]
    assert len(told) == 2


def test_no_second_attempt_is_granted_while_a_process_of_the_first_lives(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.running(gpus_per_node=4)
    world.driver.workloads.lose(world.name(job.id), orphans=1)
    monkeypatch.setattr(world.driver.workloads, "end_orphans", lambda: 0)  # it hangs in a driver call
    for _ in range(3):
        sync_platform(world.ctx)
        world.pass_time(30)
    held = world.job(job.id)
    assert (held.phase, held.attempt) == (Phase.RUNNING, 1)
    assert [lease.attempt for lease in world.leases()] == [1]
    monkeypatch.undo()
    for _ in range(3):
        sync_platform(world.ctx)
    assert world.job(job.id).attempt == 2
    assert not world.driver.workloads.orphans()


@pytest.mark.parametrize(
    "phase", [Phase.SUBMITTED, Phase.STAGING, Phase.WAITING, Phase.STARTING, Phase.RUNNING, Phase.SAVING]
)
@pytest.mark.parametrize("state", ["absent", "failed", "success"])
def test_a_job_whose_run_is_gone_is_let_go_of(world: World, phase: Phase, state: str) -> None:
    job = bring_to(world, phase)
    assert job.run is not None
    if state == "absent":
        world.runs.delete(*job.run)
    else:
        world.runs.end(*job.run, state)
    world.pass_time(RUN_GRACE.total_seconds() - 1)
    sync_platform(world.ctx)
    assert not world.job(job.id).is_final, "its teardown may have begun just now"
    world.pass_time(600)
    for _ in range(3):
        sync_platform(world.ctx)
    ended = world.job(job.id)
    assert (ended.phase, ended.explanation.reason) == (Phase.FAILED, Reason.RUN_ENDED)
    if state != "absent":
        assert world.runs.state(*job.run).state == "failed", "no run of a failed job counts as a success"
    check_at_rest(world)


def test_a_run_that_trains_again_is_not_marked_failed_for_its_first_job(world: World) -> None:
    job = world.running()
    assert job.run is not None
    world.runs.end(*job.run, "failed")
    world.pass_time(RUN_GRACE.total_seconds() + 1)
    for _ in range(2):
        sync_platform(world.ctx)
    again = train_again(world.ctx, job.id)
    world.runs.end(*job.run, "success")
    sync_platform(world.ctx)
    assert again.run == job.run
    assert world.runs.state(*job.run).state == "success"


def test_an_engine_that_does_not_answer_ends_nobody(world: World) -> None:
    job = world.running()
    world.runs.line.cut()
    world.pass_time(25)
    sync_platform(world.ctx)
    assert world.job(job.id).phase is Phase.RUNNING


def test_a_cluster_that_does_not_answer_keeps_its_last_state_and_the_others_go_on(world: World, tmp_path: Path) -> None:
    other = MemoryDriver(world.clock, nodes=[make_node("m0", gpus=2, cluster="other")])
    world.ctx = replace(world.ctx, drivers={**world.ctx.drivers, "other": other})
    world.tender = Tender(world.ctx)
    sync_platform(world.ctx)
    job = world.running()
    other.nodes.put(make_node("m0", gpus=3, cluster="other"))
    leak(world)
    with world.line_cut():
        world.pass_time(TERM.total_seconds() * 3)
        assert not sync_platform(world.ctx), "nothing is concluded from silence"
    with world.ctx.store.read() as tx:
        errors = {sync.source: sync.error for sync in tx.records.syncs()}
        pools = {pool.id: pool.total for pool in world.ctx.pools(tx).values()}
    assert pools == {POOL: 4, "other/declared": 3}
    assert errors["cluster:other"] is None
    assert "does not answer" in str(errors["cluster:local"])
    assert len(world.leases(job.id)) == 1
    assert world.job(job.id).phase is Phase.RUNNING


def test_a_cluster_that_is_configured_no_more_stops_nothing_else(world: World) -> None:
    leak(world)
    with world.ctx.store.begin() as tx:
        foreign = replace(make_lease("lease-2", holder_id="job-20260101-002", pool="gone/declared"))
        tx.leases.add(foreign)
    assert kinds(sync_platform(world.ctx)) == ["leak"]


def test_the_forms_choices_are_those_that_exist(world: World) -> None:
    sync_platform(world.ctx)
    assert json.loads(world.choices_file.read_text(encoding="utf-8")) == {
        "pools": [POOL],
        "images": ["digits:1"],
        "datasets": ["digits"],
    }


# --- questions --------------------------------------------------------------------------------------------------------


def test_a_pool_says_what_is_held_and_who_waits(world: World) -> None:
    world.running(gpus_per_node=3)
    world.waiting(gpus_per_node=2)
    (state,) = pool_states(world.ctx)
    values = {name: figure.value for name, figure in state.figures.items()}
    assert values == {"capacity": 4, "allocated": 3, "free": 1, "waiting": 1}


def test_a_run_without_a_job_says_why(world: World) -> None:
    with pytest.raises(NotFound, match="refused before one was made"):
        job_of_run(world.ctx, DAG, "nothing")
    job = world.submit(run_id="run-1")
    assert job_of_run(world.ctx, DAG, "run-1").id == job.id
    assert leases_of(world.ctx, job.id) == []


def test_a_healthy_installation_is_said_to_be(world: World) -> None:
    sync_platform(world.ctx)
    world.running()
    found = examine(world.ctx, world.runs)
    assert (found.ok, found.open_leases, found.leaked_gpu_seconds, found.orphans) == (True, 1, 0.0, [])
    said = {each.name: each.detail for each in found.checks}
    assert said["engine"] == "answers"
    assert said["ledger"] == "1 open lease, 0.0 GPU-seconds leaked"
    assert said["models"] == "0 models in the repository"


def test_leaks_and_orphans_are_counted_until_a_sync_ends_them(world: World) -> None:
    leak(world)
    job = world.running()
    world.driver.workloads.lose(world.name(job.id), orphans=1)
    world.pass_time(7)
    found = examine(world.ctx)
    assert (found.ok, found.leaked_gpu_seconds, len(found.orphans or ())) == (False, 7.0, 1)
    for _ in range(2):
        sync_platform(world.ctx)
    assert examine(world.ctx).ok


@pytest.mark.parametrize(
    ("outage", "bad", "known"),
    [
        ("cluster", ["cluster local", "ledger", "orphans"], (2, None, None)),
        ("engine", ["engine"], (2, 0.0, [])),
        ("store", ["database", "ledger", "orphans"], (None, None, None)),
    ],
)
def test_what_cannot_be_looked_at_is_a_check_that_is_not_well_and_its_numbers_are_unknown(
    world: World, outage: str, bad: list[str], known: tuple[object, ...]
) -> None:
    sync_platform(world.ctx)
    leak(world)
    world.running()
    {"cluster": world.driver.line.cut, "engine": world.runs.line.cut, "store": world.memory.fail}[outage]()
    found = examine(world.ctx, world.runs)
    assert [each.name for each in found.checks if not each.ok] == bad
    assert [each.name for each in found.checks if not each.ok and not each.to_do] == []
    assert (found.open_leases, found.leaked_gpu_seconds, found.orphans) == known
    if outage == "store":
        assert {each.detail for each in found.checks[1:]} == {
            "open leases unknown, GPU-seconds leaked unknown",
            "unknown",
        }


# --- report -----------------------------------------------------------------------------------------------------------


def test_every_end_has_a_report(world: World) -> None:
    job = world.running()
    world.driver.workloads.print(world.name(job.id), "Traceback: it broke\n")
    world.driver.workloads.exit(world.name(job.id), 1)
    release(world.ctx, job.id)
    world.pass_time(1)
    report = compose_report(world.ctx, job.id)
    assert (report.outcome.status, report.outcome.reason) == ("failed", "user_code")
    assert "it broke" in report.log_tail
    page = write_report(world.ctx, job.id)
    assert world.ctx.reports.read(job.id) is not None
    assert write_report(world.ctx, job.id) == page


def test_a_refused_request_has_a_report_with_its_problems(world: World) -> None:
    job = world.submit(image="unknown:1", datasets=["nothing"])
    with pytest.raises(RequestRefused):
        check(world.ctx, job.id)
    assert len(compose_report(world.ctx, job.id).outcome.problems) == 2


def test_what_the_exit_record_knew_outlives_the_workload(world: World) -> None:
    job = world.running()
    workload = world.driver.workloads._workloads[world.name(job.id)]
    world.pass_time(10)
    world.train_well(job.id)
    assert workload.exit is not None
    workload.exit = replace(workload.exit, max_rss_mib=123.0, cpu_seconds=4.5)
    world.tend()
    save_model(world.ctx, job.id)
    release(world.ctx, job.id)
    figures = compose_report(world.ctx, job.id).figures
    assert (figures["peak_memory"].value, figures["cpu_time"].value) == (123.0, 4.5)
    mean = figures["cpu_cores_mean"]
    assert (mean.value, mean.unit, mean.method) == (0.45, "cores", Method.DERIVED)
    assert mean.source == "exit record: 4.50 s of CPU / 10.00 s from exec to exit"


def test_a_cluster_that_is_away_does_not_cost_the_report(world: World) -> None:
    job = world.saving()
    save_model(world.ctx, job.id)
    release(world.ctx, job.id)
    with world.line_cut():
        report = compose_report(world.ctx, job.id)
    assert report.log_tail == ""
    assert report.model is not None


def test_a_tail_is_the_end_of_a_long_log(world: World) -> None:
    job = world.running()
    world.driver.workloads.print(world.name(job.id), "x" * 3_000_000 + "\nthe last words\n")
    assert "the last words" in compose_report(world.ctx, job.id).log_tail
