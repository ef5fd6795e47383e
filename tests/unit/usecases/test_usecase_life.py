"""A job's whole life, and the same life with a crash before or after every single step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from world import World, check_at_rest, check_invariants

from fermion.adapters.memory.jobs import MemoryJobs
from fermion.adapters.memory.store import MemoryStore, MemoryTransaction
from fermion.domain.jobs import Job, Phase, Status
from fermion.domain.leases import LeasePhase
from fermion.errors import RequestRefused
from fermion.usecases.check import check, problems_of
from fermion.usecases.release import release
from fermion.usecases.report import write_report
from fermion.usecases.save import save_model
from fermion.usecases.stop import request_stop
from fermion.usecases.sync import sync_platform
from fermion.usecases.tend import Tender


def test_a_training_goes_from_its_request_to_a_model_and_leaves_nothing_behind(world: World) -> None:
    job = world.saving()
    assert not world.leases(), "saving holds no GPU"
    version = save_model(world.ctx, job.id)
    ended = release(world.ctx, job.id)
    page = Path(write_report(world.ctx, job.id))
    assert (ended.status, ended.output_model_path) == (Status.COMPLETED, version.path)
    assert not world.models.verify(version)
    assert version.path in page.read_text(encoding="utf-8")
    assert world.verbs(job.id) == [
        "job.submitted",
        "job.staging",
        "job.waiting",
        "job.starting",
        "job.running",
        "job.saving",
        "job.completed",
    ]
    assert not world.driver.workloads.names()
    assert not sync_platform(world.ctx)
    check_at_rest(world)


T = TypeVar("T")


class UnluckyJobs:
    """Every other save loses its race, as it may where transactions overlap."""

    saves = 0

    def __init__(self, jobs: MemoryJobs) -> None:
        self._jobs = jobs

    def save(self, job: Job) -> Job | None:
        UnluckyJobs.saves += 1
        return self._jobs.save(job) if UnluckyJobs.saves % 2 == 0 else None

    def __getattr__(self, name: str) -> object:
        return getattr(self._jobs, name)


class UnluckyStore(MemoryStore):
    """Its transactions lose races."""

    @contextmanager
    def begin(self, *, exclusive: str | None = None) -> Iterator[MemoryTransaction]:
        with super().begin(exclusive=exclusive) as tx:
            tx.jobs = UnluckyJobs(tx.jobs)  # type: ignore[assignment]
            yield tx


def test_a_lost_race_is_run_again_by_whoever_has_nobody_after_him(tmp_path: Path) -> None:
    world = World(tmp_path, store=UnluckyStore())
    job = world.waiting()
    for _ in range(4):
        world.tend()
    world.train_well(job.id)
    for _ in range(3):
        world.tend()
    assert save_model(world.ctx, job.id).number == 1
    assert release(world.ctx, job.id).phase is Phase.COMPLETED
    other = world.waiting()
    for _ in range(4):
        world.tend()
    assert world.job(other.id).phase is Phase.RUNNING
    assert request_stop(world.ctx, other.id, actor="bob").stop_requested_by == "bob"
    assert release(world.ctx, other.id).phase is Phase.FAILED
    refused = world.submit(image="unknown:1")
    with pytest.raises(RequestRefused):
        check(world.ctx, refused.id)
    assert problems_of(world.job(refused.id))
    check_at_rest(world)


class Crashed(BaseException):
    """The process is gone; nothing below a test may catch it."""


class MortalStore(MemoryStore):
    """Dies at its n-th commit: just before it, so that nothing is written, or just after it."""

    def __init__(self) -> None:
        super().__init__()
        self.commits = 0
        self.dies_at: int | None = None
        self.dies_after = False

    @contextmanager
    def begin(self, *, exclusive: str | None = None) -> Iterator[MemoryTransaction]:
        with super().begin(exclusive=exclusive) as tx:
            yield tx
            self.commits += 1
            dies = self.commits == self.dies_at
            if dies and not self.dies_after:
                self.dies_at = None
                raise Crashed
        if dies:
            self.dies_at = None
            raise Crashed


class MortalLife:
    """Runs tasks as the engine does: a task whose process died is tried again, and somebody else's rounds go on meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.store = MortalStore()
        self.world = World(folder, store=self.store)
        self.crashes = 0

    def run(self) -> Job:
        """One training from the request to its end."""
        world = self.world
        job_id = self._try(lambda: world.submit(run_id="run-1").id)
        self._try(lambda: world.stage(job_id))
        self._try(lambda: world.wait(job_id))
        for _ in range(5):
            if world.job(job_id).phase is Phase.RUNNING:
                break
            self._try(lambda: Tender(world.ctx).round())
        world.train_well(job_id)
        self._try(lambda: Tender(world.ctx).round())
        self._try(lambda: save_model(world.ctx, job_id))
        return self._try(lambda: release(world.ctx, job_id))

    def _try(self, task: Callable[[], T]) -> T:
        """Until it ends, and once more: repeating a task that ended well changes nothing."""
        ended = 0
        for _ in range(4):
            try:
                answer = task()
                ended += 1
            except Crashed:
                self.crashes += 1
                check_invariants(self.world)
                sync_platform(self.world.ctx)
            check_invariants(self.world)
            if ended == 2:
                return answer
        raise AssertionError("it crashed too often")


def test_crashes_are_counted(tmp_path: Path) -> None:
    life = MortalLife(tmp_path)
    assert life.run().phase is Phase.COMPLETED
    assert life.crashes == 0
    assert life.store.commits > 15


@pytest.mark.parametrize("after", [False, True], ids=["before the commit", "after the commit"])
@pytest.mark.parametrize("commit", range(1, 26))
def test_a_crash_at_any_commit_costs_nothing_but_time(tmp_path: Path, commit: int, after: bool) -> None:
    life = MortalLife(tmp_path)
    life.store.dies_at, life.store.dies_after = commit, after
    ended = life.run()
    assert ended.phase is Phase.COMPLETED, ended.explanation.message
    assert ended.attempt == 1
    assert [version.number for version in life.world.models.versions("digits")] == [1]
    leases = life.world.leases(ended.id, live_only=False)
    assert [lease.phase for lease in leases] == [LeasePhase.RELEASED]
    assert life.world.verbs(ended.id).count("job.starting") == 1
    check_at_rest(life.world)
