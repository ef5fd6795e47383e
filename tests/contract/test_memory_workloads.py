"""The memory driver's workloads keep the contract; then what only its levers can show."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from workloads_contract import LONG, WorkloadsContract, grant

from fermion.adapters.memory.clock import MemoryClock
from fermion.adapters.memory.driver import MemoryDriver
from fermion.adapters.memory.workloads import MemoryWorkloads
from fermion.domain.workloads import ExitCause, Seen, Usage, WorkloadSpec, WorkloadState, workload_name
from fermion.errors import OutsideUnavailable

JOB = "job-20250101-001"


class MemoryBench:
    """A memory driver; its clock moves when ``pass_grace`` says so."""

    def __init__(self) -> None:
        self.clock = MemoryClock()
        self.driver = MemoryDriver(self.clock)
        self.workloads: MemoryWorkloads = self.driver.workloads

    def spec(self, *, attempt: int = 1) -> WorkloadSpec:
        return WorkloadSpec(
            name=workload_name(JOB, attempt),
            job_id=JOB,
            attempt=attempt,
            image="memory://images/sha256:1",
            code="memory://code/1",
            entrypoint=("train.py",),
            arguments=(),
            parameters={},
            datasets={},
            output=self.driver.space.output(JOB, attempt),
            checkpoints=self.driver.space.checkpoints(JOB),
            log=self.driver.space.log(JOB, attempt),
        )

    def exit(self, name: str, code: int) -> None:
        self.workloads.exit(name, code)

    def lose(self, name: str) -> None:
        self.workloads.lose(name)

    def say(self, name: str, text: str) -> None:
        if text.startswith("{"):
            self.workloads.report(name, **json.loads(text))
        else:
            self.workloads.print(name, f"{text}\n")

    def ignore_term(self, name: str) -> None:
        self.workloads.ignore_term(name)

    def pass_grace(self, grace: timedelta) -> None:
        self.clock.advance(grace)

    def until(self, name: str, state: WorkloadState) -> Seen:
        seen = self.workloads.look(name)
        assert seen.state is state
        return seen


@pytest.fixture
def bench() -> MemoryBench:
    return MemoryBench()


class TestMemoryWorkloads(WorkloadsContract):
    """The contract."""


def start(bench: MemoryBench) -> str:
    """A workload that was granted."""
    spec = bench.spec()
    bench.workloads.prepare(spec)
    bench.workloads.resume(spec.name, grant())
    return spec.name


def test_a_late_start_is_seen_suspended_until_its_time(bench: MemoryBench) -> None:
    bench.workloads.start_late(timedelta(seconds=5))
    name = start(bench)
    granted_at = bench.clock.now()
    bench.clock.advance(timedelta(seconds=4.999999))
    bench.until(name, WorkloadState.SUSPENDED)
    bench.clock.advance(timedelta(microseconds=1))
    assert bench.until(name, WorkloadState.RUNNING).exec_at == granted_at + timedelta(seconds=5)


def test_a_late_start_that_is_stopped_was_never_executed(bench: MemoryBench) -> None:
    bench.workloads.start_late(timedelta(seconds=5))
    name = start(bench)
    bench.workloads.stop(name, grace=LONG, why="not needed")
    seen = bench.until(name, WorkloadState.EXITED)
    assert seen.exit is not None
    assert (seen.exit.cause, seen.exit.exec_at) == (ExitCause.STOPPED, None)


def test_a_grace_that_is_not_over_ends_nobody(bench: MemoryBench) -> None:
    name = start(bench)
    bench.ignore_term(name)
    bench.workloads.stop(name, grace=timedelta(seconds=10), why="enough")
    bench.clock.advance(timedelta(seconds=9.999999))
    bench.until(name, WorkloadState.RUNNING)
    bench.clock.advance(timedelta(microseconds=1))
    bench.until(name, WorkloadState.EXITED)


def test_one_that_ends_by_itself_within_its_grace_was_stopped_and_has_its_code(bench: MemoryBench) -> None:
    name = start(bench)
    bench.ignore_term(name)
    bench.workloads.stop(name, grace=LONG, why="preempted")
    bench.exit(name, 0)
    record = bench.until(name, WorkloadState.EXITED).exit
    assert record is not None
    assert (record.cause, record.code, record.detail) == (ExitCause.STOPPED, 0, "preempted")


def test_another_cause_has_no_code(bench: MemoryBench) -> None:
    name = start(bench)
    bench.workloads.exit(name, cause=ExitCause.OUT_OF_MEMORY, detail="2048 of 2048 MiB")
    record = bench.until(name, WorkloadState.EXITED).exit
    assert record is not None
    assert (record.cause, record.code, record.signal) == (ExitCause.OUT_OF_MEMORY, None, 9)


def test_what_does_not_run_cannot_be_made_to_end(bench: MemoryBench) -> None:
    bench.workloads.prepare(bench.spec())
    with pytest.raises(ValueError, match="is suspended"):
        bench.exit(bench.spec().name, 0)


def test_lost_workloads_leave_orphans_until_they_are_ended(bench: MemoryBench) -> None:
    name = start(bench)
    bench.workloads.lose(name, orphans=2)
    bench.workloads.remove(name)
    assert len(bench.workloads.orphans()) == 2
    assert bench.workloads.end_orphans() == 2
    assert bench.workloads.orphans() == []


def test_use_is_what_was_set(bench: MemoryBench) -> None:
    name = start(bench)
    usage = Usage(observed_at=bench.clock.now(), source="test", cpu_cores=1.5, gpu_reason="declared slots")
    bench.workloads.use(name, usage)
    assert bench.workloads.look(name).usage == usage


def test_a_cut_line_hides_what_goes_on_behind_it(bench: MemoryBench) -> None:
    name, another = start(bench), replace(bench.spec(), name="another")
    bench.driver.line.cut("no route to host")
    for call in (bench.workloads.names, bench.workloads.orphans, bench.driver.nodes.list_nodes):
        with pytest.raises(OutsideUnavailable, match="no route to host"):
            call()
    with pytest.raises(OutsideUnavailable):
        bench.workloads.prepare(another)
    bench.exit(name, 0)
    bench.driver.line.mend()
    bench.until(name, WorkloadState.EXITED)
    assert bench.workloads.names() == [name]
