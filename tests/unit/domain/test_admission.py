"""Admission by example: who starts, who waits, and the one reason why."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta

import pytest

from builders import (
    NOW,
    at,
    make_job,
    make_lease,
    make_node,
    make_policy,
    make_pool,
    make_quota,
    make_snapshot,
    make_spec,
    make_waiting,
    seconds,
)
from fermion.domain.admission import RULE_VERSION, Round, Snapshot, decide, waiting_of
from fermion.domain.budgets import Scope, Spent
from fermion.domain.fairshare import OwnerUse, Use
from fermion.domain.jobs import Phase
from fermion.domain.line import Reservation, ReservedFor
from fermion.domain.pools import Budget, Pool, TeamQuota
from fermion.domain.reasons import Reason
from fermion.errors import NotFound


def granted(snapshot: Snapshot) -> list[str]:
    return [grant.job_id for grant in decide(snapshot, NOW).grants]


def reason_of(snapshot: Snapshot, job_id: str = "job-1") -> Reason:
    return decide(snapshot, NOW).explain(job_id).reason


# --- capacity and placement -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "asked", "starts"),
    [
        pytest.param(0, 8, True, id="an empty pool takes a job as large as itself"),
        pytest.param(4, 4, True, id="exactly what is free is enough"),
        pytest.param(5, 4, False, id="one GPU short is not enough"),
        pytest.param(8, 1, False, id="a full pool takes nothing"),
    ],
)
def test_a_job_starts_only_when_its_gpus_are_free(held: int, asked: int, starts: bool) -> None:
    leases = [make_lease(gpus=held)] if held else []
    assert bool(granted(make_snapshot(waiting=[make_waiting(gpus=asked)], leases=leases))) is starts


def test_a_grant_names_free_devices_and_when_the_job_has_ended() -> None:
    job = make_waiting(gpus=2, max_runtime=seconds(90))
    grant = decide(make_snapshot(waiting=[job], leases=[make_lease(gpus=3)]), NOW).grants[0]
    assert grant.slices[0].devices == ("n0-3", "n0-4")
    assert grant.ends_by == at(90)


@pytest.mark.parametrize(
    "broken", [pytest.param({"ready": False}, id="not ready"), pytest.param({"schedulable": False}, id="cordoned")]
)
def test_a_node_that_is_not_usable_gives_no_capacity(broken: dict[str, bool]) -> None:
    pool = make_pool(nodes=[make_node("n0", gpus=8, **broken), make_node("n1", gpus=2)])
    snapshot = make_snapshot(pools=[pool], waiting=[make_waiting(gpus=4)])
    explanation = decide(snapshot, NOW).explain("job-1")
    assert explanation.reason is Reason.WAITING_FOR_QUOTA
    assert explanation.numbers["capacity"] == 2


def test_a_job_takes_the_fullest_node_that_still_fits_it() -> None:
    snapshot = make_snapshot(
        pools=[make_pool(nodes=[8, 8])], waiting=[make_waiting(gpus=2)], leases=[make_lease(gpus=6, node="n1")]
    )
    assert [part.node for part in decide(snapshot, NOW).grants[0].slices] == ["n1"]


def test_a_job_of_two_nodes_takes_two_different_nodes_or_none() -> None:
    job = make_waiting(nodes=2, gpus=4)
    room = make_snapshot(pools=[make_pool(nodes=[8, 4])], waiting=[job])
    assert [(part.node, len(part.devices)) for part in decide(room, NOW).grants[0].slices] == [("n0", 4), ("n1", 4)]
    scattered = make_snapshot(pools=[make_pool(nodes=[8, 4])], waiting=[job], leases=[make_lease(node="n1")])
    explanation = decide(scattered, NOW).explain("job-1")
    assert explanation.reason is Reason.WAITING_FOR_PLACEMENT
    assert explanation.numbers["fitting_nodes"] == 1


def test_a_node_that_lost_an_attempt_of_the_job_is_not_used_for_it() -> None:
    pool = make_pool(nodes=[8, 8])
    job = make_waiting(gpus=2, excluded_nodes=("n0",))
    assert decide(make_snapshot(pools=[pool], waiting=[job]), NOW).grants[0].slices[0].node == "n1"
    both = replace(job, excluded_nodes=("n0", "n1"))
    assert reason_of(make_snapshot(pools=[pool], waiting=[both])) is Reason.MISCONFIGURED


def test_enough_gpus_on_too_few_whole_nodes_is_waiting_for_placement() -> None:
    leases = [make_lease("a", gpus=6), make_lease("b", gpus=6, node="n1")]
    snapshot = make_snapshot(pools=[make_pool(nodes=[8, 8])], waiting=[make_waiting(gpus=4)], leases=leases)
    explanation = decide(snapshot, NOW).explain("job-1")
    assert explanation.reason is Reason.WAITING_FOR_PLACEMENT
    assert explanation.numbers["largest_free_block"] == 2
    assert "ask for 2 to start now" in explanation.message


# --- order ----------------------------------------------------------------------------------------------------------


def test_higher_priority_goes_first_and_arrival_decides_among_equals() -> None:
    jobs = [
        make_waiting("late", gpus=4, waited_s=1),
        make_waiting("early", gpus=4, waited_s=9),
        make_waiting("urgent", gpus=4, priority=5, waited_s=0),
    ]
    assert granted(make_snapshot(waiting=jobs)) == ["urgent", "early"]


def test_who_used_less_lately_goes_before_who_came_first() -> None:
    use = Use(at=NOW, owners=(OwnerUse(pool="local/declared", team="default", owner="ann", gpu_seconds=10.0),))
    jobs = [make_waiting("of-ann", gpus=8, waited_s=100), make_waiting("of-bob", gpus=8, owner="bob", waited_s=1)]
    assert granted(make_snapshot(waiting=jobs, use=use)) == ["of-bob"]


def test_one_owners_many_jobs_do_not_all_pass_the_first_of_another() -> None:
    jobs = [make_waiting(f"ann-{n}", gpus=4, waited_s=100 - n) for n in range(5)]
    assert granted(make_snapshot(waiting=[*jobs, make_waiting("bob-0", gpus=4, owner="bob")])) == ["ann-0", "bob-0"]


def test_a_job_that_still_stages_keeps_its_place_and_blocks_nobody() -> None:
    jobs = [make_waiting("staging", gpus=8, waited_s=999, staged=False), make_waiting("ready", gpus=8, waited_s=1)]
    outcome = decide(make_snapshot(waiting=jobs), NOW)
    assert [grant.job_id for grant in outcome.grants] == ["ready"]
    explanation = outcome.explain("staging")
    assert (explanation.reason, explanation.numbers["position"]) == (Reason.STAGING, 1)


def test_a_later_smaller_job_passes_a_head_that_has_not_waited_its_grace_time() -> None:
    jobs = [make_waiting("head", gpus=8, waited_s=299), make_waiting("small", gpus=1, waited_s=1)]
    outcome = decide(make_snapshot(waiting=jobs, leases=[make_lease(gpus=4)]), NOW)
    assert [grant.job_id for grant in outcome.grants] == ["small"]
    assert outcome.reservations == ()


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        pytest.param(4, Reason.GRANTED, id="at the limit is not over it"),
        pytest.param(3, Reason.OVER_LIMIT, id="one GPU over the limit waits"),
    ],
)
def test_the_user_limit_counts_what_the_user_holds_in_the_pool(limit: int, reason: Reason) -> None:
    pool = make_pool(max_gpus_per_user=limit)
    leases = [make_lease("own", gpus=2, owner="ann"), make_lease("other", gpus=2, first=2, owner="bob")]
    assert reason_of(make_snapshot(pools=[pool], waiting=[make_waiting(gpus=2)], leases=leases)) is reason


def test_a_job_over_its_own_limit_blocks_nobody_and_gets_no_reservation() -> None:
    pool = make_pool(max_gpus_per_user=2)
    jobs = [make_waiting("over", gpus=2, waited_s=9999), make_waiting("next", gpus=6, owner="cat", team="x")]
    leases = [make_lease(gpus=2, owner="ann")]
    outcome = decide(make_snapshot(pools=[make_pool(max_gpus_per_user=6)], waiting=jobs, leases=leases), NOW)
    assert [grant.job_id for grant in outcome.grants] == ["over"]
    strict = decide(
        make_snapshot(pools=[pool], waiting=[jobs[0], replace(jobs[1], gpus_per_node=2)], leases=leases), NOW
    )
    assert ([grant.job_id for grant in strict.grants], strict.reservations) == (["next"], ())


def test_a_user_at_the_limit_blocks_no_other_user_who_asks_for_the_same() -> None:
    jobs = [make_waiting("of-ann", gpus=2, waited_s=9), make_waiting("of-bob", gpus=2, owner="bob", waited_s=8)]
    leases = [make_lease(gpus=2, owner="ann")]
    assert granted(make_snapshot(pools=[make_pool(max_gpus_per_user=2)], waiting=jobs, leases=leases)) == ["of-bob"]


@pytest.mark.parametrize(
    ("asked", "held_by_b", "reason"),
    [
        pytest.param(4, 0, Reason.GRANTED, id="its own nominal GPUs"),
        pytest.param(6, 0, Reason.GRANTED, id="borrowing up to the limit"),
        pytest.param(7, 0, Reason.MISCONFIGURED, id="more than nominal and borrowed can never start"),
        pytest.param(6, 3, Reason.WAITING_FOR_QUOTA, id="what the lender uses itself cannot be borrowed"),
    ],
)
def test_a_team_borrows_what_its_cohort_does_not_use(asked: int, held_by_b: int, reason: Reason) -> None:
    pool = make_pool(
        nodes=[12], teams={"a": make_quota(4, borrowing=2), "b": make_quota(4), "c": make_quota(4, lending=0)}
    )
    leases = [make_lease(gpus=held_by_b, team="b")] if held_by_b else []
    assert reason_of(make_snapshot(pools=[pool], waiting=[make_waiting(gpus=asked, team="a")], leases=leases)) is reason


def test_a_cohort_lends_across_its_pools() -> None:
    east = make_pool("c/east", nodes=[8], cohort="h100", teams={"a": make_quota(4), "b": make_quota(4)})
    west = make_pool("c/west", nodes=[8], cohort="h100", teams={"b": make_quota(8)})
    job = make_waiting(gpus=8, team="b", pool="c/east", owner="x")
    assert granted(make_snapshot(pools=[east, west], waiting=[job])) == ["job-1"]
    busy = make_lease(gpus=8, node="west-n0", pool="c/west", team="b")
    lender = make_lease("l2", gpus=1, node="east-n0", pool="c/east", team="a")
    full = make_snapshot(pools=[east, west], waiting=[replace(job, gpus_per_node=7)], leases=[busy])
    assert granted(full) == ["job-1"], "the unused nominal GPUs of team a can be borrowed"
    assert granted(replace(full, leases=(busy, lender))) == ["job-1"]
    assert granted(replace(full, waiting=(job,), leases=(busy, lender))) == []


def test_a_spent_budget_is_over_a_limit_with_its_hours() -> None:
    pool = make_pool(user_budget=Budget(gpu_hours=2, window=timedelta(days=1)))
    spent = (Spent(pool=pool.id, scope=Scope.USER, name="ann", gpu_seconds=1.5 * 3600),)
    fits = make_waiting("fits", max_runtime=seconds(1800))
    over = make_waiting("over", max_runtime=seconds(1801))
    assert granted(make_snapshot(pools=[pool], waiting=[fits], spent=spent)) == ["fits"]
    explanation = decide(make_snapshot(pools=[pool], waiting=[over], spent=spent), NOW).explain("over")
    assert (explanation.reason, explanation.numbers["used"], explanation.numbers["most"]) == (Reason.OVER_LIMIT, 1.5, 2)
    both = make_snapshot(pools=[pool], waiting=[fits, replace(fits, job_id="second")], spent=spent)
    assert granted(both) == ["fits"], "what one grant may take is promised and no longer there for the next"


# --- reservation and backfill ---------------------------------------------------------------------------------------


def head_of_line(**changes: object) -> Snapshot:
    """Four GPUs held for 60 s more; a head that needs all eight and has waited long; a small job behind it."""
    small = make_waiting("small", gpus=2, waited_s=1, owner="cat", **changes)
    head = make_waiting("head", gpus=8, waited_s=400)
    return make_snapshot(waiting=[head, small], leases=[make_lease(gpus=4, ends_by=at(60))])


def test_a_head_past_its_grace_time_gets_the_nodes_that_are_free_soonest() -> None:
    pool = make_pool(nodes=[8, 8, 8])
    leases = [
        make_lease("a", gpus=8, ends_by=at(90)),
        make_lease("b", gpus=8, node="n1", ends_by=at(30)),
        make_lease("c", gpus=8, node="n2"),
    ]
    job = make_waiting("head", gpus=8, waited_s=300)
    (reservation,) = decide(make_snapshot(pools=[pool], waiting=[job], leases=leases), NOW).reservations
    assert (reservation.nodes, reservation.starts_by, reservation.why) == (("n1",), at(30), ReservedFor.HEAD)


@pytest.mark.parametrize(
    ("max_runtime_s", "reason"),
    [
        pytest.param(59, Reason.GRANTED, id="ends before the reservation begins"),
        pytest.param(60, Reason.GRANTED, id="ends just when it begins"),
        pytest.param(61, Reason.WAITING_BEHIND_RESERVATION, id="would delay it"),
        pytest.param(None, Reason.WAITING_BEHIND_RESERVATION, id="nobody knows when it ends"),
    ],
)
def test_a_later_job_passes_only_if_it_does_not_delay_the_head(max_runtime_s: int | None, reason: Reason) -> None:
    max_runtime = None if max_runtime_s is None else seconds(max_runtime_s)
    assert reason_of(head_of_line(max_runtime=max_runtime), "small") is reason


def test_a_later_job_may_use_what_the_head_leaves_over() -> None:
    pool = make_pool(nodes=[8, 2])
    snapshot = replace(head_of_line(), pools=(pool,))
    assert granted(snapshot) == ["small"]


def test_a_higher_priority_passes_the_reservation_of_a_lower_one() -> None:
    assert granted(head_of_line(priority=1)) == ["small"]


def test_a_kept_reservation_goes_before_newer_jobs_with_a_better_share() -> None:
    use = Use(at=NOW, owners=(OwnerUse(pool="local/declared", team="default", owner="ann", gpu_seconds=1e9),))
    assert granted(replace(head_of_line(), use=use)) == ["small"], "without one the better share goes first"
    kept = decide(head_of_line(), NOW).reservations
    later = replace(head_of_line(), use=use, reservations=kept)
    assert [r.job_id for r in decide(later, NOW).reservations] == ["head"]
    assert reason_of(later, "small") is Reason.WAITING_BEHIND_RESERVATION


@pytest.mark.parametrize(
    ("ends_by_s", "nodes"),
    [
        pytest.param((None, None), ("n1",), id="stays where nobody knows more"),
        pytest.param((60, 60), ("n1",), id="stays where the others are not sooner"),
        pytest.param((59, 60), ("n0",), id="moves to what is certainly sooner"),
        pytest.param((59, None), ("n0",), id="moves from the unknown to the known"),
        pytest.param((None, 60), ("n1",), id="stays where its time is known"),
    ],
)
def test_a_kept_reservation_moves_only_to_what_is_certainly_sooner(
    ends_by_s: tuple[int | None, int | None], nodes: tuple[str, ...]
) -> None:
    leases = [
        make_lease(f"l{n}", gpus=8, node=f"n{n}", ends_by=None if ends_s is None else at(ends_s))
        for n, ends_s in enumerate(ends_by_s)
    ]
    kept = Reservation(
        job_id="head", pool="local/declared", nodes=("n1",), gpus_per_node=8, starts_by=None, made_at=at(-9)
    )
    head = make_waiting("head", gpus=8, waited_s=400)
    snapshot = make_snapshot(pools=[make_pool(nodes=[8, 8])], waiting=[head], leases=leases, reservations=(kept,))
    (reservation,) = decide(snapshot, NOW).reservations
    assert (reservation.nodes, reservation.made_at) == (nodes, at(-9))


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param({"teams": {"b": make_quota(0, borrowing=8)}}, id="the team's limit"),
        pytest.param({"max_gpus_per_user": 8}, id="the user's limit"),
    ],
)
@pytest.mark.parametrize(
    ("ends_by_s", "granted_ids", "promised"),
    [
        pytest.param(27, [], ["head"], id="until the promised time: the promise stands"),
        pytest.param(28, ["other"], [], id="longer than that: it is over its limit and keeps nothing"),
        pytest.param(None, ["other"], [], id="nobody knows how long: it keeps nothing"),
    ],
)
def test_a_promise_outlasts_those_who_were_let_pass_on_the_heads_own_limit(
    policy: dict[str, object], ends_by_s: int | None, granted_ids: list[str], promised: list[str]
) -> None:
    kept = Reservation(
        job_id="head", pool="local/declared", nodes=("n0",), gpus_per_node=8, starts_by=at(27), made_at=at(-9)
    )
    ends_by = None if ends_by_s is None else at(ends_by_s)
    snapshot = make_snapshot(
        pools=[make_pool(**policy)],
        waiting=[make_waiting("head", gpus=8, team="b", waited_s=400), make_waiting("other", owner="cat", team="a")],
        leases=[make_lease("passed", owner="ann", team="b", ends_by=ends_by)],
        reservations=(kept,),
    )
    outcome = decide(snapshot, NOW)
    assert [grant.job_id for grant in outcome.grants] == granted_ids
    assert [(r.job_id, r.starts_by) for r in outcome.reservations] == [(job_id, at(27)) for job_id in promised]


def test_only_the_first_in_line_of_a_pool_is_promised_gpus() -> None:
    leases = [make_lease(node, gpus=8, node=node, ends_by=at(60)) for node in ("n0", "n1")]
    waiting = [make_waiting(f"job-{number}", gpus=8, waited_s=400 - number) for number in (1, 2)]
    outcome = decide(make_snapshot(pools=[make_pool(nodes=[8, 8])], waiting=waiting, leases=leases), NOW)
    assert [(r.job_id, r.nodes) for r in outcome.reservations] == [("job-1", ("n0",))]


def promise(job_id: str, **changes: object) -> Reservation:
    """All eight GPUs of the only node, kept for that job since nine seconds ago."""
    defaults = {"pool": "local/declared", "nodes": ("n0",), "gpus_per_node": 8, "starts_by": None, "made_at": at(-9)}
    return Reservation(**{"job_id": job_id, **defaults, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("ids", [("ann-1", "bob-1"), ("bob-1", "ann-1")])
def test_promises_are_kept_in_the_order_in_which_they_were_made(ids: tuple[str, str]) -> None:
    use = Use(at=NOW, owners=(OwnerUse(pool="local/declared", team="default", owner="ann", gpu_seconds=1e9),))
    jobs = [make_waiting("bob-1", gpus=8, owner="bob"), make_waiting("ann-1", gpus=8)]
    assert granted(make_snapshot(waiting=jobs, use=use, reservations=tuple(map(promise, ids)))) == [ids[0]]


@pytest.mark.parametrize(
    ("policy", "asked"),
    [
        pytest.param({}, 8, id="there is room for one of them on the node"),
        pytest.param({"teams": {"a": make_quota(4), "b": make_quota(4, lending=0)}}, 4, id="and quota for one of them"),
    ],
)
def test_a_kept_promise_outlasts_that_to_a_higher_priority_and_has_no_time_meanwhile(
    policy: dict[str, object], asked: int
) -> None:
    low = make_waiting("low", gpus=asked, team="a")
    high = replace(low, job_id="high", priority=5, owner="cat", queued_at=at(-400))
    snapshot = make_snapshot(
        pools=[make_pool(**policy)],
        waiting=[low],
        leases=[make_lease(gpus=asked, team="a", priority=9, ends_by=at(60))],
        reservations=(promise("low", gpus_per_node=asked),),
    )
    assert [r.starts_by for r in decide(snapshot, NOW).reservations] == [at(60)]
    outcome = decide(replace(snapshot, waiting=(low, high)), NOW)
    assert [(r.job_id, r.starts_by) for r in outcome.reservations] == [("high", at(60)), ("low", None)]
    fresh = decide(replace(snapshot, waiting=(low, high), reservations=()), NOW)
    assert [r.job_id for r in fresh.reservations] == ["high"], "a new one goes to the first in line alone"


def test_a_promise_counts_on_the_end_of_what_starts_in_the_same_round() -> None:
    pool = make_pool(nodes=[8, 8], teams={"a": make_quota(0), "b": make_quota(16)})
    high = make_waiting("high", gpus=8, priority=5, team="a", owner="cat", max_runtime=seconds(30))
    head = make_waiting("head", gpus=8, team="a", waited_s=400)
    snapshot = make_snapshot(pools=[pool], waiting=[head, high], leases=[make_lease(gpus=4, team="b", node="n1")])
    outcome = decide(snapshot, NOW)
    assert [grant.job_id for grant in outcome.grants] == ["high"]
    assert [(r.nodes, r.starts_by) for r in outcome.reservations] == [(("n0",), at(30))]


@pytest.mark.parametrize(
    ("max_runtime_s", "granted_ids"),
    [
        pytest.param(None, ["first"], id="the second would take what the head needs"),
        pytest.param(61, ["first"], id="the second would still have it a second too long"),
        pytest.param(60, ["first", "second"], id="whoever ends before the promise may take it until then"),
    ],
)
def test_those_who_pass_a_promise_leave_it_its_quota_all_together(
    max_runtime_s: int | None, granted_ids: list[str]
) -> None:
    pool = make_pool(nodes=[8, 8], teams={"b": make_quota(8, lending=0)})
    leases = [make_lease(f"on-{node}", gpus=4, node=node, team="b", ends_by=at(60)) for node in ("n0", "n1")]
    limit = None if max_runtime_s is None else seconds(max_runtime_s)
    waiting = [
        make_waiting("head", gpus=6, team="a", waited_s=400),
        make_waiting("first", gpus=2, team="a", owner="cat", waited_s=2),
        make_waiting("second", gpus=2, team="a", owner="dan", waited_s=1, max_runtime=limit),
    ]
    outcome = decide(make_snapshot(pools=[pool], waiting=waiting, leases=leases), NOW)
    assert [(r.job_id, r.nodes, r.starts_by) for r in outcome.reservations] == [("head", ("n0",), at(60))]
    assert [grant.job_id for grant in outcome.grants] == granted_ids


# --- preemption -----------------------------------------------------------------------------------------------------


def test_a_higher_priority_takes_from_lower_preemptible_work_newest_first() -> None:
    leases = [make_lease("old", gpus=4, held_s=100), make_lease("new", gpus=4, first=4, held_s=1)]
    outcome = decide(make_snapshot(waiting=[make_waiting("hi", gpus=4, priority=1)], leases=leases), NOW)
    assert [p.lease_ids for p in outcome.preemptions] == [("new",)]
    assert outcome.explain("hi").reason is Reason.ABOUT_TO_PREEMPT
    assert outcome.explain("hi").numbers["victims"] == ["new"]


@pytest.mark.parametrize(
    ("asked", "lease", "policy"),
    [
        pytest.param(4, {"priority": 1}, {}, id="the same priority is not lower"),
        pytest.param(4, {"preemptible": False}, {}, id="it said it is not preemptible"),
        pytest.param(4, {}, {"preemption": False}, id="the pool's policy forbids it"),
        pytest.param(5, {}, {}, id="the job would still not fit"),
    ],
)
def test_nobody_is_asked_to_end(asked: int, lease: dict[str, object], policy: dict[str, object]) -> None:
    leases = [make_lease("low", gpus=4, **lease), make_lease("high", gpus=4, first=4, priority=9)]
    job = make_waiting("job-1", gpus=asked, priority=1)
    outcome = decide(make_snapshot(pools=[make_pool(**policy)], waiting=[job], leases=leases), NOW)
    assert outcome.preemptions == ()
    assert outcome.explain("job-1").reason is Reason.WAITING_FOR_QUOTA


def test_a_victim_that_already_ends_for_the_job_is_not_asked_again_nor_replaced() -> None:
    leases = [make_lease("a", gpus=4), make_lease("b", gpus=4, first=4)]
    snapshot = make_snapshot(waiting=[make_waiting("hi", gpus=4, priority=1)], leases=leases, ending={"a": "hi"})
    outcome = decide(snapshot, NOW)
    assert outcome.preemptions == ()
    assert outcome.explain("hi").reason is Reason.ABOUT_TO_PREEMPT


@pytest.mark.parametrize(
    ("on_n0", "on_n1", "victims"),
    [
        pytest.param({"priority": 2}, {"priority": 1}, ["n1-a"], id="the lower priority"),
        pytest.param({"gpus": 2}, {"gpus": 4}, ["n1-a"], id="one victim rather than two"),
        pytest.param({}, {}, ["n0-a"], id="the first by name where all is equal"),
    ],
)
def test_victims_are_taken_on_the_node_where_that_costs_least(
    on_n0: dict[str, int], on_n1: dict[str, int], victims: list[str]
) -> None:
    leases = []
    for node, changes in (("n0", on_n0), ("n1", on_n1)):
        gpus = changes.get("gpus", 4)
        for name, first in zip("ab", range(0, 4, gpus), strict=False):
            leases.append(make_lease(f"{node}-{name}", node=node, first=first, **{"gpus": gpus, **changes}))
    job = make_waiting("hi", gpus=4, priority=3)
    outcome = decide(make_snapshot(pools=[make_pool(nodes=[4, 4])], waiting=[job], leases=leases), NOW)
    assert [list(preemption.lease_ids) for preemption in outcome.preemptions] == [victims]


def test_a_later_job_may_use_what_a_preemption_leaves_over() -> None:
    waiting = [make_waiting("hi", gpus=4, priority=1), make_waiting("low", gpus=2)]
    leases = [make_lease("victim", gpus=4), make_lease("fixed", gpus=2, first=4, priority=9)]
    outcome = decide(make_snapshot(waiting=waiting, leases=leases), NOW)
    assert [preemption.lease_ids for preemption in outcome.preemptions] == [("victim",)]
    assert [grant.job_id for grant in outcome.grants] == ["low"]


def test_a_preemption_keeps_the_time_when_it_was_decided() -> None:
    first = make_snapshot(waiting=[make_waiting("hi", gpus=8, priority=1)], leases=[make_lease("a", gpus=8)])
    kept = decide(first, at(-5)).reservations
    later = replace(first, ending={"a": "hi"}, reservations=kept)
    assert decide(later, NOW).reservations == kept


def test_gpus_freed_by_the_first_of_two_victims_are_kept_for_the_preemptor() -> None:
    waiting = [make_waiting("hi", gpus=8, priority=1), make_waiting("low", gpus=4)]
    snapshot = make_snapshot(waiting=waiting, leases=[make_lease("b", gpus=4)], ending={"a": "hi", "b": "hi"})
    outcome = decide(snapshot, NOW)
    assert outcome.grants == ()
    assert outcome.explain("low").reason is Reason.WAITING_BEHIND_RESERVATION


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param({"teams": {"a": make_quota(8, lending=0), "b": make_quota(8)}}, id="the team's quota"),
        pytest.param({"teams": {"b": make_quota(8, borrowing=0)}}, id="the team's limit"),
        pytest.param({"max_gpus_per_user": 8}, id="the user's limit"),
    ],
)
def test_preemption_wins_back_quota_where_gpus_are_free(policy: dict[str, object]) -> None:
    who = {"team": "b", "owner": "bob"}
    leases = [make_lease("low", gpus=4, **who), make_lease("lower", gpus=4, first=4, priority=-1, **who)]
    job = make_waiting("hi", gpus=4, priority=3, **who)
    outcome = decide(make_snapshot(pools=[make_pool(nodes=[8, 8], **policy)], waiting=[job], leases=leases), NOW)
    assert [p.lease_ids for p in outcome.preemptions] == [("lower",)]
    assert outcome.explain("hi").reason is Reason.ABOUT_TO_PREEMPT


QUOTA_OF_EIGHT = {"teams": {"default": make_quota(8), "other": make_quota(8, lending=0)}}


@pytest.mark.parametrize(
    ("nodes", "policy", "victim", "asked", "told_s"),
    [
        pytest.param([8], {}, 4, 4, 100, id="the victim's devices go to the preemptor"),
        pytest.param([4], {}, 2, 1, 60, id="what the preemptor leaves of them is free when the victim has ended"),
        pytest.param([8, 8], {"max_gpus_per_user": 8}, 8, 4, 60, id="the victim counts against a limit until then"),
        pytest.param([8, 8], QUOTA_OF_EIGHT, 4, 4, 100, id="and the preemptor in its place from then on"),
    ],
)
def test_a_promise_beside_a_preemption_is_for_when_the_victims_have_ended(
    nodes: list[int], policy: dict[str, object], victim: int, asked: int, told_s: int
) -> None:
    leases = [make_lease("victim", gpus=victim, owner="ann", ends_by=at(60))]
    if victim < nodes[0]:
        rest = {"gpus": nodes[0] - victim, "first": victim, "owner": "ann", "priority": 9}
        leases.append(make_lease("fixed", ends_by=at(100), **rest))  # type: ignore[arg-type]
    waiting = [make_waiting("hi", gpus=asked, priority=5), make_waiting("head", gpus=asked, waited_s=400)]
    outcome = decide(make_snapshot(pools=[make_pool(nodes=nodes, **policy)], waiting=waiting, leases=leases), NOW)
    assert [preemption.lease_ids for preemption in outcome.preemptions] == [("victim",)]
    assert [(r.job_id, r.starts_by) for r in outcome.reservations] == [("hi", None), ("head", at(told_s))]


def test_a_node_costs_only_the_victims_that_it_needs() -> None:
    leases = [
        make_lease("small", gpus=1),
        make_lease("large", gpus=4, first=1, priority=1),
        make_lease("elsewhere", gpus=4, node="n1", priority=1),
    ]
    job = make_waiting("hi", gpus=4, priority=3)
    outcome = decide(make_snapshot(pools=[make_pool(nodes=[5, 4])], waiting=[job], leases=leases), NOW)
    assert [preemption.lease_ids for preemption in outcome.preemptions] == [("large",)]


def alike(**teams: TeamQuota) -> list[Pool]:
    """Two pools of one cohort with a node of the same name: one machine with two models, or two clusters."""
    return [
        make_pool(name, nodes=[make_node("n0", gpus=gpus)], cohort="both", teams=teams)
        for name, gpus in (("east/x", 8), ("west/x", 4))
    ]


@pytest.mark.parametrize("ending", [{}, {"elsewhere": "hi"}])
def test_a_victim_on_a_node_of_the_same_name_in_another_pool_frees_no_devices(ending: dict[str, str]) -> None:
    leases = [
        make_lease("fixed", gpus=8, pool="east/x", team="a", priority=9),
        make_lease("elsewhere", gpus=4, pool="west/x", team="a"),
    ]
    job = make_waiting("hi", gpus=4, pool="east/x", team="a", priority=5)
    snapshot = make_snapshot(pools=alike(a=make_quota(8)), waiting=[job], leases=leases, ending=ending)
    outcome = decide(snapshot, NOW)
    assert outcome.preemptions == ()
    assert outcome.explain("hi").reason is Reason.WAITING_FOR_QUOTA


def test_a_victim_taken_in_another_pool_for_its_quota_leaves_nobody_the_preemptors_devices() -> None:
    leases = [
        make_lease("fixed", gpus=4, pool="east/x", team="a", priority=9),
        make_lease("elsewhere", gpus=4, pool="west/x", team="a"),
    ]
    waiting = [
        make_waiting("hi", gpus=4, pool="east/x", team="a", priority=5),
        make_waiting("low", gpus=4, pool="east/x", team="b", owner="cat"),
    ]
    pools = alike(a=make_quota(4), b=make_quota(4, lending=0))
    outcome = decide(make_snapshot(pools=pools, waiting=waiting, leases=leases), NOW)
    assert [preemption.lease_ids for preemption in outcome.preemptions] == [("elsewhere",)]
    assert outcome.grants == ()


def test_two_preemptors_of_one_round_ask_different_victims() -> None:
    leases = [make_lease("a", gpus=4), make_lease("b", gpus=4, first=4)]
    waiting = [make_waiting(f"hi-{number}", gpus=4, priority=1, waited_s=-number) for number in (1, 2)]
    outcome = decide(make_snapshot(waiting=waiting, leases=leases), NOW)
    assert [(p.job_id, p.lease_ids) for p in outcome.preemptions] == [("hi-1", ("a",)), ("hi-2", ("b",))]


def test_a_victim_that_came_first_is_spared_when_the_next_is_enough_alone() -> None:
    leases = [
        make_lease("small", gpus=1),
        make_lease("large", gpus=4, first=1, priority=1),
        make_lease("fixed", gpus=3, first=5, priority=9),
    ]
    job = make_waiting("hi", gpus=4, owner="bob", priority=3)
    pool = make_pool(nodes=[8, 8], max_gpus_per_user=8)
    outcome = decide(make_snapshot(pools=[pool], waiting=[job], leases=leases), NOW)
    assert [preemption.lease_ids for preemption in outcome.preemptions] == [("large",)]


# --- reasons --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"pool": "gone/pool", "staged": False}, Reason.MISCONFIGURED, id="misconfigured before staging"),
        pytest.param({"gpus": 9, "staged": False}, Reason.MISCONFIGURED, id="can never fit before staging"),
        pytest.param({"gpus": 5, "staged": False}, Reason.OVER_LIMIT, id="over a limit before staging"),
        pytest.param({"gpus": 4, "staged": False}, Reason.STAGING, id="staging before waiting for quota"),
        pytest.param({"gpus": 4}, Reason.WAITING_FOR_QUOTA, id="waiting for quota when nothing else is wrong"),
    ],
)
def test_a_waiting_job_has_one_reason_by_precedence(changes: dict[str, object], reason: Reason) -> None:
    pool = make_pool(nodes=[8], max_gpus_per_user=6)
    leases = [make_lease("a", gpus=2, owner="ann"), make_lease("b", gpus=6, first=2)]
    job = make_waiting("job-1", **changes)
    outcome = decide(make_snapshot(pools=[pool], waiting=[job], leases=leases), NOW)
    assert outcome.explain("job-1").reason is reason
    assert re.fullmatch(r"[A-Z0-9].*\.", outcome.explain("job-1").message), "a sentence, as those of all other phases"


def test_an_explanation_carries_the_numbers_and_who_holds_the_gpus() -> None:
    leases = [make_lease("a", gpus=1, holder_id="job-a"), make_lease("b", gpus=5, first=1, holder_id="job-b")]
    jobs = [make_waiting("first", gpus=8, waited_s=9), make_waiting("second", gpus=3, owner="cat", waited_s=8)]
    numbers = decide(make_snapshot(waiting=jobs, leases=leases), NOW).explain("second").numbers
    assert {key: numbers[key] for key in ("asked", "free", "capacity", "in_use", "position", "line")} == {
        "asked": 3,
        "free": 2,
        "capacity": 8,
        "in_use": 6,
        "position": 2,
        "line": 2,
    }
    assert [row["holder"] for row in numbers["holders"]] == ["job-b", "job-a"]  # type: ignore[attr-defined]


def test_a_round_knows_nothing_of_other_jobs() -> None:
    with pytest.raises(NotFound, match="job-9"):
        decide(make_snapshot(), NOW).explain("job-9")


# --- payloads -------------------------------------------------------------------------------------------------------


def test_a_stored_round_is_replayed_from_its_stored_snapshot() -> None:
    snapshot = replace(head_of_line(), ending={"x": "small"})
    outcome = decide(snapshot, NOW)
    stored = json.loads(json.dumps({"snapshot": snapshot.to_payload(), "round": outcome.to_payload()}))
    read = Round.from_payload(stored["round"])
    again = decide(Snapshot.from_payload(stored["snapshot"]), NOW)
    assert read == again == outcome
    assert read.explanations() == again.explanations() == outcome.explanations()
    assert read.rule_version == RULE_VERSION


def test_a_job_in_line_keeps_the_pools_max_runtime_where_it_asks_for_more() -> None:
    job = make_job(spec=make_spec(max_runtime=seconds(600), nodes=2, gpus_per_node=3))
    stands = waiting_of(job, make_policy(max_runtime=seconds(60)))
    assert (stands.max_runtime, stands.gpus, stands.staged) == (seconds(60), 6, True)
    assert waiting_of(job).max_runtime == seconds(600)
    assert waiting_of(replace(job, phase=Phase.STAGING)).staged is False
