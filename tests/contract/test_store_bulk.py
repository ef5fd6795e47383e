"""What every store keeps where many rows are read or written at once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builders import NOW, make_job, make_lease, make_spec
from fermion.domain.jobs import Phase
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.records import Event, StageSpan
from fermion.errors import Conflict
from fermion.ports import Store


def add(store: Store, *ids: str, **changes: object) -> None:
    with store.begin() as tx:
        for job_id in ids:
            assert tx.jobs.add(make_job(job_id, **changes))


def test_many_jobs_are_saved_at_once_and_only_those_that_nobody_changed(store: Store) -> None:
    add(store, "job-1", "job-2", "job-3")
    with store.begin() as tx:
        one, two = tx.jobs.get_all({"job-1", "job-2", "job-9"})
        stale = replace(two, version=two.version - 1)
        saved = tx.jobs.save_all([replace(one, phase=Phase.STARTING), stale])

    assert sorted(saved) == ["job-1"]
    with store.read() as tx:
        assert tx.jobs.get("job-1") == saved["job-1"]
        assert tx.jobs.get("job-2") == two


def test_jobs_that_were_not_read_in_the_transaction_can_be_saved_at_once_too(store: Store) -> None:
    add(store, "job-1", "job-2")
    with store.read() as tx:
        jobs = [tx.jobs.get("job-1"), tx.jobs.get("job-2")]
    with store.begin() as tx:
        assert tx.jobs.save(replace(jobs[1], phase=Phase.STARTING)) is not None
        saved = tx.jobs.save_all([replace(job, phase=Phase.FAILED) for job in jobs if job])
        again = tx.jobs.save_all([replace(saved["job-1"], phase=Phase.WAITING)])

    assert (sorted(saved), again["job-1"].version) == (["job-1"], jobs[0].version + 2)


def test_jobs_known_from_before_are_held_unless_somebody_changed_them(store: Store) -> None:
    add(store, "job-1", "job-2", "job-3")
    with store.begin() as tx:
        known = tx.jobs.get_all({"job-1", "job-2", "job-3"})
        assert tx.jobs.save(replace(known[1], phase=Phase.STARTING)) is not None
    with store.begin() as tx:
        held = tx.jobs.hold([known[2], known[1], known[0], replace(known[0], id="job-9")])
        assert held == [known[0], known[2]]
        assert not tx.jobs.hold([])
        saved = tx.jobs.save_all([replace(job, phase=Phase.SAVING, model_version=7) for job in held])

    with store.read() as tx:
        assert [tx.jobs.get(job.id) for job in held] == [saved[job.id] for job in held]
        assert saved["job-1"] == replace(known[0], phase=Phase.SAVING, model_version=7, version=known[0].version + 1)


def test_a_save_of_many_writes_every_field_that_changed_in_any_of_them(store: Store) -> None:
    add(store, "job-1", "job-2")
    with store.begin() as tx:
        one, two = tx.jobs.get_all({"job-1", "job-2"})
        tx.jobs.save_all([replace(one, preempted_for="job-2"), replace(two, excluded_nodes=("node-1",))])
    with store.begin() as tx:
        one, two = tx.jobs.get_all({"job-1", "job-2"})
        assert (one.preempted_for, one.excluded_nodes) == ("job-2", ())
        assert (two.preempted_for, two.excluded_nodes) == (None, ("node-1",))
        first = tx.jobs.save_all([replace(one, preempted_for=None)])["job-1"]
        tx.jobs.save_all([replace(first, attempt=2)])

    with store.read() as tx:
        assert tx.jobs.get("job-1") == replace(one, preempted_for=None, attempt=2, version=one.version + 2)


def test_many_jobs_are_found_by_their_pools_and_phases(store: Store) -> None:
    add(store, "job-1")
    add(store, "job-2", phase=Phase.STARTING, preempted_for="job-1")
    add(store, "job-3", spec=make_spec(pool="other/declared"), preempted_for="job-1")
    with store.begin() as tx:
        found = [
            [job.id for job in tx.jobs.get_all({"job-3", "job-2", "job-1"}, **only)]
            for only in ({}, {"pools": ["other/declared"]}, {"phases": [Phase.WAITING]}, {"pools": []})
        ]
        assert not tx.jobs.get_all(())
        assert tx.jobs.pools({Phase.WAITING}) == {"local/declared", "other/declared"}
        assert tx.jobs.pools({Phase.SAVING}) == frozenset()

    assert found == [["job-1", "job-2", "job-3"], ["job-3"], ["job-1", "job-3"], []]


def test_many_leases_are_added_with_their_ledger(store: Store) -> None:
    with store.begin() as tx:
        first, *rest = tx.leases.next_tokens(3)
        assert rest == [first + 1, first + 2]
        assert not tx.leases.next_tokens(0)
        assert tx.leases.next_token() > rest[-1]
        leases = [make_lease(f"lease-{token}", token=token, first=token) for token in (first, *rest)]
        tx.leases.add_all(leases)
        tx.leases.add_all([])

    with store.read() as tx:
        assert list(tx.leases.live()) == leases
        assert [entry.gpus for entry in tx.leases.ledger()] == [1, 1, 1]


def test_many_leases_are_refused_together_when_one_device_is_held(store: Store) -> None:
    with store.begin() as tx:
        tx.leases.add(make_lease("lease-1", first=4))
    with pytest.raises(Conflict, match="n0-4"), store.begin() as tx:
        tx.leases.add_all([make_lease("lease-2", token=2, first=0), make_lease("lease-3", token=3, first=4)])

    with store.read() as tx:
        assert [lease.id for lease in tx.leases.live()] == ["lease-1"]
        assert len(tx.leases.ledger()) == 1


def test_many_spans_are_put_at_once_and_replace_those_of_the_same_stage(store: Store) -> None:
    spans = [StageSpan(job_id="job-1", attempt=1, stage=stage, started_at=NOW) for stage in ("train", "wait_for_gpus")]
    with store.begin() as tx:
        tx.records.put_span(replace(spans[0], detail="before"))
        tx.records.put_spans(spans)
        tx.records.put_spans([])

    with store.read() as tx:
        assert {span.stage: span.detail for span in tx.records.spans("job-1")} == {"train": "", "wait_for_gpus": ""}


def test_what_events_tell_of_is_read_on_from_the_newest(store: Store) -> None:
    def tell(*targets: str, pool: str | None = None) -> None:
        with store.begin() as tx:
            for target in targets:
                tx.records.add_event(Event(actor="test", verb="job.moved", target=target, at=NOW, pool=pool))

    with store.read() as tx:
        start, touched = tx.records.touched(None, pools=["one"])
        assert tx.records.touched(start, pools=["one"]) == (start, frozenset())
    assert touched == frozenset()
    tell("job-1", "job-2", "job-1")
    tell("job-3", pool="one")
    tell("job-4", pool="two")
    with store.read() as tx:
        newest, touched = tx.records.touched(start, pools=["one", "three"])
        assert tx.records.touched(newest, pools=["two"]) == (newest, frozenset())
        assert tx.records.touched(None, pools=["two"]) == (newest, frozenset())
        assert tx.records.touched(start, pools=()) == (newest, {"job-1", "job-2"})
        assert [event.pool for _, event in tx.records.events(after=start)] == [None, None, None, "one", "two"]

    assert (newest - start, touched) == (5, {"job-1", "job-2", "job-3"})


def test_rows_written_at_once_hold_whatever_text_and_numbers_they_are_given(store: Store) -> None:
    odd = 'a\\u0000 "b" {c} \u00e9 \U0001f600 %(d)s :e'
    lease = replace(make_lease("lease-1"), owner=odd, team=odd)
    with store.begin() as tx:
        assert tx.jobs.add(make_job("job-1"))
        (job,) = tx.jobs.get_all({"job-1"})
        numbers = {"text": odd + "\0", "half": "\ud800", "list": [1, 0.1, None, True], "none": None}
        why = Explanation(Reason.WAITING_FOR_QUOTA, odd, numbers)
        tx.jobs.save_all([replace(job, explanation=why, excluded_nodes=(odd,))])
        tx.leases.add_all([lease, make_lease("lease-2", token=2, first=1)])
        for number in range(3):
            tx.records.add_event(Event(actor=odd, verb="job.moved", target=f"job-{number}", at=NOW, data=numbers))

    with store.read() as tx:
        saved = tx.jobs.get("job-1")
        first, *_ = tx.leases.live()
        events = [event for _, event in tx.records.events()]
    assert saved is not None
    assert (saved.explanation.message, saved.explanation.numbers, saved.excluded_nodes) == (odd, numbers, (odd,))
    assert first == lease
    assert [(event.target, event.actor, event.data) for event in events] == [
        (f"job-{number}", odd, numbers) for number in range(3)
    ]


def test_text_that_no_database_holds_is_made_holdable_in_rows_written_at_once(store: Store) -> None:
    with store.begin() as tx:
        tx.records.put_spans([StageSpan(job_id="job-1", attempt=1, stage="train", started_at=NOW, detail="a\0b\ud800")])

    with store.read() as tx:
        (span,) = tx.records.spans("job-1")
    assert span.detail == "a\ufffdb\ufffd"


def test_a_number_that_is_none_is_refused_in_rows_written_at_once(store: Store) -> None:
    with store.begin() as tx:
        assert tx.jobs.add(make_job("job-1"))
    why = Explanation(Reason.WAITING_FOR_QUOTA, "", {"gpus": float("nan")})
    with store.begin() as tx:
        (job,) = tx.jobs.get_all({"job-1"})
        with pytest.raises(ValueError, match=r"JSON|float"):
            tx.jobs.save_all([replace(job, explanation=why)])
