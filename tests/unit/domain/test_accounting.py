"""Held, used and wasted GPU-seconds, and the ledger against the leases."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import NOW, at, make_ended_lease, make_lease
from fermion.domain.accounting import (
    Account,
    Imbalance,
    Waste,
    account,
    allocated,
    allocated_by_kind,
    leaked_gpu_seconds,
    ledger_gaps,
    total,
)
from fermion.domain.leases import HolderKind, Lease, LeasePhase
from fermion.domain.records import LedgerEntry

# Two GPUs from 100 s ago.
HELD = make_lease(gpus=2, held_s=100)
ENDED = make_ended_lease(gpus=2, held_s=100)


@pytest.mark.parametrize(
    ("lease", "used", "wasted"),
    [
        pytest.param(HELD, 0, {Waste.STARTING: 200}, id="no process yet"),
        pytest.param(replace(HELD, exec_at=at(-90)), 180, {Waste.STARTING: 20}, id="running"),
        pytest.param(replace(HELD, exec_at=at(-100)), 200, {}, id="running since the grant"),
        pytest.param(
            replace(HELD, exec_at=at(-90), exit_at=at(-10)),
            160,
            {Waste.STARTING: 20, Waste.ENDING: 20},
            id="process gone, lease not ended",
        ),
        pytest.param(
            replace(ENDED, exec_at=at(-90), exit_at=at(-1)),
            178,
            {Waste.STARTING: 20, Waste.ENDING: 2},
            id="ended with its exit record",
        ),
        pytest.param(ENDED, 0, {Waste.NEVER_STARTED: 200}, id="never started"),
        pytest.param(
            replace(ENDED, phase=LeasePhase.EXPIRED, exec_at=at(-90), expires_at=at(40)),
            80,
            {Waste.STARTING: 20, Waste.LOST: 100},
            id="lost after its last renewal 50 s ago",
        ),
        pytest.param(
            replace(ENDED, exec_at=at(-120), exit_at=at(30)),
            200,
            {},
            id="clocks of another machine stay within the lease",
        ),
    ],
)
def test_held_time_is_split_into_used_and_wasted_by_cause(
    lease: Lease, used: float, wasted: dict[Waste, float]
) -> None:
    assert account(lease, NOW) == Account(held=200, used=used, wasted=wasted)


MOMENTS = st.one_of(st.none(), st.integers(-150, 50).map(at))


@given(exec_at=MOMENTS, exit_at=MOMENTS, ended=st.booleans(), expires_at=st.integers(-50, 150).map(at))
def test_held_is_always_used_and_wasted(exec_at: object, exit_at: object, ended: bool, expires_at: object) -> None:
    lease = replace(ENDED if ended else HELD, exec_at=exec_at, exit_at=exit_at, expires_at=expires_at)  # type: ignore[arg-type]
    found = account(lease, NOW)
    assert found.held == pytest.approx(lease.to_seconds(NOW))
    assert found.used + found.wasted_total == pytest.approx(found.held)
    assert found.used >= 0
    assert all(seconds > 0 for seconds in found.wasted.values())


def test_several_accounts_add_up_cause_by_cause() -> None:
    parts = [account(HELD, NOW), account(replace(HELD, exec_at=at(-90)), NOW)]
    assert total(parts) == Account(held=400, used=180, wasted={Waste.STARTING: 220})
    assert total([]) == Account()


def test_allocated_is_the_sum_over_live_leases_of_all_kinds_of_holder() -> None:
    leases = [
        make_lease("a", gpus=2),
        make_lease("b", gpus=3, first=2, holder_kind=HolderKind.SERVICE),
        make_ended_lease("c", gpus=4),
        make_lease("d", gpus=1, pool="other/pool"),
    ]
    assert allocated(leases, "local/declared") == 5
    parts = allocated_by_kind(leases, "local/declared")
    assert parts == {HolderKind.JOB: 2, HolderKind.SERVICE: 3, HolderKind.INSTANCE: 0}


def entry(lease: Lease, gpus: int, offset_s: float) -> LedgerEntry:
    return LedgerEntry(
        lease_id=lease.id, pool=lease.pool, holder=lease.holder_id, kind="grant", gpus=gpus, at=at(offset_s)
    )


@pytest.mark.parametrize(
    ("entries", "leases", "gaps"),
    [
        pytest.param([entry(HELD, 2, -100)], [HELD], [], id="held in both"),
        pytest.param([entry(HELD, 2, -100), entry(HELD, -2, -5)], [], [], id="ended in both"),
        pytest.param([entry(HELD, 2, -100)], [], [(Imbalance.LEAKED, 2, 200)], id="held only in the ledger"),
        pytest.param(
            [entry(HELD, 2, -100), entry(HELD, -2, -5)],
            [HELD],
            [(Imbalance.GHOST, 2, 10)],
            id="ended only in the ledger",
        ),
        pytest.param([], [HELD], [(Imbalance.GHOST, 2, 200)], id="not in the ledger at all"),
        pytest.param(
            [entry(HELD, -2, -5), entry(HELD, 2, -100)], [ENDED], [], id="the order of the entries does not matter"
        ),
        pytest.param(
            [entry(HELD, 2, -100), entry(HELD, -1, -50)], [ENDED], [(Imbalance.LEAKED, 1, 50)], id="given back in part"
        ),
    ],
)
def test_the_ledger_and_the_leases_tell_the_same_or_the_gap_is_named(
    entries: list[LedgerEntry], leases: list[Lease], gaps: list[tuple[Imbalance, int, float]]
) -> None:
    found = ledger_gaps(entries, leases, NOW)
    assert [(gap.kind, gap.gpus, gap.gpu_seconds) for gap in found] == gaps
    assert leaked_gpu_seconds(found) == sum(seconds for kind, _, seconds in gaps if kind is Imbalance.LEAKED)
    assert all((gap.lease_id, gap.pool) == (HELD.id, HELD.pool) for gap in found)
