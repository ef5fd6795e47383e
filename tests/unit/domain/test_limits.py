"""What can never start, quotas in cohorts, and budgets: tables with the boundary on both sides."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from builders import (
    NOW,
    at,
    make_ended_lease,
    make_lease,
    make_node,
    make_pool,
    make_quota,
    make_spec,
    make_waiting,
    seconds,
)
from fermion.domain.budgets import Scope, Spent, longest_window, spent
from fermion.domain.limits import in_words, never_fits, over_memory
from fermion.domain.pools import Budget, Node, Pool
from fermion.domain.quota import UNLIMITED, Quotas


@pytest.mark.parametrize(
    ("policy", "asks", "codes"),
    [
        pytest.param({"max_gpus_per_job": 4}, {"gpus_per_node": 4}, [], id="at the job limit"),
        pytest.param({"max_gpus_per_job": 4}, {"gpus_per_node": 5}, ["over_job_limit"], id="over the job limit"),
        pytest.param({"max_gpus_per_user": 4}, {"gpus_per_node": 4}, [], id="at the user limit"),
        pytest.param({"max_gpus_per_user": 4}, {"gpus_per_node": 5}, ["over_user_limit"], id="over the user limit"),
        pytest.param(
            {"teams": {"default": make_quota(2, borrowing=2)}}, {"gpus_per_node": 4}, [], id="at the team limit"
        ),
        pytest.param(
            {"teams": {"default": make_quota(2, borrowing=2)}},
            {"gpus_per_node": 5},
            ["over_team_limit"],
            id="over the team limit",
        ),
        pytest.param(
            {"teams": {"default": make_quota(2), "b": make_quota(10, lending=1)}},
            {"gpus_per_node": 3},
            [],
            id="at what is lent",
        ),
        pytest.param(
            {"teams": {"default": make_quota(2), "b": make_quota(10, lending=1)}},
            {"gpus_per_node": 4},
            ["over_cohort"],
            id="over what is lent",
        ),
        pytest.param(
            {"teams": {"b": make_quota(2)}}, {"gpus_per_node": 8}, [], id="an unnamed team borrows what is left"
        ),
        pytest.param({}, {"gpus_per_node": 8}, [], id="as large as a node"),
        pytest.param({}, {"gpus_per_node": 9}, ["over_node"], id="larger than any node"),
        pytest.param({}, {"nodes": 2, "gpus_per_node": 5}, ["too_few_nodes"], id="too few nodes of that size"),
        pytest.param({}, {"nodes": 2, "gpus_per_node": 4}, [], id="on all nodes"),
        pytest.param(
            {}, {"gpus_per_node": 13}, ["over_pool", "over_node"], id="larger than the pool, and than its nodes"
        ),
        pytest.param(
            {"user_budget": Budget(gpu_hours=2, window=timedelta(days=1))},
            {"gpus_per_node": 2, "max_runtime": seconds(3600)},
            [],
            id="as much as the user's budget",
        ),
        pytest.param(
            {"team_budgets": {"default": Budget(gpu_hours=2, window=timedelta(days=7))}},
            {"gpus_per_node": 2, "max_runtime": seconds(3601)},
            ["over_team_budget"],
            id="more than the team's budget",
        ),
        pytest.param(
            {"max_gpus_per_job": 2, "max_gpus_per_user": 3, "teams": {"default": make_quota(1, borrowing=1)}},
            {"nodes": 2, "gpus_per_node": 9},
            ["over_job_limit", "over_user_limit", "over_team_limit", "over_pool", "over_node"],
            id="all problems at once",
        ),
    ],
)
def test_what_could_never_start_is_told_with_every_problem(
    policy: dict[str, object], asks: dict[str, object], codes: list[str]
) -> None:
    problems = never_fits(make_spec(**asks), make_pool(nodes=[8, 4], **policy))
    assert [problem.code for problem in problems] == codes
    for problem in problems:
        assert any(character.isdigit() for character in problem.message), "a message has numbers"
        assert problem.fix


SMALL, LARGE, UNKNOWN = (
    make_node("small", gpus=2, memory_mib=4096),
    make_node("large", gpus=1, memory_mib=8192),
    make_node("unknown"),
)


@pytest.mark.parametrize(
    ("nodes", "memory_mib", "gpus_per_node", "most"),
    [
        pytest.param([SMALL, LARGE], 8192, 1, None, id="as much as the largest has"),
        pytest.param([SMALL, LARGE], 8193, 1, 8192, id="one more than the largest has"),
        pytest.param([SMALL, LARGE], 4097, 2, 4096, id="the largest has too few GPUs"),
        pytest.param([SMALL, LARGE], 8193, 3, None, id="no node has so many GPUs: another problem tells that"),
        pytest.param([SMALL, replace(LARGE, ready=False)], 4097, 1, 4096, id="the largest is not ready"),
        pytest.param([SMALL, replace(LARGE, schedulable=False)], 4097, 1, 4096, id="the largest is cordoned"),
        pytest.param([replace(SMALL, ready=False)], 4097, 1, None, id="no node is usable now"),
        pytest.param([SMALL, UNKNOWN], 2**40, 1, None, id="one whose memory nobody knows may have enough"),
        pytest.param([], 4096, 1, None, id="no nodes"),
    ],
)
def test_more_memory_than_every_usable_node_has_is_told_with_the_most_there_is(
    nodes: list[Node], memory_mib: int, gpus_per_node: int, most: int | None
) -> None:
    problems = over_memory(memory_mib, make_pool(nodes=nodes), gpus_per_node=gpus_per_node)
    assert [(each.field, each.code) for each in problems] == ([] if most is None else [("memory_mib", "over_memory")])
    for problem in problems:
        assert f"{most} MiB" in problem.message
        assert f"{memory_mib} MiB" in problem.message
        assert f"{most} MiB or less" in problem.fix


def test_nodes_that_are_not_ready_now_count_for_what_could_ever_fit() -> None:
    pool = make_pool(nodes=[make_node("n0", gpus=8, ready=False)])
    assert never_fits(make_spec(gpus_per_node=8), pool) == []


def test_a_job_whose_nodes_all_lost_an_attempt_of_it_is_told_which() -> None:
    (problem,) = never_fits(make_waiting(gpus=8), make_pool(nodes=[8, 4]), excluded_nodes=("n0",))
    assert (problem.code, "(n0)" in problem.message) == ("nodes_excluded", True)


def cohort() -> list[Pool]:
    """Sixteen GPUs: a has 8 and lends 2, b has 4 and lends all, 4 are nobody's; c has nothing and may borrow 5."""
    teams = {"a": make_quota(8, lending=2), "b": make_quota(4), "c": make_quota(0, borrowing=5)}
    return [make_pool(nodes=[8, 8], teams=teams)]


@pytest.mark.parametrize(
    ("used", "left"),
    [
        pytest.param({}, {"a": 16, "b": 10, "c": 5, "unnamed": 10}, id="nobody uses any"),
        pytest.param({"a": 6}, {"a": 10, "b": 10, "c": 5}, id="a uses what it does not lend"),
        pytest.param({"a": 7}, {"a": 9, "b": 9, "c": 5}, id="a uses one that it would lend"),
        pytest.param({"c": 5}, {"a": 11, "b": 5, "c": 0}, id="c borrowed all it may"),
        pytest.param({"b": 10}, {"a": 6, "b": 0, "c": 0}, id="b took all there is to borrow"),
        pytest.param({"b": 12}, {"a": 6, "b": 0, "c": 0}, id="what was lent too much does not touch what a keeps"),
    ],
)
def test_a_team_may_take_its_own_and_what_the_cohort_lends(used: dict[str, int], left: dict[str, int]) -> None:
    quotas = Quotas(cohort())
    for team, gpus in used.items():
        quotas.take("local/declared", team, gpus)
    assert {team: quotas.available("local/declared", team) for team in left} == left
    for team, gpus in used.items():
        quotas.take("local/declared", team, -gpus)
    assert quotas.available("local/declared", "a") == 16, "what is given back is there again"


def test_a_pool_without_team_quotas_limits_no_team() -> None:
    assert Quotas([make_pool()]).available("local/declared", "any") == UNLIMITED


def test_a_copy_of_the_quotas_changes_alone() -> None:
    quotas = Quotas(cohort())
    quotas.copy().take("local/declared", "a", 8)
    assert quotas.available("local/declared", "b") == 10


def test_a_budget_sees_only_what_was_held_within_its_window() -> None:
    pool = make_pool(
        user_budget=Budget(gpu_hours=1, window=seconds(100)),
        team_budgets={"default": Budget(gpu_hours=1, window=seconds(1000))},
    )
    leases = [make_lease("live", gpus=2, held_s=150), make_ended_lease("old", gpus=1, held_s=400, ended_s=-300)]
    assert spent(leases, [pool], NOW) == (
        Spent(pool=pool.id, scope=Scope.TEAM, name="default", gpu_seconds=2 * 150 + 100),
        Spent(pool=pool.id, scope=Scope.USER, name="bob", gpu_seconds=2 * 100),
    )
    assert longest_window([pool, make_pool()]) == seconds(1000)
    assert spent(leases, [make_pool()], at(1)) == ()


@pytest.mark.parametrize(
    ("duration", "words"),
    [(seconds(90), "90 s"), (seconds(300), "5 min"), (seconds(86400), "24 h"), (timedelta(days=7), "7 days")],
)
def test_a_duration_is_told_in_its_largest_whole_unit(duration: timedelta, words: str) -> None:
    assert in_words(duration) == words
