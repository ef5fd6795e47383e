"""``ports.Records`` on every store."""

from __future__ import annotations

import math
from typing import Any

import pytest

from builders import NOW, at
from fermion.domain.records import Decision, Event, MetricPoint, StageSpan, SyncRecord
from fermion.ports import Store


def make_decision(decision_id: str = "d1", **changes: Any) -> Decision:
    """An admitted job."""
    values = {
        "id": decision_id,
        "kind": "admit",
        "subject": "job-1",
        "verdict": "grant",
        "reason": "granted",
        "message": "has 2 of 8",
        "rule_version": "1",
        "decided_at": NOW,
        "inputs": {"free": [1, 2.5, None], "pool": {"id": "local/declared"}},
        "numbers": {"gpus": 2},
    }
    return Decision(**{**values, **changes})


def make_event(verb: str = "job.granted", **changes: Any) -> Event:
    """Something that happened to a job."""
    return Event(**{"actor": "ann", "verb": verb, "target": "job-1", "at": NOW, **changes})


def make_point(number: int = 0, **changes: Any) -> MetricPoint:
    """A loss."""
    values = {"job_id": "job-1", "attempt": 1, "kind": "training", "name": "loss", "value": 0.5, "at": at(number)}
    return MetricPoint(**{**values, "number": number, **changes})


# --- decisions ------------------------------------------------------------------------------------------------------


def test_a_decision_comes_back_as_it_was(store: Store) -> None:
    with store.begin() as tx:
        tx.records.add_decision(make_decision())
        assert tx.records.decisions() == [make_decision()]
    with store.read() as tx:
        assert tx.records.decisions() == [make_decision()]


def test_a_decision_written_again_stays_as_it_was(store: Store) -> None:
    with store.begin() as tx:
        tx.records.add_decision(make_decision())
    with store.begin() as tx:
        tx.records.add_decision(make_decision(verdict="refuse"))
    with store.read() as tx:
        assert tx.records.decisions() == [make_decision()]


def test_decisions_are_newest_first_and_filtered(store: Store) -> None:
    with store.begin() as tx:
        tx.records.add_decision(make_decision("a", decided_at=at(-5)))
        tx.records.add_decision(make_decision("b", decided_at=at(-1), subject="job-2"))
        tx.records.add_decision(make_decision("c", decided_at=at(-9), kind="preempt"))
        tx.records.add_decision(make_decision("d", decided_at=at(-5)))
    with store.read() as tx:
        assert [d.id for d in tx.records.decisions()] == ["b", "d", "a", "c"]
        assert [d.id for d in tx.records.decisions(subject="job-1")] == ["d", "a", "c"]
        assert [d.id for d in tx.records.decisions(subject="job-1", kind="admit")] == ["d", "a"]
        assert [d.id for d in tx.records.decisions(limit=1)] == ["b"]


# --- events ---------------------------------------------------------------------------------------------------------


def test_an_event_comes_back_as_it_was_with_its_number(store: Store) -> None:
    event = make_event(message="因为", data={"gpus": 2, "path": ["a"]})
    with store.begin() as tx:
        tx.records.add_event(event)
    with store.read() as tx:
        [(number, stored)] = tx.records.events()
    assert number > 0
    assert stored == event


def test_a_reader_of_events_goes_on_after_its_last_number(store: Store) -> None:
    with store.begin() as tx:
        for number in range(5):
            tx.records.add_event(make_event(f"job.step{number}", target=f"job-{number % 2}"))
    with store.read() as tx:
        first = tx.records.events(limit=2)
        rest = tx.records.events(after=first[-1][0])
        odd = tx.records.events(target="job-1")
    assert [event.verb for _, event in first] == ["job.step0", "job.step1"]
    assert [event.verb for _, event in rest] == ["job.step2", "job.step3", "job.step4"]
    assert [event.verb for _, event in odd] == ["job.step1", "job.step3"]


def test_the_number_of_a_forgotten_event_is_not_given_again(store: Store) -> None:
    with store.begin() as tx:
        tx.records.add_event(make_event(at=at(-9)))
    with store.read() as tx:
        last = tx.records.events()[-1][0]
    with store.begin() as tx:
        assert tx.records.forget(before=NOW, kinds={"events"}) == 1
    with store.begin() as tx:
        tx.records.add_event(make_event("job.ended"))
    with store.read() as tx:
        assert [event.verb for _, event in tx.records.events(after=last)] == ["job.ended"]


# --- points ---------------------------------------------------------------------------------------------------------


def test_points_come_back_as_they_were_in_order_of_time(store: Store) -> None:
    points = [
        make_point(1, value=1e-300, epoch=2, step=2**40),
        make_point(0, value=math.inf),
        make_point(2, kind="system", name="cpu", value=0),
    ]
    with store.begin() as tx:
        assert tx.records.add_points(points) == 3
        assert tx.records.add_points([]) == 0
    with store.read() as tx:
        assert tx.records.points("job-1") == [points[1], points[0], points[2]]
        assert tx.records.points("job-1", kind="system") == [points[2]]
        assert tx.records.points("job-1", kind="training", name="cpu") == []
        assert tx.records.points("job-2") == []


def test_a_diverged_metric_is_still_a_point(store: Store) -> None:
    with store.begin() as tx:
        tx.records.add_points([make_point(value=math.nan)])
    with store.read() as tx:
        [point] = tx.records.points("job-1")
    assert math.isnan(point.value)


def test_a_line_read_twice_is_written_once(store: Store) -> None:
    lines = [make_point(number) for number in range(3)]
    with store.begin() as tx:
        assert tx.records.add_points(lines[:2]) == 2
    with store.begin() as tx:
        assert tx.records.add_points([*lines, lines[2]]) == 1
        assert (
            tx.records.add_points([make_point(attempt=2), make_point(name="accuracy"), make_point(kind="system")]) == 3
        )
    with store.read() as tx:
        assert len(tx.records.points("job-1")) == 6


def test_ten_thousand_points_are_added_at_once(store: Store) -> None:
    points = [make_point(number) for number in range(10_000)]
    with store.begin() as tx:
        assert tx.records.add_points(points) == 10_000
    with store.read() as tx:
        assert tx.records.points("job-1") == points


# --- spans and syncs ------------------------------------------------------------------------------------------------


def test_a_span_is_replaced_when_its_stage_ends(store: Store) -> None:
    begun = StageSpan(job_id="job-1", attempt=1, stage="train", started_at=at(-5))
    ended = StageSpan(
        job_id="job-1", attempt=1, stage="train", started_at=at(-5), ended_at=NOW, outcome="success", detail="ok"
    )
    earlier = StageSpan(job_id="job-1", attempt=1, stage="check_quota", started_at=at(-9))
    again = StageSpan(job_id="job-1", attempt=2, stage="train", started_at=at(3))
    with store.begin() as tx:
        for span in (begun, again, ended, earlier):
            tx.records.put_span(span)
    with store.read() as tx:
        assert tx.records.spans("job-1") == [earlier, ended, again]
        assert tx.records.spans("job-2") == []


def test_the_newest_sync_of_each_source_is_kept(store: Store) -> None:
    newer = SyncRecord(source="local", started_at=at(-2), ended_at=at(-1), items=3, error="unreachable")
    older = SyncRecord(source="local", started_at=at(-9), ended_at=at(-8), items=4)
    other = SyncRecord(source="far", started_at=at(-9), ended_at=at(-8), items=0)
    with store.begin() as tx:
        for sync in (older, newer, other):
            tx.records.put_sync(sync)
        tx.records.put_sync(older)  # one that was slow to tell
    with store.read() as tx:
        assert tx.records.syncs() == [other, newer]


def test_a_memory_is_replaced_whole_under_its_key(store: Store) -> None:
    with store.begin() as tx:
        tx.records.put_memory("admission", {"head": "job-1", "since": [1, None]}, now=at(-9))
        tx.records.put_memory("other", {}, now=at(-9))
        tx.records.put_memory("admission", {"head": "job-2"}, now=NOW)
    with store.read() as tx:
        assert tx.records.memory("admission") == {"head": "job-2"}
        assert tx.records.memory("other") == {}
        assert tx.records.memory("nothing") is None


# --- retention ------------------------------------------------------------------------------------------------------


def fill(store: Store) -> None:
    """One old and one new of each kind."""
    with store.begin() as tx:
        for name, age_s in (("old", -10), ("new", 0)):
            tx.records.add_decision(make_decision(name, decided_at=at(age_s)))
            tx.records.add_event(make_event(name, at=at(age_s)))
            tx.records.add_points([make_point(name=name, at=at(age_s))])


@pytest.mark.parametrize(
    ("kinds", "left"),
    [
        pytest.param({"events"}, (2, 1, 2), id="events only"),
        pytest.param({"decisions", "points"}, (1, 2, 1), id="two kinds"),
        pytest.param(set(), (2, 2, 2), id="nothing named"),
    ],
)
def test_only_what_is_older_and_named_is_forgotten(store: Store, kinds: set[str], left: tuple[int, int, int]) -> None:
    fill(store)
    with store.begin() as tx:
        assert tx.records.forget(before=NOW, kinds=kinds) == len(kinds)
    with store.read() as tx:
        counts = (len(tx.records.decisions()), len(tx.records.events()), len(tx.records.points("job-1")))
    assert counts == left


def test_what_is_exactly_as_old_stays(store: Store) -> None:
    fill(store)
    with store.begin() as tx:
        assert tx.records.forget(before=at(-10), kinds={"decisions", "events", "points"}) == 0


def test_an_unknown_kind_cannot_be_forgotten(store: Store) -> None:
    with pytest.raises(ValueError, match="cannot forget ledger"), store.begin() as tx:
        tx.records.forget(before=NOW, kinds={"ledger"})
