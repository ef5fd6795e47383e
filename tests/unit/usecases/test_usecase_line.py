"""A process that has read the line once goes on from events, and always decides about the line that is stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from world import POOL, World

from builders import make_device, make_node
from fermion.adapters.memory.store import MemoryStore, MemoryTransaction
from fermion.domain.jobs import IN_LINE, Phase
from fermion.domain.reasons import Reason
from fermion.domain.workloads import WorkloadState, workload_name
from fermion.errors import OutsideUnavailable
from fermion.usecases.admit import TOLD_AT_ONCE, admit, group_pools, recall
from fermion.usecases.explain import explain
from fermion.usecases.lines import READ_WHOLE_EVERY, Line, keep_line, read_line, take_line
from fermion.usecases.stop import request_stop


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, gpus=2)


def take(world: World) -> Line:
    """The line as the next round would see it, given back as after a commit."""
    with world.ctx.store.begin() as tx:
        pools = tuple(world.ctx.pools(tx).values())
        line = take_line(world.ctx, tx, "test", pools, world.clock.now())
        whole = read_line(world.ctx, tx, pools, world.clock.now())
        assert {each.waiting for each in line.places.values()} == {each.waiting for each in whole.places.values()}
        assert line.digest == whole.digest
    keep_line(world.ctx, "test", line)
    return line


def test_a_line_that_goes_on_is_the_line_read_whole_whatever_happens_to_its_jobs(world: World) -> None:
    assert take(world).places == {}
    one, two, three, four = (world.waiting(gpus_per_node=2) for _ in range(4))
    assert list(take(world).places) == [one.id, two.id, three.id, four.id]

    admit(world.ctx)
    assert list(take(world).places) == [two.id, three.id, four.id]
    request_stop(world.ctx, two.id, actor="ann")
    five = world.submit()
    assert list(take(world).places) == [three.id, four.id]
    world.stage(five.id)
    line = take(world)
    assert not line.places[five.id].waiting.staged
    world.driver.workloads.lose(f"{one.id}-a1")
    world.tender.round()
    assert take(world).places.keys() >= {five.id}


def test_a_line_is_read_whole_again_when_it_is_old_or_its_policy_changed(world: World) -> None:
    world.waiting()
    first = take(world)
    assert take(world) is first
    world.clock.advance(READ_WHOLE_EVERY)
    second = take(world)
    assert second is not first
    with world.ctx.store.begin() as tx:
        pools = [
            replace(pool, policy=replace(pool.policy, max_runtime=timedelta(hours=1)))
            for pool in world.ctx.pools(tx).values()
        ]
        assert take_line(world.ctx, tx, "test", pools, world.clock.now()) is not second


def test_what_a_round_told_that_failed_is_told_by_the_next(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.waiting(gpus_per_node=2)
    admit(world.ctx)
    behind = world.waiting(gpus_per_node=2)

    def fails(*_: object) -> None:
        raise OutsideUnavailable("the connection is gone", what="store")

    with monkeypatch.context() as patch:
        patch.setattr("fermion.usecases.admit._remember", fails)
        with pytest.raises(OutsideUnavailable, match="the connection is gone"):
            admit(world.ctx)
    assert "position" not in world.job(behind.id).explanation.numbers, "the transaction was taken back"

    admit(world.ctx)
    assert world.job(behind.id).explanation.numbers["position"] == 1


class OneCohortLocked(MemoryStore):
    """A store in which somebody else holds the lock of one cohort for too long."""

    @contextmanager
    def begin(self, *, exclusive: str | None = None) -> Iterator[MemoryTransaction]:
        if exclusive == f"admission:pool {POOL}":
            raise OutsideUnavailable("the lock is held by another transaction", what="store")
        with super().begin(exclusive=exclusive) as tx:
            yield tx


def test_a_cohort_that_cannot_be_decided_holds_up_no_other(tmp_path: Path) -> None:
    nodes = [make_node("n0", gpus=1), make_node("n1", devices=(make_device(model="h100"),))]
    world = World(tmp_path, nodes=nodes, store=OneCohortLocked())
    held_up, other = world.waiting(), world.waiting(pool="local/h100")
    with pytest.raises(OutsideUnavailable):
        admit(world.ctx)
    assert world.job(held_up.id).phase is Phase.WAITING
    assert world.job(other.id).phase is Phase.STARTING
    assert world.driver.workloads.look(workload_name(other.id, 1)).state is WorkloadState.RUNNING, "it was resumed too"


def test_a_lease_that_was_asked_to_end_is_remembered_until_it_has_ended(world: World) -> None:
    def rounds() -> list[str]:
        with world.ctx.store.read() as tx:
            return [decision.verdict for decision in tx.records.decisions(kind="round")]

    def ending() -> dict[str, str]:
        with world.ctx.store.read() as tx:
            memory = recall(tx, f"pool {POOL}")
        return {} if memory is None else dict(memory.ending)

    low = world.running(gpus_per_node=2)
    high = world.waiting(gpus_per_node=2, priority=9)
    admit(world.ctx)
    (lease,) = world.leases(low.id)
    assert ending() == {lease.id: high.id}
    before = rounds()
    admit(world.ctx)
    assert rounds() == before, "nobody was asked again"
    assert world.decisions(low.id, "preempt") == ["asked_to_end"]

    for _ in range(4):
        world.tend()
    assert world.job(high.id).phase is Phase.RUNNING
    assert ending() == {}


def test_a_job_that_another_process_told_is_not_told_again(world: World) -> None:
    world.waiting(gpus_per_node=2)
    admit(world.ctx)
    world.waiting(gpus_per_node=2)
    stale = take(world)
    admit(world.ctx)
    with world.ctx.store.begin() as tx:
        cohort = group_pools(world.ctx.pools(tx), {POOL})
    assert stale.untold, "this process has not heard of it"
    keep_line(world.ctx, *cohort, stale)
    admit(world.ctx)

    with world.ctx.store.read() as tx:
        assert len([each for each in tx.records.decisions() if each.verdict == "waits"]) == 1
    assert not stale.untold


def test_every_new_job_in_line_is_told_once_where_it_stands_also_in_a_long_line(world: World) -> None:
    first = world.waiting(gpus_per_node=2)
    admit(world.ctx)
    jobs = [world.waiting(gpus_per_node=2) for _ in range(TOLD_AT_ONCE + 5)]
    for _ in range(3):
        admit(world.ctx)

    assert world.job(first.id).phase is Phase.STARTING
    with world.ctx.store.read() as tx:
        told = [tx.jobs.get(job.id) for job in jobs]
        waits = [each for each in tx.records.decisions(limit=1000) if each.verdict == "waits"]
        assert len(tx.jobs.find(phases=IN_LINE)) == len(jobs)
    assert [job.explanation.numbers["position"] for job in told if job] == list(range(1, len(jobs) + 1))
    assert sorted(each.subject for each in waits) == sorted(job.id for job in jobs), "looking again is no decision"
    assert told[0] is not None
    assert told[0].explanation.reason is Reason.WAITING_FOR_QUOTA
    assert explain(world.ctx, jobs[-1].id)["reason"] == "waiting_for_quota"


def test_without_past_run_times_nobody_tells_when_a_job_starts(world: World) -> None:
    world.running(gpus_per_node=2)
    behind = world.waiting(gpus_per_node=2)
    told = explain(world.ctx, behind.id)["expected_start"]
    assert isinstance(told, dict)
    assert told["p50"] is None
    assert told["reason"]


def six_ran(world: World, took_s: float) -> None:
    """Trainings of the past, one after the other."""
    for _ in range(6):
        done = world.running(gpus_per_node=2)
        world.pass_time(took_s)
        world.train_well(done.id)
        world.tend()


def test_with_past_run_times_a_waiting_job_is_told_when_it_starts(world: World) -> None:
    six_ran(world, 60)
    world.running(gpus_per_node=2)
    behind = world.waiting(gpus_per_node=2)
    told = explain(world.ctx, behind.id)["expected_start"]
    assert isinstance(told, dict)
    assert world.clock.now().isoformat() <= told["p50"] <= told["p90"]


def test_who_waits_behind_a_training_is_told_of_the_end_that_its_progress_tells(world: World) -> None:
    six_ran(world, 10)
    holder = world.running(gpus_per_node=2)
    behind = world.waiting(gpus_per_node=2)
    world.pass_time(30)
    world.driver.workloads.report(world.name(holder.id), progress=5)
    world.tend()
    end = datetime.fromisoformat(explain(world.ctx, holder.id)["numbers"]["expected_end"])  # type: ignore[index]
    told = explain(world.ctx, behind.id)["expected_start"]
    assert isinstance(told, dict)
    left = end - world.clock.now()
    for name in ("p50", "p90"):
        start = datetime.fromisoformat(told[name])
        assert abs(start - end) <= 0.21 * left, f"{name} is {start}, the training before it ends at {end}"
