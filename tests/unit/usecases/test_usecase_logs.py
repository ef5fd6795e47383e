"""Logs: of the attempt that is meant, followed to the end of the job and not only of an attempt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from world import World

from fermion.domain.jobs import Phase
from fermion.errors import NotFound
from fermion.usecases.logs import Piece, log_of
from fermion.usecases.stop import request_stop


def all_of(pieces: Iterator[Piece]) -> list[tuple[int, str]]:
    return [(piece.attempt, piece.text) for piece in pieces]


def preempted(world: World) -> tuple[str, str]:
    """A job that printed, lost its GPUs and is in line again, and the job that has them."""
    low = world.running(gpus_per_node=4)
    world.driver.workloads.print(world.name(low.id), "first\n")
    high = world.waiting(gpus_per_node=4, priority=9)
    for _ in range(5):
        world.tend()
    assert (world.job(low.id).phase, world.job(low.id).attempt) == (Phase.WAITING, 2)
    return low.id, high.id


def steps(*done: Callable[[], object]) -> Callable[[], None]:
    """What happens each time that a reader finds nothing new; nobody may wait longer than that."""
    left = list(done)
    return lambda: left.pop(0)() and None


def test_without_following_it_ends_where_the_log_ends(world: World) -> None:
    job = world.running()
    assert all_of(log_of(world.ctx, job.id)) == []
    world.driver.workloads.print(world.name(job.id), "a\nb\n")
    assert all_of(log_of(world.ctx, job.id)) == [(1, "a\nb\n")]


def test_a_job_in_line_again_shows_the_attempt_that_ran(world: World) -> None:
    low, _ = preempted(world)
    assert all_of(log_of(world.ctx, low)) == [(1, "first\n")]
    assert all_of(log_of(world.ctx, low, attempt=2)) == []


@pytest.mark.parametrize("attempt", [-1, 0, 3, 7])
def test_an_attempt_that_there_is_not_is_told_at_once(world: World, attempt: int) -> None:
    low, _ = preempted(world)
    with pytest.raises(NotFound, match=f"job {low} has no attempt {attempt}; it has had 2 attempts."):
        log_of(world.ctx, low, attempt=attempt)
    with pytest.raises(NotFound, match="no job"):
        log_of(world.ctx, "job-20260302-999")


def test_following_goes_on_into_the_next_attempt_and_to_the_end_of_the_job(world: World) -> None:
    low, high = preempted(world)

    def runs_again() -> None:
        world.train_well(high)
        for _ in range(3):
            world.tend()
        world.driver.workloads.print(world.name(low), "second")

    def ends() -> None:
        world.driver.workloads.print(world.name(low), " and last\n")
        world.driver.workloads.exit(world.name(low), 1)
        world.tend()

    more = steps(lambda: None, runs_again, ends)
    assert all_of(log_of(world.ctx, low, until_more=more)) == [(1, "first\n"), (2, "second"), (2, " and last\n")]


def test_following_a_named_attempt_ends_with_it(world: World) -> None:
    job = world.running(gpus_per_node=4)
    world.driver.workloads.print(world.name(job.id), "first\n")

    def takes_its_gpus() -> None:
        world.waiting(gpus_per_node=4, priority=9)
        for _ in range(5):
            world.tend()

    read = all_of(log_of(world.ctx, job.id, attempt=1, until_more=steps(lambda: None, takes_its_gpus)))
    assert read == [(1, "first\n")]


def test_following_a_job_that_never_runs_ends_with_it(world: World) -> None:
    job = world.waiting()

    def stopped() -> None:
        request_stop(world.ctx, job.id, actor="ann")
        world.tend()

    assert all_of(log_of(world.ctx, job.id, until_more=steps(stopped))) == []


def test_a_long_log_comes_in_pieces(world: World) -> None:
    job = world.running()
    world.driver.workloads.print(world.name(job.id), "x" * 600_000)
    pieces: Sequence[Piece] = list(log_of(world.ctx, job.id))
    assert [len(piece.text) for piece in pieces] == [262_144, 262_144, 75_712]
