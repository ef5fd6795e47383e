"""``ports.Store`` on every store: what is atomic, what a reader sees, who waits for whom, who is woken."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from builders import NOW, make_job
from fermion.errors import OutsideBroken
from fermion.ports import Store

SOON = timedelta(seconds=10)
"""Far beyond what any of these takes; a wait that ends by it fails its test."""

AT_ONCE = timedelta(0)


def ids(store: Store) -> list[str]:
    """Of all jobs."""
    with store.read() as tx:
        return [job.id for job in tx.jobs.find()]


def test_what_a_transaction_wrote_is_there_after_it(store: Store) -> None:
    with store.begin() as tx:
        tx.jobs.add(make_job())
        assert tx.jobs.get("job-20260302-001") is not None
    assert ids(store) == ["job-20260302-001"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_an_exception_that_passes_through_takes_everything_back(store: Store, error: type[BaseException]) -> None:
    with suppress(error), store.begin() as tx:
        tx.jobs.add(make_job())
        tx.jobs.new_id(make_job().submitted_at.date())
        raise error
    assert ids(store) == []
    with store.begin() as tx:
        assert tx.jobs.new_id(make_job().submitted_at.date()) == "job-20260302-001"


def test_a_reader_keeps_the_moment_of_its_first_look(store: Store) -> None:
    with store.read() as before:
        assert before.jobs.find() == []
        with store.begin() as tx:
            tx.jobs.add(make_job())
        assert before.jobs.find() == []
    assert ids(store) == ["job-20260302-001"]


def test_nobody_sees_what_is_not_committed(store: Store) -> None:
    with store.begin() as tx:
        tx.jobs.add(make_job())
        assert ids(store) == []
    assert ids(store) == ["job-20260302-001"]


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda tx: tx.jobs.add(make_job()), id="a job"),
        pytest.param(lambda tx: tx.leases.next_token(), id="a token"),
        pytest.param(lambda tx: tx.records.put_memory("key", {}, now=NOW), id="a memory"),
        pytest.param(lambda tx: tx.records.add_points([]) or tx.jobs.save(make_job()), id="a save"),
    ],
)
def test_a_reader_cannot_write(store: Store, write: Callable[[Any], object]) -> None:
    with pytest.raises(OutsideBroken, match="read"), store.read() as tx:
        write(tx)
    assert ids(store) == []


def test_two_transactions_of_one_name_never_overlap(store: Store) -> None:
    inside, most = 0, 0
    guard = threading.Lock()

    def enter(number: int) -> None:
        nonlocal inside, most
        with store.begin(exclusive="admission") as tx:
            with guard:
                inside += 1
                most = max(most, inside)
            tx.jobs.add(make_job(f"job-{number}"))
            with guard:
                inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(enter, range(40)))
    assert most == 1
    assert len(ids(store)) == 40


def test_an_exclusive_transaction_sees_what_the_one_before_it_committed(store: Store) -> None:
    """The lock comes before the view: 8 threads that each count and add one lose no count."""

    def add_one(_: int) -> None:
        with store.begin(exclusive="count") as tx:
            number = len(tx.jobs.find())
            tx.jobs.add(make_job(f"job-{number}"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add_one, range(40)))
    assert sorted(ids(store)) == sorted(f"job-{number}" for number in range(40))


def test_a_lock_is_free_again_after_a_failure(store: Store) -> None:
    with suppress(RuntimeError), store.begin(exclusive="admission"):
        raise RuntimeError
    with store.begin(exclusive="admission") as tx:
        tx.jobs.add(make_job())
    assert ids(store) == ["job-20260302-001"]


# --- waking ---------------------------------------------------------------------------------------------------------


def test_a_waiter_that_nobody_wakes_gets_none(store: Store) -> None:
    assert store.wait(["gpus"], AT_ONCE) is None
    assert store.wait(["gpus"], timedelta(milliseconds=30)) is None
    assert store.wait([], AT_ONCE) is None


def test_what_rings_between_two_waits_is_heard_once(store: Store) -> None:
    store.wait(["gpus", "jobs"], AT_ONCE)
    store.notify("gpus", "freed 2")
    assert store.wait(["gpus", "jobs"], SOON) == "gpus"
    assert store.wait(["gpus", "jobs"], AT_ONCE) is None


def test_only_the_topic_that_rang_wakes(store: Store) -> None:
    store.wait(["gpus", "jobs"], AT_ONCE)
    store.notify("jobs")
    assert store.wait(["gpus"], timedelta(milliseconds=150)) is None
    assert store.wait(["jobs"], SOON) == "jobs"


def test_everybody_who_waits_is_woken(store: Store) -> None:
    store.wait(["gpus", "jobs"], AT_ONCE)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(store.wait, topics, SOON) for topics in (["gpus"], ["gpus"], ["gpus", "jobs"], ["jobs"])]
        store.notify("gpus")
        assert [task.result(timeout=20) for task in waiting[:3]] == ["gpus"] * 3
        store.notify("jobs")
        assert waiting[3].result(timeout=20) == "jobs"


@pytest.mark.parametrize("payload", ["", "with\nlines", "x" * 100_000, "模型" * 5_000, "nul \0 and \ud800"])
def test_any_payload_can_be_sent(store: Store, payload: str) -> None:
    store.wait(["模型:1"], AT_ONCE)
    store.notify("模型:1", payload)
    assert store.wait(["模型:1"], SOON) == "模型:1"


def test_a_store_that_is_well_says_what_it_is(store: Store) -> None:
    assert store.check()
