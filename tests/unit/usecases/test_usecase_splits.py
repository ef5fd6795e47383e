"""A/B by header and cookie, sticky clients and copies, from request to verdict, over a whole platform in memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving_world import PLAN, ServingWorld

from builders import seconds
from fermion.adapters.memory.measurements import MemoryMeasurements
from fermion.domain.rollout.looks import Look, Outcome
from fermion.domain.rollout.plan import Share, SplitRule
from fermion.domain.rollout.reasons import Reason
from fermion.domain.rollout.replay import replay
from fermion.domain.rollout.rollouts import Phase
from fermion.domain.serving.request import parse_service, request_of
from fermion.domain.serving.routing import Match, MatchKind, Mirror, Spread, answers_of, copies_of
from fermion.domain.serving.services import Revision
from fermion.errors import RequestRefused
from fermion.usecases.doctor import Check, examine
from fermion.usecases.serving.approvals import answer, question
from fermion.usecases.serving.queries import deployment, service_state
from fermion.usecases.serving.sync import record_traffic
from fermion.usecases.serving.tend import ServiceTender

OLD, NEW = "inf-digits-001-r1", "inf-digits-001-r2"
BETA = {"x-group": "beta"}
GUARDED = {**PLAN, "metrics": [{"name": "error_rate", "guard": 0.3}, "latency_p95"]}
HEADER = {"split": {"header": "X-Group", "value": "beta"}, "approval": True}
COOKIE = {"split": {"cookie": "group", "value": "b"}, "approval": True}
STICKY = {"weight": 30, "split": {"cookie": "variant"}, "approval": True}
COPIES = {"mirror": 50}


@pytest.fixture
def world(tmp_path: Path) -> ServingWorld:
    return ServingWorld(tmp_path)


def trying(world: ServingWorld, *steps: object, **plan: Any) -> Revision:
    """A second revision, tried by a plan of these steps and the promotion."""
    world.serving()
    world.publish("better")
    made = world.deploy(plan={**GUARDED, "steps": [*steps, 100], **plan})
    world.rounds(1)
    return made


def ask(
    world: ServingWorld, count: int, headers: dict[str, str] | None = None, cookies: dict[str, str] | None = None
) -> Counter[str | None]:
    """So many requests; who answered them."""
    router = world.driver.router
    return Counter(router.request("/digits/x", headers=headers, cookies=cookies).backend for _ in range(count))


def until(world: ServingWorld, made: Revision, phase: Phase, headers: dict[str, str] | None = None) -> None:
    """Rounds under requests, half of which bring the headers, until the rollout is there."""
    for _ in range(300):
        if world.rollout(made).phase is phase:
            return
        ask(world, 60, headers)
        world.rounds(1, requests=60)
    raise AssertionError(f"it is {world.rollout(made).phase}: {world.rollout(made).explanation.message}")


def approve(world: ServingWorld, made: Revision) -> None:
    answer(world.ctx, f"ro-{made.id}", approved=True, by="ann", at=world.clock.now())


def applied(world: ServingWorld) -> Spread:
    return world.driver.router.applied()["digits"]


# --- by header and by cookie ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "match", "brings"),
    [
        (HEADER, Match(kind=MatchKind.HEADER, name="x-group", value="beta", backend=NEW), {"headers": BETA}),
        (COOKIE, Match(kind=MatchKind.COOKIE, name="group", value="b", backend=NEW), {"cookies": {"group": "b"}}),
    ],
)
def test_a_group_goes_to_the_candidate_and_all_others_to_stable(
    world: ServingWorld, step: dict[str, object], match: Match, brings: dict[str, dict[str, str]]
) -> None:
    made = trying(world, step)
    until(world, made, Phase.BAKING)
    assert applied(world) == Spread(weights={OLD: 100}, matches=(match,))
    assert ask(world, 50) == {OLD: 50}
    assert ask(world, 50, **brings) == {NEW: 50}
    others = {name: {key: f"{value}x" for key, value in given.items()} for name, given in brings.items()}
    assert ask(world, 50, **others) == {OLD: 50}


def test_a_group_is_left_only_by_a_person_and_then_gone(world: ServingWorld) -> None:
    made = trying(world, HEADER, 50)
    until(world, made, Phase.AWAITING_APPROVAL, BETA)
    put = question(world.ctx, deployment(world.ctx, made.service_id, made.number))
    assert put is not None
    assert f"has passed the group with header x-group: beta, beside {OLD}" in put.body
    assert "**Approve**: 50 % next" in put.body
    assert "not tested because clients choose their arm; its guard of 30 % holds" in put.body
    world.rounds(20, requests=60)
    assert world.rollout(made).phase is Phase.AWAITING_APPROVAL
    approve(world, made)
    until(world, made, Phase.BAKING)
    assert applied(world) == Spread(weights={OLD: 50, NEW: 50})
    until(world, made, Phase.PROMOTED)
    assert world.service().split is None
    assert applied(world) == Spread(weights={NEW: 100})
    assert replay(world.rollout(made).plan, world.looks(made)) == []


def test_a_group_that_nobody_brings_passes_nothing(world: ServingWorld) -> None:
    made = trying(world, HEADER)
    until(world, made, Phase.PAUSED)
    assert world.rollout(made).explanation.reason is Reason.UNDECIDED
    assert {look.outcome for look in world.looks(made)} == {Outcome.NODATA}


def test_a_group_with_another_error_rate_is_no_failure_but_a_crossed_guard_is(world: ServingWorld) -> None:
    made = trying(world, HEADER)
    world.driver.router.answers(NEW, *[200] * 4, 500)
    until(world, made, Phase.AWAITING_APPROVAL, BETA)
    assert world.looks(made)[-1].metrics[0].statistic == 0
    world.driver.router.answers(NEW, 500)
    until(world, made, Phase.ROLLED_BACK, BETA)
    assert "crosses its guard of 30 %" in world.rollout(made).explanation.message
    assert applied(world) == Spread(weights={OLD: 100})
    assert ask(world, 20, BETA) == {OLD: 20}, "whoever brings the header is answered by stable"


def test_a_group_goes_to_stable_while_no_replica_of_the_candidate_is_ready(world: ServingWorld) -> None:
    made = trying(world, HEADER, unready_limit="1h")
    until(world, made, Phase.BAKING)
    names = [row.name for row in world.rows() if row.revision == NEW]
    for name in names:
        world.driver.replicas.unready(name)
    world.rounds(2)
    assert applied(world) == Spread(weights={OLD: 100})
    assert world.ask(20) == {200: 20}
    for name in names:
        world.driver.replicas.ready(name)
    world.rounds(2)
    assert ask(world, 20, BETA) == {NEW: 20}


# --- sticky ---------------------------------------------------------------------------------------------------------------


def test_a_sticky_split_keeps_each_client_where_it_was_drawn(world: ServingWorld) -> None:
    made = trying(world, STICKY, 50)
    until(world, made, Phase.BAKING)
    assert applied(world) == Spread(weights={OLD: 70, NEW: 30}, sticky_cookie="variant")
    router = world.driver.router
    cookies = [router.request("/digits/x").cookie for _ in range(400)]
    drawn = Counter(cookie[1] for cookie in cookies if cookie is not None)
    assert 60 < drawn[NEW] < 180
    for name, backend in {cookie for cookie in cookies if cookie is not None}:
        assert ask(world, 50, cookies={name: backend}) == {backend: 50}
    until(world, made, Phase.AWAITING_APPROVAL)
    assert "the same clients come again" in world.looks(made)[-1].metrics[0].sentence
    approve(world, made)
    until(world, made, Phase.BAKING)
    assert applied(world) == Spread(weights={OLD: 50, NEW: 50})


# --- fixed ----------------------------------------------------------------------------------------------------------------


def test_a_fixed_split_lasts_as_long_as_it_says_and_is_counted(world: ServingWorld) -> None:
    made = trying(world, {"split": {"fixed": 40, "for": "30s"}})
    until(world, made, Phase.BAKING)
    began = world.clock.now()
    until(world, made, Phase.PROMOTING)
    assert (world.clock.now() - began).total_seconds() >= 30
    parts = [look.measured.counted_percent for look in world.looks(made)]
    assert all(part is not None and 33 < part < 47 for part in parts)


# --- copies ---------------------------------------------------------------------------------------------------------------


def copied(look: Look) -> tuple[int, int]:
    reading = look.measured.readings[0]
    return sum(reading.canary), sum(reading.stable)


def test_copies_reach_the_candidate_and_no_client_and_are_no_requests(world: ServingWorld) -> None:
    made = trying(world, COPIES, 50)
    world.driver.router.answers(NEW, 200, latency_ms=0.9)
    until(world, made, Phase.BAKING)
    assert applied(world) == Spread(weights={OLD: 100}, mirror=Mirror(backend=NEW, percent=50))
    record_traffic(world.ctx)
    before = world.driver.router.counters([OLD, NEW, copies_of(NEW)])
    assert ask(world, 1000) == {OLD: 1000}
    after = world.driver.router.counters([OLD, NEW, copies_of(NEW)])
    came = {key: after[key].requests - before[key].requests for key in after}
    assert (came[OLD], came[NEW]) == (1000, 0)
    assert 400 < came[copies_of(NEW)] < 600
    world.clock.advance(seconds(1))
    before_all = service_state(world.ctx, "digits").lately
    assert before_all is not None
    ask(world, 100)
    world.clock.advance(seconds(1))
    lately = service_state(world.ctx, "digits").lately
    assert lately is not None
    assert lately.requests - before_all.requests == 100, "the service's figures know no copies"


def test_copies_are_compared_with_what_stable_answered_and_lead_on_by_themselves(world: ServingWorld) -> None:
    made = trying(world, COPIES, 50)
    until(world, made, Phase.PROMOTED)
    looks = world.looks(made)
    first = [look for look in looks if look.measured.step == 0]
    assert first
    assert all(look.outcome is Outcome.PASS for look in first)
    for look in first:
        canary, stable = copied(look)
        assert 0 < canary < stable
        assert look.measured.share == Share(mirror_percent=50)
    assert "A copy of 50 % has passed" in _said(world, made)
    assert replay(world.rollout(made).plan, looks) == []


@pytest.mark.parametrize(
    ("statuses", "latency_ms", "metric"),
    [((200, 200, 200, 500), 1.0, "error_rate"), ((200,), 50.0, "latency_p95")],
)
def test_a_candidate_whose_copies_are_worse_goes_back_before_anybody_saw_it(
    world: ServingWorld, statuses: tuple[int, ...], latency_ms: float, metric: str
) -> None:
    made = trying(world, COPIES, 50)
    world.driver.router.answers(NEW, *statuses, latency_ms=latency_ms)
    until(world, made, Phase.ROLLED_BACK)
    assert f"{metric} is surely worse" in world.rollout(made).explanation.message
    assert world.driver.router.counters([OLD]).keys() == {OLD}
    with world.ctx.store.read() as tx:
        assert sum(each.requests for each in tx.traffic.since([NEW], made.created_at)[NEW]) == 0
    assert applied(world) == Spread(weights={OLD: 100})


def test_it_is_rolled_back_only_when_no_copy_is_on_its_way(world: ServingWorld) -> None:
    made = trying(world, COPIES, 50)
    until(world, made, Phase.BAKING)
    world.driver.router.hold(copies_of(NEW), 1)
    world.driver.router.answers(NEW, 500)
    until(world, made, Phase.ROLLING_BACK)
    world.rounds(20, requests=20)
    assert world.rollout(made).phase is Phase.ROLLING_BACK
    world.driver.router.hold(copies_of(NEW), 0)
    until(world, made, Phase.ROLLED_BACK)


def test_a_look_in_which_counts_of_copies_were_forgotten_is_an_error_and_the_next_one_counts_again(
    world: ServingWorld,
) -> None:
    made = trying(world, COPIES, 50, bake_min="20s", bake_max="60s")
    until(world, made, Phase.BAKING)
    while not world.looks(made):
        world.rounds(1, requests=60)
    world.driver.router.restart()
    before = len(world.looks(made))
    while len(world.looks(made)) < before + 2:
        world.rounds(1, requests=60)
    forgotten, after = world.looks(made)[before:]
    assert (forgotten.outcome, after.outcome) == (Outcome.ERROR, Outcome.PASS)
    assert "began anew in this window" in forgotten.sentence


def test_copies_are_looked_at_by_what_was_recorded_too(tmp_path: Path) -> None:
    world = ServingWorld(tmp_path)
    measurements = MemoryMeasurements(world.driver.router.counters)
    rules = replace(world.ctx.rules, looks_from_measurements=True)
    world.ctx = replace(world.ctx, measurements=measurements, rules=rules)
    world.services = ServiceTender(world.ctx)
    made = trying(world, COPIES, 50)
    for _ in range(60):
        measurements.scrape([OLD, NEW, copies_of(NEW), answers_of(OLD)])
        world.rounds(1, every_s=0.5, requests=40)
    looks = [look for look in world.looks(made) if look.measured.step == 0]
    assert Outcome.PASS in {look.outcome for look in looks}
    assert all(0 < copied(look)[0] < copied(look)[1] for look in looks if look.outcome is Outcome.PASS)


def _said(world: ServingWorld, made: Revision) -> str:
    with world.ctx.store.read() as tx:
        return " ".join(event.message for _, event in tx.records.events(target=f"ro-{made.id}"))


# --- what is lost, and what is refused --------------------------------------------------------------------------------------


def _router(world: ServingWorld) -> Check:
    return next(each for each in examine(world.ctx).checks if each.name == "router local")


def test_a_split_that_the_router_lost_is_told_and_ordered_again(world: ServingWorld) -> None:
    made = trying(world, HEADER)
    until(world, made, Phase.BAKING)
    table = world.driver.router._table
    world.driver.router.apply(replace(table, routes=tuple(replace(route, matches=()) for route in table.routes)))
    check = _router(world)
    assert (check.ok, "not as wished: digits" in check.detail) == (False, True)
    world.rounds(1)
    assert ask(world, 20, BETA) == {NEW: 20}
    assert _router(world).ok


def test_everything_wrong_with_splits_is_one_answer(world: ServingWorld) -> None:
    steps = [{"mirror": 200}, {"split": {"header": "x group"}}, {"weight": 5, "split": {"cookie": "a b"}}, 100]
    with pytest.raises(RequestRefused) as refused:
        world.submit_service(image="nothing:1", plan={**PLAN, "steps": steps})
    assert sorted((problem.field, problem.code) for problem in refused.value.problems) == [
        ("image", "unknown_image"),
        ("plan.metrics", "guard_needed"),
        ("plan.steps.0.mirror_percent", "out_of_range"),
        ("plan.steps.1.split.value", "missing"),
        ("plan.steps.2.approval", "approval_needed"),
        ("plan.steps.2.split.cookie", "bad_name"),
    ]


def test_what_the_router_cannot_match_is_refused_by_its_own_word(world: ServingWorld) -> None:
    steps = [{"split": {"header": "Connection", "value": "x"}, "approval": True}, 100]
    with pytest.raises(RequestRefused) as refused:
        world.submit_service(plan={**GUARDED, "steps": steps})
    (problem,) = refused.value.problems
    assert (problem.field, problem.code) == ("plan.steps.0.split.header", "not_matchable")


@pytest.mark.parametrize(
    ("api_type", "expected"),
    [
        ("rest", []),
        ("websocket", [("plan.steps.0.mirror_percent", "no_copies")]),
        (
            "grpc",
            [
                ("plan.steps.0.mirror_percent", "no_copies"),
                ("plan.steps.2.split.cookie", "no_cookies"),
                ("plan.steps.3.split.cookie", "no_cookies"),
            ],
        ),
    ],
)
def test_what_clients_speak_decides_which_ways_there_are(
    world: ServingWorld, api_type: str, expected: list[tuple[str, str]]
) -> None:
    asked = world.service_request(api_type=api_type, plan={**GUARDED, "steps": [COPIES, HEADER, COOKIE, STICKY, 100]})
    if not expected:
        spec = parse_service(asked)
        assert parse_service(request_of(spec)) == spec
        assert spec.plan.steps[1].split == SplitRule(header="x-group", value="beta")
        return
    with pytest.raises(RequestRefused) as refused:
        parse_service(asked)
    assert [(problem.field, problem.code) for problem in refused.value.problems] == expected
