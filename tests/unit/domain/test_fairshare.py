"""Decayed use."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import NOW, at, make_ended_lease, make_lease, make_pool, seconds
from fermion.domain.fairshare import decayed, half_lives

HOUR = {"local/declared": timedelta(hours=1)}


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
