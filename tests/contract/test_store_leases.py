"""``ports.Leases`` on every store: the ledger is what makes "no GPU twice, none leaked" true."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

import pytest

from builders import NOW, at, make_lease
from fermion.domain.leases import HolderKind, Lease, LeasePhase, Slice, end, renew
from fermion.domain.records import LedgerEntry
from fermion.errors import Conflict
from fermion.ports import Store


def grant(store: Store, *leases: Lease) -> None:
    """Add them in one transaction."""
    with store.begin() as tx:
        for lease in leases:
            tx.leases.add(lease)


def release(lease: Lease, *, cause: str = "workload_gone") -> Lease:
    """The lease, ended now."""
    return end(lease, LeasePhase.RELEASED, cause=cause, now=NOW)


def ids(leases: object) -> list[str]:
    """Their ids."""
    return [lease.id for lease in leases]  # type: ignore[attr-defined]


def test_a_lease_comes_back_as_it_was(store: Store) -> None:
    lease = make_lease(
        holder_kind=HolderKind.SERVICE,
        attempt=3,
        token=2**40,
        slices=(Slice("n1", ("GPU-b", "GPU-a")), Slice("n0", ("GPU-c",))),
        priority=-2,
        preemptible=False,
        ends_by=at(3600),
        exec_at=at(-1),
        exit_at=at(-0.5),
    )
    grant(store, lease)
    with store.read() as tx:
        assert tx.leases.of_holder(HolderKind.SERVICE, lease.holder_id) == [lease]


def test_tokens_grow_within_and_across_transactions(store: Store) -> None:
    tokens = []
    for count in (1, 7, 2):
        with store.begin() as tx:
            tokens += [tx.leases.next_token() for _ in range(count)]
    assert tokens == sorted(set(tokens))
    assert tokens[0] > 0


def test_a_device_cannot_be_held_twice(store: Store) -> None:
    grant(store, make_lease("first", gpus=2))
    with (
        pytest.raises(Conflict, match=r"held are n0-1 on n0 by job job-of-first"),
        store.begin() as tx,
    ):
        tx.leases.add(make_lease("second", gpus=2, first=1))
    with store.read() as tx:
        assert ids(tx.leases.live()) == ["first"]


def test_a_refused_lease_leaves_nothing_and_the_transaction_goes_on(store: Store) -> None:
    with store.begin() as tx:
        tx.leases.add(make_lease("first"))
        with pytest.raises(Conflict):
            tx.leases.add(make_lease("second", gpus=3))
        tx.leases.add(make_lease("third", gpus=2, first=1))
        tx.leases.add(make_lease("second", gpus=1, first=3))
    with store.read() as tx:
        assert sorted(ids(tx.leases.live())) == ["first", "second", "third"]
        assert sorted(entry.gpus for entry in tx.leases.ledger()) == [1, 1, 2]


def test_one_lease_cannot_name_a_device_twice(store: Store) -> None:
    with pytest.raises(Conflict, match="twice"), store.begin() as tx:
        tx.leases.add(make_lease(slices=(Slice("n0", ("GPU-a",)), Slice("n0", ("GPU-a",)))))


def test_an_attempt_has_one_lease_ever(store: Store) -> None:
    lease = make_lease("first")
    grant(store, lease)
    with store.begin() as tx:
        tx.leases.end(release(lease))
    with pytest.raises(Conflict, match="attempt 1 of job job-of-first has a lease already"), store.begin() as tx:
        tx.leases.add(make_lease("second", first=4, holder_id="job-of-first"))
    grant(store, make_lease("third", first=4, holder_id="job-of-first", attempt=2))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"pool": "other/declared"}, id="another pool"),
        pytest.param({"node": "n1"}, id="another node"),
        pytest.param({"first": 1}, id="another slot"),
    ],
)
def test_slots_of_one_name_elsewhere_are_other_devices(store: Store, other: dict[str, object]) -> None:
    grant(store, make_lease("first"), make_lease("second", **other))
    with store.read() as tx:
        assert len(tx.leases.live()) == 2


def test_an_ended_lease_cannot_be_added(store: Store) -> None:
    with pytest.raises(ValueError, match="only a held lease"), store.begin() as tx:
        tx.leases.add(release(make_lease()))


def test_a_device_is_free_again_after_the_end(store: Store) -> None:
    lease = make_lease("first")
    grant(store, lease)
    with store.begin() as tx:
        assert tx.leases.end(release(lease)) is True
        tx.leases.add(make_lease("second"))
    with store.read() as tx:
        assert ids(tx.leases.live()) == ["second"]
        assert tx.leases.of_holder(HolderKind.JOB, "job-of-first") == [release(lease)]


def test_an_end_is_written_once(store: Store) -> None:
    lease = make_lease()
    grant(store, lease)
    with store.begin() as tx:
        tx.leases.end(release(lease, cause="workload_gone"))
    with store.begin() as tx:
        assert tx.leases.end(end(lease, LeasePhase.EXPIRED, cause="expired", now=at(9))) is False
    with store.read() as tx:
        assert [stored.end_cause for stored in tx.leases.of_holder(HolderKind.JOB, lease.holder_id)] == [
            "workload_gone"
        ]
        assert sum(entry.gpus for entry in tx.leases.ledger()) == 0


def test_an_unknown_lease_cannot_be_ended_or_updated(store: Store) -> None:
    with store.begin() as tx:
        assert tx.leases.end(release(make_lease())) is False
        assert tx.leases.update(make_lease()) is False
        assert tx.leases.ledger() == []


def test_a_live_lease_cannot_be_written_as_its_end(store: Store) -> None:
    grant(store, make_lease())
    with pytest.raises(ValueError, match="has not ended"), store.begin() as tx:
        tx.leases.end(make_lease())


def test_an_update_writes_the_term_and_what_was_seen(store: Store) -> None:
    lease = make_lease()
    grant(store, lease)
    renewed = replace(renew(lease, NOW), exec_at=at(-3), exit_at=at(-1))
    with store.begin() as tx:
        assert tx.leases.update(renewed) is True
    with store.read() as tx:
        assert tx.leases.live() == [renewed]


def test_an_ended_lease_is_not_renewed(store: Store) -> None:
    lease = make_lease()
    grant(store, lease)
    with store.begin() as tx:
        tx.leases.end(release(lease))
        assert tx.leases.update(renew(lease, NOW)) is False
    with store.read() as tx:
        assert tx.leases.of_holder(HolderKind.JOB, lease.holder_id) == [release(lease)]


def test_leases_of_a_holder_are_oldest_first(store: Store) -> None:
    second = make_lease("b", holder_id="j", attempt=2, token=9, first=1)
    first = make_lease("a", holder_id="j", attempt=1, token=8)
    grant(
        store,
        second,
        first,
        make_lease("x", first=5),
        make_lease("s", holder_kind=HolderKind.SERVICE, holder_id="j", first=6),
    )
    with store.begin() as tx:
        tx.leases.end(release(first))
    with store.read() as tx:
        assert ids(tx.leases.of_holder(HolderKind.JOB, "j")) == ["a", "b"]
        assert ids(tx.leases.of_holder(HolderKind.JOB, "j", live_only=True)) == ["b"]


def test_live_leases_of_one_pool(store: Store) -> None:
    grant(store, make_lease("a", token=2), make_lease("b", pool="local/other", token=1))
    with store.read() as tx:
        assert ids(tx.leases.live()) == ["b", "a"]
        assert ids(tx.leases.live(pool="local/other")) == ["b"]


def test_leases_that_overlap_a_window_are_live_or_ended_within_it(store: Store) -> None:
    for number, (name, ended_s) in enumerate([("before", -100.000001), ("at", -100), ("within", -50), ("live", None)]):
        lease = make_lease(name, held_s=200, first=number, token=number)
        grant(store, lease)
        if ended_s is not None:
            with store.begin() as tx:
                tx.leases.end(end(lease, LeasePhase.RELEASED, cause="x", now=at(ended_s)))
    with store.read() as tx:
        assert ids(tx.leases.overlapping(at(-100))) == ["at", "within", "live"]
        assert tx.leases.overlapping(at(-100), pools=["local/other"]) == []
        assert ids(tx.leases.overlapping(at(-100), pools=["local/other", "local/declared"])) == ["at", "within", "live"]


def test_the_ledger_has_an_entry_for_each_grant_and_each_end(store: Store) -> None:
    lease = make_lease(gpus=3, held_s=60)
    grant(store, lease)
    with store.begin() as tx:
        tx.leases.end(release(lease, cause="max_runtime"))
    shared = {"lease_id": "lease-1", "pool": "local/declared", "holder": "job/job-of-lease-1"}
    with store.read() as tx:
        assert tx.leases.ledger() == [
            LedgerEntry(**shared, kind="granted", gpus=3, at=at(-60)),
            LedgerEntry(**shared, kind="released", gpus=-3, at=NOW, cause="max_runtime"),
        ]


def test_the_ledger_is_cut_by_time_and_count(store: Store) -> None:
    grant(store, *(make_lease(f"l{number}", first=number, granted_at=at(number)) for number in range(5)))
    with store.read() as tx:
        assert [entry.lease_id for entry in tx.leases.ledger(since=at(2))] == ["l2", "l3", "l4"]
        assert [entry.lease_id for entry in tx.leases.ledger(since=at(1), limit=2)] == ["l1", "l2"]


def test_the_ledger_shows_a_transaction_its_own_entries(store: Store) -> None:
    with store.begin() as tx:
        tx.leases.add(make_lease())
        assert [entry.gpus for entry in tx.leases.ledger()] == [1]


def test_a_rolled_back_grant_leaves_the_device_free_and_the_ledger_empty(store: Store) -> None:
    with suppress(RuntimeError), store.begin() as tx:
        tx.leases.add(make_lease())
        raise RuntimeError("the caller gave up")
    grant(store, make_lease("second"))
    with store.read() as tx:
        assert [entry.lease_id for entry in tx.leases.ledger()] == ["second"]


def test_a_lease_of_ten_thousand_devices_is_one_grant(store: Store) -> None:
    slices = tuple(Slice(f"n{node}", tuple(f"GPU-{node}-{gpu}" for gpu in range(8))) for node in range(1250))
    grant(store, make_lease(slices=slices, expires_at=NOW + timedelta(days=1)))
    with store.read() as tx:
        assert tx.leases.live()[0].gpus == 10_000
