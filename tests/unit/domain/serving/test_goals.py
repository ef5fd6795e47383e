"""What the router and the fleet should come to while a candidate gets requests in different ways."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builders import NOW, make_plan, make_revision, make_service
from fermion.domain.rollout.plan import Share, SplitRule, Step
from fermion.domain.rollout.reasons import Explanation, Reason
from fermion.domain.rollout.rollouts import Phase, Rollout
from fermion.domain.serving.goals import Goal, goal_of
from fermion.domain.serving.services import Capacity, Service

GROUP = SplitRule(header="x-group", value="beta")
STICKY = SplitRule(cookie="variant")
HEADER, COPIES = Share(split=GROUP), Share(mirror_percent=60)
HELD, DRAWN = Share(weight_percent=30, split=STICKY), Share(weight_percent=30)
WAYS = {"header": HEADER, "copies": COPIES, "sticky": HELD, "drawn": DRAWN}


def goal(
    share: Share,
    *,
    phase: Phase = Phase.BAKING,
    ready: int = 9,
    stable_ready: int = 4,
    service: Service | None = None,
    capacity: Capacity = Capacity.WAIT,
) -> Goal:
    """Of a service with four replicas whose candidate is at a step that gives that."""
    step = Step(weight_percent=share.weight_percent, split=share.split, mirror_percent=share.mirror_percent)
    rollout = Rollout(
        id="ro-1",
        service="inf-digits-001",
        canary="r2",
        stable="r1",
        plan=replace(make_plan(), steps=(step, Step(weight_percent=100))),
        phase=phase,
        explanation=Explanation(Reason.CREATED, "because"),
        created_at=NOW,
        changed_at=NOW,
        step_since=None if phase is Phase.WAITING else NOW,
        step=1 if phase is Phase.PROMOTING else 0,
    )
    new = make_revision(2)
    revisions = [make_revision(1), replace(new, spec=replace(new.spec, capacity=capacity))]
    service = service or make_service(stable=1, candidate=2, newest=2, replicas=4, weights={"1": 100})
    return goal_of(service, revisions, rollout, ready={1: stable_ready, 2: ready}, in_line={})


@pytest.mark.parametrize(
    ("way", "weights", "split", "copies", "replicas"),
    [
        ("drawn", {"1": 70, "2": 30}, None, 0, 2),
        ("sticky", {"1": 70, "2": 30}, STICKY, 0, 2),
        ("header", {"1": 100}, GROUP, 0, 2),
        ("copies", {"1": 100}, None, 60, 3),
    ],
)
def test_a_candidate_gets_what_its_step_says_and_the_replicas_for_it(
    way: str, weights: dict[str, int], split: SplitRule | None, copies: int, replicas: int
) -> None:
    made = goal(WAYS[way])
    assert (made.weights, made.split, made.mirror_percent) == (weights, split, copies)
    assert (made.replicas, made.enough_ready) == ({1: 4, 2: replicas}, True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("phase", [Phase.WAITING, Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.ABORTED])
def test_where_stable_has_all_nothing_of_it_is_left(phase: Phase, way: str) -> None:
    made = goal(WAYS[way], phase=phase)
    assert (made.weights, made.split, made.mirror_percent) == ({"1": 100}, None, 0)


@pytest.mark.parametrize("way", WAYS)
def test_the_promotion_ends_every_split(way: str) -> None:
    made = goal(WAYS[way], phase=Phase.PROMOTING)
    assert (made.weights, made.split, made.mirror_percent) == ({"2": 100}, None, 0)
    assert made.replicas == {1: 4, 2: 4}


@pytest.mark.parametrize("way", WAYS)
def test_without_a_ready_replica_it_gets_nothing_while_stable_can_answer(way: str) -> None:
    has = make_service(stable=1, candidate=2, newest=2, replicas=4, weights={"1": 70, "2": 30}, mirror_percent=60)
    for service in (None, has):
        made = goal(WAYS[way], ready=0, service=service)
        assert (made.weights, made.split, made.mirror_percent, made.enough_ready) == ({"1": 100}, None, 0, False)


def test_where_stable_cannot_answer_either_it_keeps_its_share() -> None:
    has = make_service(stable=1, candidate=2, newest=2, replicas=4, weights={"1": 70, "2": 30})
    assert goal(DRAWN, ready=0, stable_ready=0, service=has).weights == {"1": 70, "2": 30}


def test_with_too_few_ready_it_gets_no_more_copies_than_they_have_a_share_of() -> None:
    assert goal(COPIES, ready=1).mirror_percent == 25
    has = make_service(stable=1, candidate=2, newest=2, replicas=4, weights={"1": 100}, mirror_percent=60)
    assert goal(COPIES, ready=1, service=has).mirror_percent == 60, "what it has is not taken away"
    more = replace(has, mirror_percent=90)
    assert goal(COPIES, ready=1, service=more).mirror_percent == 60, "but never more than the step says"
    assert goal(HEADER, ready=1).split == GROUP


def test_a_swap_makes_room_for_half_of_a_group() -> None:
    assert goal(HEADER, capacity=Capacity.SWAP).replicas == {1: 2, 2: 2}
