"""Everything that can happen, in any order: what must be true at every moment stays true."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule
from machine_settings import plays
from world import NO_PATIENCE, World, check_at_rest, check_invariants, check_workloads, is_alive

from builders import make_node, make_policy
from fermion.domain.jobs import Job, Phase
from fermion.domain.workloads import ExitCause
from fermion.errors import FermionError, OutsideUnavailable
from fermion.usecases.admit import admit
from fermion.usecases.release import release
from fermion.usecases.save import save_model
from fermion.usecases.stop import request_stop
from fermion.usecases.sync import sync_platform
from fermion.usecases.tend import Tender

OTHER = "local/other"


class PlatformMachine(RuleBasedStateMachine):
    """Tasks of many runs, two Tenders and the sync, each whenever it likes; trainings that do what they want."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="fermion-machine-"))

    @initialize(gpus=st.sampled_from([2, 3, 4]), attempts=st.sampled_from([1, 2, 3]))
    def begin(self, gpus: int, attempts: int) -> None:
        self.world = World(
            self.folder,
            nodes=[make_node("n0", gpus=gpus), make_node("n1", gpus=2)],
            max_attempts=attempts,
            policies={OTHER: make_policy()},
        )
        self.others = [Tender(self.world.ctx), Tender(self.world.ctx)]

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.finish()
        shutil.rmtree(self.folder, ignore_errors=True)

    def finish(self) -> None:
        """Every run ends; one sync later nothing is left."""
        self.world.driver.line.mend()
        with self.world.ctx.store.read() as tx:
            jobs = tx.jobs.find()
        for job in jobs:
            if job.run is not None and self.world.runs.state(*job.run).state != "absent":
                self.world.runs.end(*job.run, "failed")
        self.world.pass_time(600)
        for _ in range(4):  # asked to end, seen gone, a victim in line again let go of, and its workload
            self.world.pass_time(30)
            sync_platform(self.world.ctx)
        check_at_rest(self.world)
        assert all(self.world.job(job.id).is_final for job in jobs)
        assert not self.world.leases()

    def pick(self, *phases: Phase) -> list[Job]:
        with self.world.ctx.store.read() as tx:
            return sorted(tx.jobs.find(phases=phases), key=lambda job: job.id)

    # --- tasks of runs ----------------------------------------------------------------------------------------------

    @rule(
        target=jobs,
        gpus=st.integers(1, 3),
        nodes=st.sampled_from([1, 1, 1, 2]),
        priority=st.sampled_from([0, 0, 5, 9]),
        depth=st.integers(0, 5),
    )
    def submit(self, gpus: int, nodes: int, priority: int, depth: int) -> str:
        """A new run, as far as ``depth`` tasks."""
        job = self.world.submit(gpus_per_node=gpus, nodes=nodes, priority=priority)
        steps = [self.world.stage, self.world.wait, self.world.wait]
        for step in steps[:depth]:
            self.task(partial(step, job.id))
        return job.id

    @rule(job_id=jobs)
    def stage(self, job_id: str) -> None:
        self.task(lambda: self.world.stage(job_id))

    @rule(job_id=jobs)
    def wait(self, job_id: str) -> None:
        self.task(lambda: self.world.wait(job_id))

    @rule(job_id=jobs)
    def save(self, job_id: str) -> None:
        self.task(lambda: save_model(self.world.ctx, job_id))

    @rule(job_id=jobs)
    def release(self, job_id: str) -> None:
        def task() -> None:
            ended = release(self.world.ctx, job_id, patience=NO_PATIENCE)
            assert ended.is_final
            assert not self.world.leases(job_id)
            assert self.world.state(job_id) == "absent"

        self.task(task)

    def task(self, work: Callable[[], object]) -> None:
        """The engine's part: an error is the task's, not the platform's."""
        with contextlib.suppress(FermionError):
            work()

    # --- rounds -----------------------------------------------------------------------------------------------------

    @rule(who=st.integers(0, 1))
    def tend(self, who: int) -> None:
        self.others[who].round()

    @rule()
    def tend_after_a_restart(self) -> None:
        self.others[0] = Tender(self.world.ctx)
        self.others[0].round()

    @rule()
    def admit(self) -> None:
        admit(self.world.ctx)

    @rule()
    def sync(self) -> None:
        sync_platform(self.world.ctx)
        if not self.is_cut:
            with self.world.ctx.store.read() as tx:
                final = [job for job in tx.jobs.find() if job.is_final]
            assert all(not self.world.leases(job.id) for job in final), "one sync later no ended job holds a lease"

    # --- what trainings and people do -------------------------------------------------------------------------------

    @property
    def is_cut(self) -> bool:
        try:
            self.world.driver.workloads.names()
        except OutsideUnavailable:
            return True
        return False

    def alive(self, data: st.DataObject) -> str | None:
        names = [] if self.is_cut else [n for n in self.world.driver.workloads.names() if is_alive(self.world, n)]
        return data.draw(st.sampled_from(names)) if names else None

    @rule(data=st.data(), percent=st.integers(0, 100))
    def speak(self, data: st.DataObject, percent: int) -> None:
        if (name := self.alive(data)) is not None:
            self.world.driver.workloads.report(name, progress=percent, metrics={"loss": percent})

    @rule(data=st.data())
    def train_well(self, data: st.DataObject) -> None:
        if (name := self.alive(data)) is not None:
            job_id, attempt = name.rsplit("-a", 1)
            self.world.driver.space.write(
                self.world.driver.space.output(job_id, int(attempt)), {"model.bin": name.encode()}
            )
            self.world.driver.workloads.exit(name, 0)

    @rule(data=st.data(), cause=st.sampled_from([ExitCause.EXITED, ExitCause.SIGNALLED, ExitCause.OUT_OF_MEMORY]))
    def die(self, data: st.DataObject, cause: ExitCause) -> None:
        if (name := self.alive(data)) is not None:
            self.world.driver.workloads.exit(name, 1, cause=cause)

    @rule(data=st.data(), orphans=st.integers(0, 2))
    def lose(self, data: st.DataObject, orphans: int) -> None:
        if (name := self.alive(data)) is not None:
            self.world.driver.workloads.lose(name, orphans=orphans)

    @rule(data=st.data())
    def ignore_term(self, data: st.DataObject) -> None:
        if (name := self.alive(data)) is not None:
            self.world.driver.workloads.ignore_term(name)

    @rule(job_id=jobs)
    def stop(self, job_id: str) -> None:
        asked = request_stop(self.world.ctx, job_id, actor="ann")
        assert asked.is_final or asked.stop_requested_by == "ann"

    @rule(job_id=jobs, state=st.sampled_from(["failed", "success", "deleted"]))
    def end_run(self, job_id: str, state: str) -> None:
        job = self.world.job(job_id)
        assert job.run is not None
        if self.world.runs.state(*job.run).state == "absent":
            return
        if state == "deleted":
            self.world.runs.delete(*job.run)
        else:
            self.world.runs.end(*job.run, state)

    @rule(passed=st.sampled_from([0.2, 1, 3, 11, 21, 61, 700]))
    def pass_time(self, passed: float) -> None:
        self.world.pass_time(passed)

    @precondition(lambda self: hasattr(self, "world"))
    @rule()
    def cut_or_mend(self) -> None:
        if self.is_cut:
            self.world.driver.line.mend()
        else:
            self.world.driver.line.cut()

    @rule(lateness=st.sampled_from([0, 5, 100]))
    def start_late(self, lateness: float) -> None:
        self.world.driver.workloads.start_late(timedelta(seconds=lateness))

    # --- always -----------------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_broken(self) -> None:
        if not hasattr(self, "world"):
            return
        check_invariants(self.world)
        if not self.is_cut:
            check_workloads(self.world)


TestPlatformMachine = PlatformMachine.TestCase
TestPlatformMachine.settings = plays(40, steps=30)
