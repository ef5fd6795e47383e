"""What is due for the replicas of a service, replica by replica."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from builders import NOW, make_replica, make_revision, make_service, seconds
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.serving.fleet import DRAIN_LEAST, DRAIN_MOST, Due, Fleet, decide, wanted
from fermion.domain.serving.replicas import ReplicaSeen, ReplicaState
from fermion.domain.serving.services import (
    REPLICA_TRANSITIONS,
    REVISION_TRANSITIONS,
    Capacity,
    Replica,
    ReplicaPhase,
    RevisionPhase,
    move_replica,
    move_revision,
)
from fermion.errors import InvalidTransition

R1 = "inf-digits-001-r1"
WHY = Explanation(Reason.NOT_WANTED, "why")


def row(number: int, phase: ReplicaPhase, **changes: Any) -> Replica:
    return replace(make_replica(number, revision=R1), phase=phase, changed_at=NOW, draining_since=None, **changes)


def seen(name: str, state: ReplicaState, **changes: Any) -> ReplicaSeen:
    return ReplicaSeen(name=name, state=state, observed_at=NOW, **changes)


def fleet(*rows: Replica, count: int, states: dict[int, ReplicaState] | None = None, **changes: Any) -> Fleet:
    found = {f"{R1}-{number}": seen(f"{R1}-{number}", state) for number, state in (states or {}).items()}
    revision = replace(make_revision(1), phase=RevisionPhase.SERVING, wanted=count)
    return Fleet(service=make_service(), revisions=[revision], replicas=rows, seen=found, **changes)


def due(found: Fleet, *, after_s: float = 0) -> dict[str, Due]:
    return {step.name.removeprefix(f"{R1}-"): step.due for step in decide(found, NOW + seconds(after_s)).steps}


def test_missing_replicas_are_counted_and_those_that_leave_do_not_count() -> None:
    found = fleet(
        row(1, ReplicaPhase.HOLDING),
        row(2, ReplicaPhase.DRAINING),
        row(3, ReplicaPhase.ENDED),
        count=3,
        states={1: ReplicaState.READY, 2: ReplicaState.READY},
    )
    assert decide(found, NOW).missing == {1: 2}


def test_of_too_many_those_in_line_go_first_then_those_not_ready_then_the_newest() -> None:
    rows = [row(number, ReplicaPhase.HOLDING) for number in (1, 2, 3)] + [row(4, ReplicaPhase.WAITING)]
    states = {1: ReplicaState.READY, 2: ReplicaState.UNREADY, 3: ReplicaState.READY, 4: ReplicaState.SUSPENDED}
    assert due(fleet(*rows, count=3, states=states)) == {"4": Due.GIVE_UP}
    assert due(fleet(*rows, count=2, states=states)) == {"4": Due.GIVE_UP, "2": Due.DRAIN}
    assert due(fleet(*rows, count=1, states=states)) == {"4": Due.GIVE_UP, "2": Due.DRAIN, "3": Due.DRAIN}


@pytest.mark.parametrize("state", [ReplicaState.ABSENT, ReplicaState.EXITED, ReplicaState.LOST])
@pytest.mark.parametrize("phase", [ReplicaPhase.HOLDING, ReplicaPhase.DRAINING, ReplicaPhase.STOPPING])
def test_what_is_gone_gives_its_lease_back_whatever_it_was_about(phase: ReplicaPhase, state: ReplicaState) -> None:
    assert due(fleet(row(1, phase), count=1, states={1: state})) == {"1": Due.CLOSE}


def test_a_lost_one_that_left_processes_behind_keeps_its_lease() -> None:
    found = fleet(row(1, ReplicaPhase.HOLDING), count=1)
    left = replace(found, seen={f"{R1}-1": seen(f"{R1}-1", ReplicaState.LOST, orphans=1)})
    assert due(left) == {}


def test_one_that_was_not_looked_at_is_not_concluded_about() -> None:
    assert due(fleet(row(1, ReplicaPhase.HOLDING), count=1)) == {}


@pytest.mark.parametrize(
    ("after_s", "routed", "active", "expected"),
    [
        pytest.param(0.1, False, 0, None, id="a moment is waited in any case"),
        pytest.param(DRAIN_LEAST.total_seconds(), False, 0, Due.STOP, id="nothing on its way"),
        pytest.param(5, True, 0, None, id="the router still has it"),
        pytest.param(5, False, 3, None, id="requests are on their way"),
        pytest.param(DRAIN_MOST.total_seconds() + 1, True, 3, Due.STOP, id="but not for ever"),
    ],
)
def test_a_draining_replica_is_stopped_once_nothing_is_on_its_way(
    after_s: float, routed: bool, active: int, expected: Due | None
) -> None:
    leaving = replace(row(1, ReplicaPhase.DRAINING), draining_since=NOW)
    found = fleet(
        leaving,
        count=0,
        states={1: ReplicaState.READY},
        routed={f"{R1}-1"} if routed else frozenset(),
        active={R1: active},
    )
    assert due(found, after_s=after_s) == ({} if expected is None else {"1": expected})


@pytest.mark.parametrize(
    ("replicas", "weight", "capacity", "promoting", "expected"),
    [
        pytest.param(4, 10, Capacity.WAIT, False, (4, 1), id="a tenth needs one"),
        pytest.param(4, 50, Capacity.WAIT, False, (4, 2), id="a half needs half"),
        pytest.param(4, 50, Capacity.SWAP, False, (2, 2), id="swapped, never more than four in all"),
        pytest.param(2, 90, Capacity.SWAP, False, (1, 1), id="swapped, one of the old stays"),
        pytest.param(4, 50, Capacity.WAIT, True, (4, 4), id="promoted, all are needed"),
        pytest.param(4, 50, Capacity.SWAP, True, (0, 4), id="promoted and swapped"),
        pytest.param(1, 10, Capacity.BORROW, False, (1, 1), id="one is the least"),
    ],
)
def test_replicas_of_both_sides(
    replicas: int, weight: int, capacity: Capacity, promoting: bool, expected: tuple[int, int]
) -> None:
    both = wanted(replicas=replicas, weight_percent=weight, capacity=capacity, is_promoting=promoting)
    assert (both.stable, both.candidate) == expected


@pytest.mark.parametrize(("before", "after"), list(product(ReplicaPhase, ReplicaPhase)))
def test_a_replica_moves_only_as_the_table_says(before: ReplicaPhase, after: ReplicaPhase) -> None:
    there = row(1, before)
    if after in REPLICA_TRANSITIONS[before]:
        assert move_replica(there, after, WHY, NOW).phase is after
    else:
        with pytest.raises(InvalidTransition):
            move_replica(there, after, WHY, NOW)


@pytest.mark.parametrize(("before", "after"), list(product(RevisionPhase, RevisionPhase)))
def test_a_revision_moves_only_as_the_table_says(before: RevisionPhase, after: RevisionPhase) -> None:
    there = replace(make_revision(1), phase=before)
    if after in REVISION_TRANSITIONS[before]:
        assert move_revision(there, after, WHY, NOW).phase is after
    else:
        with pytest.raises(InvalidTransition):
            move_revision(there, after, WHY, NOW)
