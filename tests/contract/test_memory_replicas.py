"""The memory driver's replicas keep the contract; then what only its levers can show."""

from __future__ import annotations

from datetime import timedelta

import pytest
from replicas_contract import LONG, ReplicasContract, grant, run

from fermion.adapters.memory.clock import MemoryClock
from fermion.adapters.memory.outages import Line
from fermion.adapters.memory.replicas import MemoryReplicas
from fermion.domain.serving.replicas import ReplicaSeen, ReplicaSpec, ReplicaState, replica_name, revision_id
from fermion.domain.workloads import ExitCause, Usage
from fermion.errors import OutsideUnavailable

REVISION = revision_id("inf-digits-001", 1)


class MemoryBench:
    """A memory driver's replicas; their clock moves when ``pass_time`` says so."""

    def __init__(self) -> None:
        self.clock = MemoryClock()
        self.line = Line("the cluster")
        self.replicas = MemoryReplicas(self.clock, self.line)

    def spec(self, *, number: int = 1) -> ReplicaSpec:
        name = replica_name(REVISION, number)
        return ReplicaSpec(
            name=name,
            revision=REVISION,
            service="inf-digits-001",
            image="memory://images/sha256:1",
            code="memory://code/1",
            model="memory://models/digits/1",
            model_name="digits",
            model_version=1,
            argv=("server.py",),
            log=self.replicas.log_location(name),
        )

    def hold(self, name: str) -> None:
        self.replicas.hold(name)

    def release(self, name: str) -> None:
        self.replicas.release(name)

    def unready(self, name: str) -> None:
        self.replicas.unready(name)

    def ready(self, name: str) -> None:
        self.replicas.ready(name)

    def crash(self, name: str, code: int) -> None:
        self.replicas.crash(name, code)

    def crash_always(self, name: str) -> None:
        self.replicas.crash_always(name)

    def lose(self, name: str) -> None:
        self.replicas.lose(name)

    def say(self, name: str, text: str) -> None:
        self.replicas.print(name, f"{text}\n")

    def ignore_term(self, name: str) -> None:
        self.replicas.ignore_term(name)

    def pass_time(self, duration: timedelta) -> None:
        self.clock.advance(duration)

    def until(self, name: str, state: ReplicaState, *, starts: int = 1) -> ReplicaSeen:
        seen = self.replicas.look(name)
        assert (seen.state, seen.starts >= starts) == (state, True)
        return seen


@pytest.fixture
def bench() -> MemoryBench:
    return MemoryBench()


class TestMemoryReplicas(ReplicasContract):
    """The contract."""


def test_a_slow_start_is_seen_starting_until_its_time(bench: MemoryBench) -> None:
    bench.replicas.start_slowly(timedelta(seconds=5))
    spec = bench.spec()
    bench.replicas.prepare(spec)
    bench.replicas.resume(spec.name, grant())
    granted_at = bench.clock.now()
    bench.clock.advance(timedelta(seconds=4.999999))
    bench.until(spec.name, ReplicaState.STARTING)
    bench.clock.advance(timedelta(seconds=5))
    assert bench.until(spec.name, ReplicaState.READY).ready_at == granted_at + timedelta(seconds=5)


def test_a_process_that_settled_starts_again_at_once_whatever_was_before(bench: MemoryBench) -> None:
    name = run(bench)
    for _ in range(3):
        bench.clock.advance(bench.spec().settled)
        bench.crash(name, 1)
        bench.until(name, ReplicaState.READY)
    bench.crash(name, 1)
    bench.until(name, ReplicaState.BACKING_OFF)


def test_the_pause_doubles_up_to_its_limit(bench: MemoryBench) -> None:
    name = run(bench)
    bench.crash_always(name)
    bench.clock.advance(timedelta(hours=1))
    before = bench.replicas.look(name).starts
    bench.clock.advance(bench.spec().backoff_limit)
    assert bench.replicas.look(name).starts == before + 1
    bench.replicas.heal(name)
    bench.clock.advance(bench.spec().backoff_limit)
    bench.until(name, ReplicaState.READY)


def test_one_that_ends_by_itself_within_its_grace_was_stopped_and_has_its_code(bench: MemoryBench) -> None:
    name = run(bench)
    bench.ignore_term(name)
    bench.replicas.stop(name, grace=LONG, why="scaled down")
    bench.crash(name, 0)
    record = bench.until(name, ReplicaState.EXITED).exit
    assert record is not None
    assert (record.cause, record.code, record.detail) == (ExitCause.STOPPED, 0, "scaled down")


def test_another_cause_has_no_code(bench: MemoryBench) -> None:
    name = run(bench)
    bench.replicas.crash(name, cause=ExitCause.OUT_OF_MEMORY, detail="2048 of 2048 MiB")
    last = bench.until(name, ReplicaState.READY, starts=2).last_exit
    assert last is not None
    assert (last.cause, last.code, last.signal) == (ExitCause.OUT_OF_MEMORY, None, 9)


def test_what_does_not_run_cannot_crash(bench: MemoryBench) -> None:
    bench.replicas.prepare(bench.spec())
    with pytest.raises(ValueError, match="is suspended"):
        bench.crash(bench.spec().name, 0)


def test_lost_replicas_leave_orphans_until_they_are_ended(bench: MemoryBench) -> None:
    name = run(bench)
    bench.replicas.lose(name, orphans=2)
    seen = bench.until(name, ReplicaState.LOST)
    assert (seen.orphans, seen.is_gone) == (2, False)  # its GPUs are not free
    bench.replicas.remove(name)
    assert len(bench.replicas.orphans()) == 2
    assert bench.replicas.end_orphans() == 2
    assert bench.replicas.orphans() == []


def test_use_is_what_was_set(bench: MemoryBench) -> None:
    name = run(bench)
    usage = Usage(observed_at=bench.clock.now(), source="test", cpu_cores=1.5, gpu_reason="declared slots")
    bench.replicas.use(name, usage)
    assert bench.replicas.look(name).usage == usage


def test_a_cut_line_hides_what_goes_on_behind_it(bench: MemoryBench) -> None:
    name = run(bench)
    bench.line.cut("no route to host")
    for call in (bench.replicas.names, bench.replicas.orphans, lambda: bench.replicas.look(name)):
        with pytest.raises(OutsideUnavailable, match="no route to host"):
            call()
    bench.line.mend()
    bench.until(name, ReplicaState.READY)
