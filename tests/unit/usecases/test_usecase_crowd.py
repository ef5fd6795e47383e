"""Everybody at once, on a real database: tasks of many runs, two triggerers and a sync, each with nothing but the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from world import World, check_at_rest, check_invariants

from builders import make_node
from fermion.adapters.memory.store import MemoryStore
from fermion.adapters.sql import migrate, open_store
from fermion.domain.jobs import HOLDING, Phase
from fermion.domain.workloads import WorkloadState, workload_name
from fermion.errors import FermionError
from fermion.ports import Store
from fermion.usecases.queries import job_by_id
from fermion.usecases.release import release
from fermion.usecases.save import save_model
from fermion.usecases.sync import sync_platform
from fermion.usecases.tend import Tender
from fermion.usecases.wait import wait_for_grant

RUNS = 12
PATIENCE_S = 60


class Crowd:
    """The threads; whatever goes wrong in one is kept for the test."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.is_over = threading.Event()
        self.errors: list[BaseException] = []

    def start(self, work: Callable[[], object], *, again: bool = False) -> threading.Thread:
        def body() -> None:
            try:
                work()
                while again and not self.is_over.wait(0.01):
                    work()
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        return thread

    def run(self, number: int) -> None:
        """The tasks of one run, as the engine does them: an error of a task is followed by the teardown."""
        world, until = self.world, time.monotonic() + PATIENCE_S
        job = world.submit(run_id=f"run-{number}", priority=number % 3, gpus_per_node=1 + number % 2)
        try:
            world.stage(job.id)
            wait_for_grant(world.ctx, job.id, patience=timedelta(seconds=0.05))
            while job_by_id(world.ctx, job.id).is_training:
                if time.monotonic() > until:
                    raise TimeoutError(f"{job.id} is {world.job(job.id).phase} for ever")
                time.sleep(0.01)
            save_model(world.ctx, job.id)
        except FermionError:
            pass
        release(world.ctx, job.id)

    def train(self) -> None:
        """Trainings end: most of them well, some are lost on their first attempt."""
        world = self.world
        with world.ctx.store.read() as tx:
            held = tx.jobs.find(phases=HOLDING)
        for job in held:
            name = workload_name(job.id, job.attempt)
            if world.driver.workloads.look(name).state is not WorkloadState.RUNNING:
                continue
            world.driver.workloads.report(name, progress=100, metrics={"loss": 0.5})
            world.driver.space.write(world.driver.space.output(job.id, job.attempt), {"model.bin": name.encode()})
            try:
                if job.attempt == 1 and int(job.id[-3:]) % 4 == 0:
                    world.driver.workloads.lose(name)
                else:
                    world.driver.workloads.exit(name, 0)
            except (ValueError, KeyError):
                continue  # it was stopped, or removed, between the look and now


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Each store, empty."""
    if request.param == "memory":
        yield MemoryStore()
        return
    url = f"sqlite:///{tmp_path / 'fermion.db'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_server").new_database()
    migrate(url)
    opened = open_store(url)
    yield opened
    opened.close()


def test_a_crowd_trains_every_model_once(tmp_path: Path, store: Store) -> None:
    world = World(tmp_path, store=store, nodes=[make_node("n0", gpus=3), make_node("n1", gpus=2)])
    crowd = Crowd(world)
    helpers = [
        crowd.start(Tender(world.ctx).round, again=True),
        crowd.start(Tender(world.ctx).round, again=True),
        crowd.start(lambda: sync_platform(world.ctx), again=True),
        crowd.start(crowd.train, again=True),
        crowd.start(lambda: check_invariants(world), again=True),
    ]
    runs = [crowd.start(lambda number=number: crowd.run(number)) for number in range(RUNS)]  # type: ignore[misc]
    for thread in runs:
        thread.join(timeout=PATIENCE_S + 30)
    crowd.is_over.set()
    for thread in helpers:
        thread.join(timeout=30)
    assert crowd.errors == []
    with world.ctx.store.read() as tx:
        jobs = tx.jobs.find()
        sums = {job.id: sum(e.gpus for e in tx.leases.ledger() if e.holder.endswith(job.id)) for job in jobs}
    assert [(job.id, job.phase) for job in jobs if job.phase is not Phase.COMPLETED] == []
    assert sorted(version.number for version in world.models.versions("digits")) == list(range(1, RUNS + 1))
    assert set(sums.values()) == {0}
    assert all(world.verbs(job.id).count("job.completed") == 1 for job in jobs)
    sync_platform(world.ctx)
    check_at_rest(world)
