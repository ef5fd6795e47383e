"""Leases: what they hold, how they are renewed, how they end once."""

from __future__ import annotations

from itertools import product

import pytest

from builders import at, make_lease, seconds
from fermion.domain.leases import TERM, TRANSITIONS, LeasePhase, Slice, end, renew
from fermion.errors import InvalidTransition


@pytest.mark.parametrize(("before", "to"), list(product(LeasePhase, LeasePhase)), ids=str)
def test_a_lease_ends_once_and_never_comes_back(before: LeasePhase, to: LeasePhase) -> None:
    lease = make_lease(phase=before)
    if before is LeasePhase.HELD and to is not LeasePhase.HELD:
        ended = end(lease, to, cause="stopped", now=at(3))
        assert (ended.phase, ended.ended_at, ended.end_cause) == (to, at(3), "stopped")
        assert not ended.is_live
    else:
        with pytest.raises(InvalidTransition, match=f"from {before} to {to}"):
            end(lease, to, cause="stopped", now=at(3))


def test_the_table_names_every_phase() -> None:
    assert set(TRANSITIONS) == set(LeasePhase)


def test_renewing_gives_a_full_term_to_a_live_lease_only() -> None:
    assert renew(make_lease(), at(7)).expires_at == at(7) + TERM
    ended = end(make_lease(), LeasePhase.RELEASED, cause="x", now=at(1))
    assert renew(ended, at(7)) == ended


@pytest.mark.parametrize(
    ("until", "held"),
    [
        pytest.param(10, 140.0, id="while it lives, up to now"),
        pytest.param(-60, 0.0, id="at its grant nothing yet"),
        pytest.param(-90, 0.0, id="before its grant nothing"),
    ],
)
def test_held_seconds_count_every_device(until: float, held: float) -> None:
    lease = make_lease(slices=(Slice("n0", ("a",)), Slice("n1", ("b",))), held_s=60)
    assert lease.gpus == 2
    assert lease.to_seconds(at(until)) == held


def test_held_seconds_stop_at_the_end() -> None:
    lease = end(make_lease(gpus=3, held_s=60), LeasePhase.EXPIRED, cause="x", now=at(0))
    assert lease.to_seconds(at(0) + seconds(1000)) == 180.0
