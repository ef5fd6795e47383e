"""Decayed use, and the order of the line that follows from it."""

from __future__ import annotations

import math
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import NOW, at, make_ended_lease, make_lease, make_pool, make_quota, make_waiting, seconds
from fermion.domain.fairshare import OwnerUse, Use, decayed, half_lives, order, weights

HOUR = {"local/declared": timedelta(hours=1)}


def use_of(team: str = "default", **gpu_seconds: float) -> Use:
    rows = (
        OwnerUse(pool="local/declared", team=team, owner=owner, gpu_seconds=value)
        for owner, value in gpu_seconds.items()
    )
    return Use(at=NOW, owners=tuple(rows))


def ids(line: list) -> list[str]:  # type: ignore[type-arg]
    return [job.job_id for job in line]


def test_use_of_a_moment_ago_counts_half_after_one_half_life() -> None:
    lease = make_ended_lease(gpus=2, held_s=1, ended_s=0)
    fresh = decayed([lease], half_lives=HOUR, now=NOW).owners[0].gpu_seconds
    later = decayed([lease], half_lives=HOUR, now=NOW + timedelta(hours=1)).owners[0].gpu_seconds
    assert fresh == pytest.approx(2, rel=1e-3)
    assert later == pytest.approx(fresh / 2)


def test_endless_use_approaches_the_half_life_over_ln_two() -> None:
    lease = make_lease(gpus=1, held_s=100 * 3600)
    assert decayed([lease], half_lives=HOUR, now=NOW).owners[0].gpu_seconds == pytest.approx(3600 / math.log(2))


@given(cut=st.integers(-400, 0), ended=st.one_of(st.none(), st.integers(-300, 0)), held=st.integers(0, 500))
def test_use_carried_over_from_an_earlier_moment_is_the_same_as_use_computed_at_once(
    cut: int, ended: int | None, held: int
) -> None:
    lease = (
        make_lease(gpus=3, held_s=held)
        if ended is None
        else make_ended_lease(gpus=3, held_s=held - ended, ended_s=ended)
    )
    short = {"local/declared": seconds(60)}
    at_once = decayed([lease], half_lives=short, now=NOW)
    early = decayed([lease] if lease.granted_at <= at(cut) else [], half_lives=short, now=at(cut))
    carried = decayed([lease], half_lives=short, now=NOW, since=early)
    assert sum(row.gpu_seconds for row in carried.owners) == pytest.approx(
        sum(row.gpu_seconds for row in at_once.owners)
    )


def test_rows_are_one_per_pool_team_and_owner_in_order() -> None:
    leases = [
        make_lease("1", owner="b"),
        make_lease("2", owner="a"),
        make_lease("3", owner="b"),
        make_lease("4", team="a"),
    ]
    rows = decayed(leases, half_lives=half_lives([make_pool()]), now=NOW).owners
    assert [(row.team, row.owner) for row in rows] == [("a", "bob"), ("default", "a"), ("default", "b")]


def test_the_line_goes_by_priority_then_reservation_then_share_then_arrival() -> None:
    jobs = [
        make_waiting("late", owner="cat", waited_s=1),
        make_waiting("early", owner="dan", waited_s=2),
        make_waiting("heavy", owner="ann", waited_s=9),
        make_waiting("promised", owner="ann", waited_s=3),
        make_waiting("urgent", owner="ann", waited_s=0, priority=1),
    ]
    line = order(jobs, use=use_of(ann=1e6), weights={}, first=["promised"])
    assert ids(line) == ["urgent", "promised", "early", "late", "heavy"]


def test_of_two_that_came_at_once_the_lower_id_goes_first() -> None:
    jobs = [make_waiting(job_id, owner=owner) for job_id, owner in (("job-2", "ann"), ("job-1", "bob"))]
    assert ids(order(jobs, use=use_of(), weights={})) == ids(order(jobs[::-1], use=use_of(), weights={}))
    assert ids(order(jobs, use=use_of(), weights={})) == ["job-1", "job-2"]


def test_a_team_with_twice_the_nominal_gpus_may_use_twice_as_much() -> None:
    pool = make_pool(teams={"a": make_quota(8), "b": make_quota(4)})
    rows = (*use_of("a", ann=150.0).owners, *use_of("b", bob=100.0).owners)
    jobs = [make_waiting("of-b", team="b", owner="bob", waited_s=9), make_waiting("of-a", team="a", waited_s=1)]
    assert ids(order(jobs, use=Use(at=NOW, owners=rows), weights=weights([pool]))) == ["of-a", "of-b"]
    assert ids(order(jobs, use=Use(at=NOW, owners=rows), weights={})) == ["of-b", "of-a"]


def test_longer_jobs_put_their_owners_next_job_further_back() -> None:
    jobs = [
        make_waiting("long-1", owner="ann", waited_s=9, max_runtime=seconds(100)),
        make_waiting("long-2", owner="ann", waited_s=8, max_runtime=seconds(100)),
        *(make_waiting(f"short-{n}", owner="bob", waited_s=5 - n, max_runtime=seconds(40)) for n in range(4)),
    ]
    line = ids(order(jobs, use=use_of(), weights={}))
    assert line == ["long-1", "short-0", "short-1", "short-2", "long-2", "short-3"]


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 2), st.integers(0, 9)), max_size=12
    )
)
def test_the_line_holds_every_job_once_and_never_puts_a_lower_priority_first(
    jobs: list[tuple[str, str, int, int]],
) -> None:
    waiting = [
        make_waiting(f"job-{n}", team=team, owner=owner, priority=priority, waited_s=waited)
        for n, (team, owner, priority, waited) in enumerate(jobs)
    ]
    line = order(waiting, use=use_of(), weights={"a": 3})
    assert sorted(ids(line)) == sorted(ids(waiting))
    priorities = [job.priority for job in line]
    assert priorities == sorted(priorities, reverse=True)
    for one, other in pairwise(line):
        if (one.team, one.owner, one.priority) == (other.team, other.owner, other.priority):
            assert one.queued_at <= other.queued_at
