"""The triggers: what they remember, and that they wait for their own run's job whatever the others do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fermion.domain.jobs import Job
from fermion.domain.workloads import workload_name
from fermion.errors import NotFound, OutsideUnavailable
from fermion_airflow.triggers.board import job_board
from fermion_airflow.triggers.jobs import GrantTrigger, TrainTrigger
from platforms import DAG, Platform

SOON_S = 20


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    return Platform(tmp_path)


def ended(job: Job) -> bool:
    return not job.is_training


@pytest.mark.parametrize("kind", [GrantTrigger, TrainTrigger])
def test_a_trigger_is_its_class_and_nothing_else(kind: Any) -> None:
    path, arguments = kind().serialize()
    assert (path, arguments) == (f"fermion_airflow.triggers.jobs.{kind.__name__}", {})


def test_each_of_many_waiters_is_told_of_its_own_job(platform: Platform) -> None:
    jobs = [platform.start(platform.submit(f"r{number}")) for number in range(2)]

    async def scenario() -> list[Job]:
        board = job_board(platform.ctx)
        waiting = [asyncio.create_task(board.until(DAG, f"r{number}", ended)) for number in range(2)]
        for job, code in zip(jobs, (0, 3), strict=True):
            platform.driver.workloads.exit(workload_name(job.id, 1), code)
        return list(await asyncio.wait_for(asyncio.gather(*waiting), SOON_S))

    told = asyncio.run(scenario())
    assert [job.id for job in told] == [job.id for job in jobs]
    assert [str(job.phase) for job in told] == ["saving", "failed"]


def test_a_run_without_a_job_is_told_at_once(platform: Platform) -> None:
    with pytest.raises(NotFound):
        asyncio.run(asyncio.wait_for(job_board(platform.ctx).until(DAG, "nothing", ended), SOON_S))


class Flaky:
    """A store whose first reads find no database. Keeps what a board and the use cases ask of ``ports.Store``."""

    def __init__(self, store: Any, *, failures: int) -> None:
        self._store, self.failures = store, failures

    @contextmanager
    def read(self) -> Iterator[Any]:
        if self.failures:
            self.failures -= 1
            raise OutsideUnavailable("the database restarts")
        with self._store.read() as tx:
            yield tx

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_a_database_that_restarts_ends_nobodys_wait(platform: Platform) -> None:
    job = platform.start(platform.submit())
    platform.driver.workloads.exit(workload_name(job.id, 1), 0)
    flaky = Flaky(platform.ctx.store, failures=2)
    board = job_board(replace(platform.ctx, store=flaky))  # type: ignore[arg-type]
    told = asyncio.run(asyncio.wait_for(board.until(DAG, "r1", ended), SOON_S))
    assert (told.id, flaky.failures) == (job.id, 0)
