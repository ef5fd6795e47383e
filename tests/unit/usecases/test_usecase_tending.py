"""Staging, admission and the Tender: who starts, what is seen, what is read, who is asked to end."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from world import NO_PATIENCE, POOL, World, check_at_rest, check_invariants

from builders import make_lease, make_node, seconds
from fermion.adapters.memory.store import MemoryStore, MemoryTransaction
from fermion.domain.jobs import Phase
from fermion.domain.leases import TERM, HolderKind, LeasePhase
from fermion.domain.quota import cohort_of
from fermion.domain.reasons import Reason
from fermion.domain.workloads import ExitCause, Usage, WorkloadState
from fermion.errors import Conflict, OutsideUnavailable
from fermion.usecases.admit import admit
from fermion.usecases.check import check
from fermion.usecases.explain import explain
from fermion.usecases.prepare import describe, prepare
from fermion.usecases.report import compose_report
from fermion.usecases.save import save_model
from fermion.usecases.stage import clone_repository, enqueue, mount_dataset, pull_image
from fermion.usecases.stop import request_stop
from fermion.usecases.sync import sync_platform
from fermion.usecases.tend import PREPARE_EVERY, Tender
from fermion.usecases.wait import wait_for_grant

# --- staging ----------------------------------------------------------------------------------------------------------


def test_staging_is_recorded_and_may_be_repeated(world: World) -> None:
    job = world.submit()
    world.stage(job.id)
    assert world.stage(job.id).phase is Phase.STAGING
    with world.ctx.store.read() as tx:
        spans = {span.stage: span.outcome for span in tx.records.spans(job.id)}
    assert spans == dict.fromkeys(["check_quota", "pull_image", "mount_dataset", "clone_repository"], "succeeded")
    assert world.verbs(job.id).count("job.staging") == 1


def test_a_stage_that_fails_is_recorded_with_its_words(world: World) -> None:
    job = world.submit()
    world.stage(job.id)
    with world.line_cut(), pytest.raises(OutsideUnavailable):
        pull_image(world.ctx, job.id)
    with world.ctx.store.read() as tx:
        span = next(span for span in tx.records.spans(job.id) if span.stage == "pull_image")
    assert (span.outcome, span.detail) == ("failed", "the cluster does not answer: connection refused")


def test_an_unchecked_job_cannot_be_staged(world: World) -> None:
    with pytest.raises(Conflict, match="not checked yet"):
        pull_image(world.ctx, world.submit().id)


def test_a_job_starts_from_the_checkpoint_it_was_asked_to_and_then_from_its_own(world: World) -> None:
    earlier = world.running()
    space = world.driver.space
    space.write(space.checkpoints(earlier.id), {"last.pt": b"1"})
    job = world.stage(world.submit(checkpoint=earlier.id).id)
    assert describe(world.ctx, world.driver, job).resume_from == space.checkpoints(earlier.id)
    space.write(space.checkpoints(job.id), {"last.pt": b"2"})
    assert describe(world.ctx, world.driver, job).resume_from == space.checkpoints(job.id)
    scratch = world.stage(world.submit().id)
    assert describe(world.ctx, world.driver, scratch).resume_from is None


def test_preparing_twice_makes_one_workload(world: World) -> None:
    job = world.waiting()
    assert prepare(world.ctx, job.id) == job
    assert world.driver.workloads.names() == [world.name(job.id)]
    assert world.state(job.id) is WorkloadState.SUSPENDED


def test_a_job_that_ends_while_its_workload_is_made_leaves_none(world: World) -> None:
    job = world.stage(world.submit().id)

    class EndsMeanwhile(MemoryStore):
        """Somebody's Tender ends the job while its dataset is looked up: it finds no workload to remove yet."""

        reads = 0

        @contextmanager
        def begin(self, *, exclusive: str | None = None) -> Iterator[MemoryTransaction]:
            with world.memory.begin(exclusive=exclusive) as tx:
                yield tx

        @contextmanager
        def read(self) -> Iterator[MemoryTransaction]:
            self.reads += 1
            if self.reads == 2:
                request_stop(world.ctx, job.id, actor="bob")
                world.tend()
            with world.memory.read() as tx:
                yield tx

    ended = prepare(replace(world.ctx, store=EndsMeanwhile()), job.id)
    assert ended.phase is Phase.FAILED
    assert not world.driver.workloads.names()


# --- admission --------------------------------------------------------------------------------------------------------


def test_a_grant_writes_lease_decision_and_event_together_and_resumes(world: World) -> None:
    job = world.waiting(gpus_per_node=2)
    (granted,) = admit(world.ctx)
    assert (granted.job.id, granted.job.phase) == (job.id, Phase.STARTING)
    assert (granted.lease.gpus, granted.lease.token, granted.lease.attempt) == (2, 1, 1)
    assert world.decisions(job.id) == ["granted"]
    assert world.verbs(job.id)[-1] == "job.starting"
    seen = world.driver.workloads.look(world.name(job.id))
    assert (seen.state, seen.token) == (WorkloadState.RUNNING, 1)
    assert not admit(world.ctx), "nothing more to grant"
    check_invariants(world)


class UnsureStore(MemoryStore):
    """Loses the connection at a commit: before it, or after it so that the caller does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.loses: str | None = None

    @contextmanager
    def begin(self, *, exclusive: str | None = None) -> Iterator[MemoryTransaction]:
        losing = self.loses if exclusive else None
        with super().begin(exclusive=exclusive) as tx:
            yield tx
            if losing == "before":
                raise OutsideUnavailable("the connection broke")
        if losing == "after":
            raise OutsideUnavailable("the connection broke")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_grant_is_written_whole_or_not_at_all_and_always_mended(tmp_path: Path, when: str) -> None:
    store = UnsureStore()
    world = World(tmp_path, store=store)
    job = world.waiting()
    store.loses = when
    with pytest.raises(OutsideUnavailable):
        admit(world.ctx)
    store.loses = None
    check_invariants(world)
    assert world.job(job.id).phase is (Phase.STARTING if when == "after" else Phase.WAITING)
    assert world.state(job.id) is WorkloadState.SUSPENDED
    for _ in range(3):
        Tender(world.ctx).round()
    assert world.job(job.id).phase is Phase.RUNNING
    assert len(world.leases(job.id, live_only=False)) == 1


def test_a_line_that_cannot_be_served_fails_nobody_who_waits(tmp_path: Path) -> None:
    store = UnsureStore()
    world = World(tmp_path, store=store)
    job = world.stage(world.submit().id)
    store.loses = "before"
    assert world.wait(job.id).phase is Phase.WAITING


def test_a_resume_that_fails_is_mended_by_the_tender(world: World) -> None:
    job = world.waiting()
    with world.line_cut():
        assert len(admit(world.ctx)) == 1
    assert (world.job(job.id).phase, world.state(job.id)) == (Phase.STARTING, WorkloadState.SUSPENDED)
    assert world.tend()[job.id].phase is Phase.RUNNING


def test_who_was_asked_to_stop_is_not_granted(world: World) -> None:
    job = world.waiting()
    request_stop(world.ctx, job.id, actor="bob")
    assert not admit(world.ctx)
    world.tend()
    assert world.job(job.id).explanation.reason is Reason.STOPPED
    assert not world.driver.workloads.names()


def test_a_stop_after_the_grant_never_starts_the_training(world: World) -> None:
    job = world.waiting()
    with world.line_cut():
        admit(world.ctx)
    request_stop(world.ctx, job.id, actor="bob")
    assert world.tend()[job.id].phase is Phase.STOPPING
    assert world.state(job.id) is WorkloadState.ABSENT
    ended = world.tend()[job.id]
    assert (ended.phase, ended.explanation.reason) == (Phase.FAILED, Reason.STOPPED)
    assert world.leases(job.id, live_only=False)[0].exec_at is None


def test_a_waiting_job_is_told_why_once_per_reason(world: World) -> None:
    world.started(gpus_per_node=4)
    job = world.waiting(gpus_per_node=3)
    for _ in range(3):
        admit(world.ctx)
    kept = world.job(job.id)
    assert kept.explanation.reason is Reason.WAITING_FOR_QUOTA
    assert kept.explanation.numbers["position"] == 1
    answer = explain(world.ctx, job.id)
    assert answer["reason"] == "waiting_for_quota"
    assert "4 of 4 GPUs in use" in str(answer["message"])
    assert world.decisions(job.id, "admit") in ([], ["waits"])


def test_explaining_changes_nothing(world: World) -> None:
    holder = world.started(gpus_per_node=4)
    job = world.waiting()
    version = world.job(job.id).version
    explain(world.ctx, job.id)
    assert world.job(job.id).version == version
    assert explain(world.ctx, holder.id)["phase"] == "starting"


def test_a_running_job_is_explained_with_since_when_how_far_and_until_when(world: World) -> None:
    job = world.running(gpus_per_node=2, max_runtime="10m")
    began = world.clock.now()
    world.pass_time(30)
    world.driver.workloads.report(world.name(job.id), progress=25)
    world.tend()
    told = explain(world.ctx, job.id)["numbers"]
    assert isinstance(told, dict)
    assert (told["gpus"], told["ran_s"], told["progress_percent"]) == (2, 30.0, 25)
    assert told["expected_end"] == (began + seconds(120)).isoformat()
    assert told["ends_by"] == (began + seconds(600)).isoformat()


def test_a_job_whose_pool_is_gone_says_so_and_starts_when_it_is_back(world: World) -> None:
    world.started(gpus_per_node=4)
    job = world.waiting()
    node = make_node("n0", gpus=4)
    world.driver.nodes.put(replace(node, devices=tuple(replace(d, model="H100") for d in node.devices)))
    sync_platform(world.ctx)
    assert world.job(job.id).explanation.reason is Reason.MISCONFIGURED
    assert explain(world.ctx, job.id)["reason"] == "misconfigured"
    world.driver.nodes.put(node, make_node("n1", gpus=1))
    sync_platform(world.ctx)
    assert world.job(job.id).phase is Phase.STARTING


def test_the_round_remembers_use_and_reservations(tmp_path: Path) -> None:
    world = World(tmp_path, head_grace=seconds(5))
    world.started(gpus_per_node=4, max_runtime="100s")
    head = world.waiting(gpus_per_node=4, actor="bob")
    world.pass_time(10)
    admit(world.ctx)
    with world.ctx.store.read() as tx:
        cohort = cohort_of(world.ctx.pools(tx)[POOL])
        memory = tx.records.memory(f"admission:{cohort}")
    assert memory is not None
    assert [kept["job_id"] for kept in memory["reservations"]] == [head.id]  # type: ignore[attr-defined]
    late = world.waiting(max_runtime="30s")
    admit(world.ctx)
    assert world.job(late.id).phase is Phase.WAITING


def test_other_holders_count_and_are_never_touched(world: World) -> None:
    with world.ctx.store.begin() as tx:
        service = make_lease(gpus=3, holder_kind=HolderKind.INSTANCE, holder_id="ide-1", pool=POOL, node="n0")
        tx.leases.add(replace(service, granted_at=world.clock.now()))
    job = world.waiting(gpus_per_node=2)
    admit(world.ctx)
    assert world.job(job.id).phase is Phase.WAITING
    sync_platform(world.ctx)
    assert [lease.holder_id for lease in world.leases()] == ["ide-1"]


# --- what is seen -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cause", "code", "phase", "reason"),
    [
        (ExitCause.EXITED, 0, Phase.SAVING, Reason.SAVING),
        (ExitCause.EXITED, 3, Phase.FAILED, Reason.USER_CODE),
        (ExitCause.OUT_OF_MEMORY, 0, Phase.FAILED, Reason.OUT_OF_MEMORY),
        (ExitCause.NEVER_STARTED, 0, Phase.FAILED, Reason.USER_CODE),
    ],
)
def test_an_exit_ends_the_lease_in_the_same_round(
    world: World, cause: ExitCause, code: int, phase: Phase, reason: Reason
) -> None:
    job = world.running()
    world.pass_time(7)
    world.driver.workloads.exit(world.name(job.id), code, cause=cause)
    after = world.tend()[job.id]
    assert (after.phase, after.explanation.reason) == (phase, reason)
    (lease,) = world.leases(job.id, live_only=False)
    assert (lease.phase, lease.end_cause, lease.exit_at) == (LeasePhase.RELEASED, str(reason), world.clock.now())
    check_invariants(world)


def test_the_next_in_line_starts_in_the_round_that_sees_the_end(world: World) -> None:
    first = world.running(gpus_per_node=4)
    second = world.waiting(gpus_per_node=4)
    world.train_well(first.id)
    world.tend()
    assert world.job(second.id).phase is Phase.STARTING
    assert world.state(second.id) is WorkloadState.RUNNING


def test_a_killed_training_goes_on_in_a_fresh_attempt_and_keeps_its_place(world: World) -> None:
    job = world.running()
    queued = job.queued_at
    world.driver.workloads.exit(world.name(job.id), cause=ExitCause.SIGNALLED)
    assert world.tend()[job.id].explanation.reason is Reason.RETRYING
    for _ in range(3):
        world.tend()
    again = world.job(job.id)
    assert (again.phase, again.attempt, again.queued_at) == (Phase.RUNNING, 2, queued)
    assert [lease.attempt for lease in world.leases(job.id, live_only=False)] == [1, 2]
    tokens = [lease.token for lease in world.leases(job.id, live_only=False)]
    assert tokens == sorted(set(tokens))


def test_a_lost_workload_is_tried_elsewhere_but_never_nowhere(tmp_path: Path) -> None:
    world = World(tmp_path, nodes=[make_node("n0", gpus=1), make_node("n1", gpus=1)], max_attempts=4)
    job = world.running()
    for attempt in (2, 3, 4):
        world.driver.workloads.lose(world.name(job.id))
        for _ in range(4):
            world.tend()
        again = world.job(job.id)
        assert (again.phase, again.attempt) == (Phase.RUNNING, attempt), again.explanation.message
    nodes = [lease.slices[0].node for lease in world.leases(job.id, live_only=False)]
    assert nodes[0] != nodes[1], "the node that lost it is left out"
    assert len(again.excluded_nodes) == 1, "but never every node"
    world.driver.workloads.lose(world.name(job.id))
    ended = world.tend()[job.id]
    assert (ended.phase, ended.explanation.reason) == (Phase.FAILED, Reason.WORKLOAD_LOST)
    sync_platform(world.ctx)
    check_at_rest(world)


def test_it_has_to_start_in_time(world: World) -> None:
    world.driver.workloads.start_late(seconds(1000))
    job = world.started()
    world.pass_time(60)
    assert world.tend()[job.id].phase is Phase.STARTING
    world.pass_time(1)
    assert world.tend()[job.id].phase is Phase.STOPPING
    assert world.tend()[job.id].explanation.reason is Reason.START_TIMEOUT
    check_at_rest(world)


def test_a_stop_is_obeyed_and_asked_for_again_when_it_was_not(world: World) -> None:
    job = world.running()
    world.driver.workloads.ignore_term(world.name(job.id))
    request_stop(world.ctx, job.id, actor="bob")
    assert world.tend()[job.id].phase is Phase.STOPPING
    world.pass_time(9)
    assert world.tend()[job.id].phase is Phase.STOPPING
    assert len(world.leases(job.id)) == 1, "it holds its GPUs until it is seen gone"
    world.pass_time(1)
    ended = world.tend()[job.id]
    assert (ended.phase, ended.explanation.reason) == (Phase.FAILED, Reason.STOPPED)
    assert "bob" in ended.explanation.message


def test_a_stop_whose_asker_died_is_carried_out_by_another(world: World) -> None:
    job = world.running()
    request_stop(world.ctx, job.id, actor="bob")

    class DiesAtTheStop(type(world.driver.workloads)):  # type: ignore[misc]
        """The line breaks before the workload is told."""

        def __init__(self) -> None:
            pass

        def __getattribute__(self, name: str) -> object:
            if name == "stop":
                raise OutsideUnavailable("the connection broke")
            return getattr(world.driver.workloads, name)

    broken = type("Broken", (), {"workloads": DiesAtTheStop(), "space": world.driver.space})()
    Tender(replace(world.ctx, drivers={"local": broken})).round()
    assert (world.job(job.id).phase, world.state(job.id)) == (Phase.STOPPING, WorkloadState.RUNNING)
    world.pass_time(3)
    world.tend()
    world.tend()
    assert world.job(job.id).explanation.reason is Reason.STOPPED


def test_a_preempted_training_resumes_and_keeps_its_place(world: World) -> None:
    low = world.running(gpus_per_node=4)
    world.driver.workloads.report(world.name(low.id), progress=40)
    world.driver.space.write(world.driver.space.checkpoints(low.id), {"last.pt": b"1"})
    world.pass_time(2)
    between = world.waiting(gpus_per_node=4)
    high = world.waiting(gpus_per_node=4, priority=9)
    world.tend()
    assert world.job(low.id).preempted_for == high.id
    assert world.decisions(low.id, "preempt") == ["asked_to_end"]
    for _ in range(4):
        world.tend()
        check_invariants(world)
    assert world.job(high.id).phase is Phase.RUNNING
    back = world.job(low.id)
    assert (back.phase, back.attempt, back.preempted_for) == (Phase.WAITING, 2, None)
    assert back.progress.percent == 40
    world.train_well(high.id)
    for _ in range(2):
        world.tend()
    assert world.job(low.id).phase is Phase.RUNNING, "it came before the other one"
    assert world.job(between.id).phase is Phase.WAITING
    assert describe(world.ctx, world.driver, world.job(low.id)).resume_from is not None


def test_the_time_in_line_is_one_number_from_joining_it_to_the_grant(world: World) -> None:
    submitted = world.submit(gpus_per_node=4)
    check(world.ctx, submitted.id)
    world.pass_time(1)
    enqueue(world.ctx, submitted.id)
    for fetch in (pull_image, mount_dataset, clone_repository):
        fetch(world.ctx, submitted.id)
        world.pass_time(1)
    job = world.wait(submitted.id)
    assert job.phase is Phase.STARTING
    world.tend()
    high = world.waiting(gpus_per_node=4, priority=9)
    for _ in range(5):
        world.tend()
    world.pass_time(20)
    world.train_well(high.id)
    world.tend()
    assert world.job(job.id).attempt == 2
    with world.ctx.store.read() as tx:
        spans = [span for span in tx.records.spans(job.id) if span.stage == "wait_for_gpus"]
    assert [(span.ended_at - span.started_at).total_seconds() for span in spans if span.ended_at] == [3.0, 20.0]
    report = compose_report(world.ctx, job.id)
    assert [stage.seconds for stage in report.stages if stage.name == "wait_for_gpus"] == [3.0, 20.0]
    assert report.figures["in_line_seconds"].value == 23.0


def test_a_queue_timeout_ends_a_waiting_job_and_its_workload(world: World) -> None:
    world.started(gpus_per_node=4)
    job = world.waiting(queue_timeout="30s")
    world.pass_time(30)
    world.tend()
    assert world.job(job.id).phase is Phase.WAITING
    world.pass_time(1)
    world.tend()
    assert world.job(job.id).explanation.reason is Reason.QUEUE_TIMEOUT
    assert world.state(job.id) is WorkloadState.ABSENT


# --- leases and progress ----------------------------------------------------------------------------------------------


def test_the_lease_of_a_live_training_never_runs_out(world: World) -> None:
    job = world.running()
    for _ in range(10):
        world.pass_time(TERM.total_seconds() / 3 + 1)
        world.driver.workloads.report(world.name(job.id), progress=1)
        world.tend()
        (lease,) = world.leases(job.id)
        assert lease.expires_at > world.clock.now() + TERM / 2


def test_progress_is_read_once_whoever_reads_it(world: World) -> None:
    job = world.running()
    name = world.name(job.id)
    for epoch in range(1, 6):
        world.driver.workloads.report(name, progress=epoch * 10, epoch=epoch, epochs=10, metrics={"loss": 1 / epoch})
        world.pass_time(2)
        reader = world.tender if epoch % 2 else Tender(world.ctx)
        reader.round()
    kept = world.job(job.id)
    assert (kept.progress.percent, kept.progress.epoch, kept.progress.lines) == (50, 5, 5)
    with world.ctx.store.read() as tx:
        numbers = Counter(point.number for point in tx.records.points(job.id, kind="training"))
    assert numbers == dict.fromkeys(range(5), 1)
    before = kept.version
    Tender(world.ctx).round()
    assert world.job(job.id).version == before, "a restart reads nothing again"


def test_a_restart_never_makes_a_hung_training_look_alive(world: World) -> None:
    job = world.running()
    for percent in (1, 2, 3):
        world.driver.workloads.report(world.name(job.id), progress=percent)
        world.pass_time(2)
        world.tend()
    for _ in range(40):
        world.pass_time(1)
        Tender(world.ctx).round()  # a fresh one each time, as every sync is
    assert world.job(job.id).explanation.reason is Reason.HANG


def test_all_that_was_said_before_the_end_is_read(world: World) -> None:
    job = world.running()
    for number in range(3000):
        world.driver.workloads.report(
            world.name(job.id), progress=number / 30, metrics={"loss": number, "padding" * 8: 1}
        )
    world.train_well(job.id)
    after = world.tend()[job.id]
    assert after.phase is Phase.SAVING
    with world.ctx.store.read() as tx:
        losses = [point.value for point in tx.records.points(job.id, name="loss")]
    assert losses == list(range(3000))
    assert after.progress.lines == 3000
    assert save_model(world.ctx, job.id).metrics["loss"] == 2999


def test_a_lost_race_loses_no_progress(world: World) -> None:
    job = world.running()
    stale = replace(job, version=job.version - 1)
    world.driver.workloads.report(world.name(job.id), progress=70)
    world.train_well(job.id)
    after = world.tender._tend_holding(stale, {})
    assert (after.phase, after.progress.percent) == (Phase.SAVING, 70)


def test_two_tenders_at_once_do_everything_once(world: World) -> None:
    names = [world.running().id for _ in range(4)]
    for job_id in names:
        world.driver.workloads.report(world.name(job_id), progress=50, metrics={"loss": 1})
        world.train_well(job_id)
    threads = [threading.Thread(target=Tender(world.ctx).round) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    for job_id in names:
        assert world.verbs(job_id).count("job.saving") == 1
        assert world.job(job_id).progress.percent == 50
        with world.ctx.store.read() as tx:
            entries = [entry.gpus for entry in tx.leases.ledger() if entry.holder.endswith(job_id)]
        assert entries == [1, -1]
    check_invariants(world)


def test_usage_is_measured_now_and_then_and_kept_for_the_report(world: World) -> None:
    job = world.running()
    for _ in range(10):
        world.driver.workloads.use(
            world.name(job.id), Usage(observed_at=world.clock.now(), source="cgroup", cpu_cores=1.5, memory_mib=100)
        )
        world.tend()
        world.pass_time(1)
    with world.ctx.store.read() as tx:
        points = tx.records.points(job.id, kind="system")
    assert Counter(point.name for point in points) == {"cpu_cores": 2, "memory_mib": 2}


# --- trouble ----------------------------------------------------------------------------------------------------------


def test_a_cluster_that_does_not_answer_keeps_everything_as_it_is(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    job = world.running()
    with world.line_cut():
        for _ in range(5):
            world.pass_time(100)
            assert world.tend()[job.id].phase is Phase.RUNNING
    assert len(world.leases(job.id)) == 1
    told = [record for record in caplog.records if "could not be looked after" in record.message]
    assert len(told) == 1, "said once, not five times a second"
    assert world.tend()[job.id].phase is Phase.RUNNING


def test_one_broken_job_keeps_nobody_from_the_others(world: World, caplog: pytest.LogCaptureFixture) -> None:
    broken = world.running()
    well = world.running()
    world.driver.workloads._reports[world.name(broken.id)] = None  # type: ignore[assignment]
    world.train_well(well.id)
    after = world.tend()
    assert after[well.id].phase is Phase.SAVING
    assert after[broken.id].phase is Phase.RUNNING
    assert f"job {broken.id} could not be looked after" in caplog.text


def test_a_fresh_attempt_whose_image_has_changed_fails_instead_of_waiting_for_ever(world: World) -> None:
    job = world.running()
    image = world.driver.images.known()[0]
    world.driver.images.put(replace(image, digest="sha256:" + "2" * 64))
    world.driver.workloads.lose(world.name(job.id))
    for _ in range(2):
        world.tend()
    ended = world.job(job.id)
    assert (ended.phase, ended.explanation.reason) == (Phase.FAILED, Reason.STAGING_FAILED)
    assert "was pinned as" in ended.explanation.message


def test_a_fresh_attempt_that_cannot_be_fetched_now_is_tried_again_later(world: World) -> None:
    job = world.running()
    world.driver.workloads.lose(world.name(job.id))
    world.tend()
    with world.line_cut():
        world.tend()
    assert world.tend()[job.id].phase is Phase.STAGING, "not in every round"
    world.clock.advance(PREPARE_EVERY)
    world.tend()
    assert world.job(job.id).phase is Phase.STARTING


def test_waiting_ends_when_its_patience_does(world: World) -> None:
    world.started(gpus_per_node=4)
    job = world.stage(world.submit().id)
    assert wait_for_grant(world.ctx, job.id, patience=NO_PATIENCE).phase is Phase.WAITING
    enqueue(world.ctx, job.id)
    assert world.job(job.id).phase is Phase.WAITING, "joining again keeps the place"
