"""``ports.Jobs`` on every store."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import date, timedelta, timezone

import pytest

from builders import at, make_job, make_spec
from fermion.domain.jobs import Job, Phase, Pins, Progress
from fermion.domain.reasons import Explanation, Reason
from fermion.errors import Conflict, NotFound
from fermion.ports import Store

DAY = date(2026, 3, 2)


def make_full_job() -> Job:
    """A job in which no field has its default."""
    spec = make_spec(
        ref="v1",
        datasets=("digits", "more"),
        hyperparameters={"z": 1, "a": 0.1, "name": "naïve 模型", "flag": True, "tiny": 1e-300, "big": 1e100},
        nodes=2,
        gpus_per_node=4,
        memory_mib=2048,
        priority=7,
        preemptible=False,
        max_runtime=timedelta(hours=1, microseconds=1),
        queue_timeout=timedelta(minutes=5),
        checkpoint="job-20260301-001",
        team="vision",
    )
    return make_job(
        spec=spec,
        phase=Phase.STOPPING,
        explanation=Explanation(Reason.STOP_REQUESTED, "ann asked", {"gpus": 8, "by": ["ann"], "nested": {"a": None}}),
        run=("train_model", "manual__1"),
        pins=Pins(image_digest="sha256:ab", commit="c" * 40, datasets={"digits": "sha256:cd"}),
        attempt=2,
        progress=Progress(percent=12.5, epoch=1, epochs=8, at=at(-1.000001), usual_step=timedelta(seconds=0.25)),
        started_at=at(-20),
        ended_at=at(0),
        stop_requested_at=at(-5),
        stop_requested_by="ann",
        preempted_for="job-20260302-007",
        excluded_nodes=("n3",),
        model_version=4,
        restart_of="job-20260228-009",
    )


def submit(store: Store, *jobs: Job) -> None:
    """Add them in one transaction."""
    with store.begin() as tx:
        for job in jobs:
            tx.jobs.add(job)


def found(store: Store, **filters: object) -> list[str]:
    """The ids that ``find`` answers."""
    with store.read() as tx:
        return [job.id for job in tx.jobs.find(**filters)]  # type: ignore[arg-type]


def test_the_full_job_has_no_field_at_its_default() -> None:
    job, plain = make_full_job(), make_job(spec=make_spec())
    for value, default in [(job, plain), (job.spec, plain.spec)]:
        same = {f.name for f in fields(value) if getattr(value, f.name) == getattr(default, f.name)}
        given = {"id", "submitted_at", "changed_at", "queued_at", "version"} | set(fields_of_a_spec_that_are_given())
        assert same <= given


def fields_of_a_spec_that_are_given() -> list[str]:
    return ["name", "pool", "image", "repository", "entrypoint", "output_model", "owner"]


def test_a_job_comes_back_as_it_was(store: Store) -> None:
    job = make_full_job()
    submit(store, job)
    with store.read() as tx:
        assert tx.jobs.get(job.id) == job


def test_hyperparameters_keep_their_order(store: Store) -> None:
    job = make_full_job()
    submit(store, job)
    with store.read() as tx:
        stored = tx.jobs.get(job.id)
    assert stored is not None
    assert list(stored.spec.hyperparameters) == list(job.spec.hyperparameters)


def test_a_time_of_another_zone_is_the_same_instant(store: Store) -> None:
    local = at(0).astimezone(timezone(timedelta(hours=8)))
    submit(store, make_job(submitted_at=local))
    with store.read() as tx:
        stored = tx.jobs.get("job-20260302-001")
    assert stored is not None
    assert stored.submitted_at == local


def test_an_unknown_job_is_none(store: Store) -> None:
    with store.read() as tx:
        assert tx.jobs.get("job-20260302-404") is None
        assert tx.jobs.by_run("train_model", "nothing") is None


def test_a_job_is_found_by_its_run(store: Store) -> None:
    submit(store, make_job(run=("train_model", "r1")))
    with store.read() as tx:
        stored = tx.jobs.by_run("train_model", "r1")
        assert stored is not None
        assert stored.id == "job-20260302-001"
        assert tx.jobs.by_run("other_dag", "r1") is None


def test_ids_count_from_one_within_their_day(store: Store) -> None:
    with store.begin() as tx:
        ids = [tx.jobs.new_id(DAY), tx.jobs.new_id(DAY), tx.jobs.new_id(date(2026, 3, 3))]
    assert ids == ["job-20260302-001", "job-20260302-002", "job-20260303-001"]


def test_the_thousandth_id_of_a_day_has_four_digits(store: Store) -> None:
    with store.begin() as tx:
        ids = [tx.jobs.new_id(DAY) for _ in range(1000)]
    assert ids[998:] == ["job-20260302-999", "job-20260302-1000"]


def test_adding_a_second_job_for_a_run_writes_nothing(store: Store) -> None:
    submit(store, make_job(run=("train_model", "r1")))
    with store.begin() as tx:
        assert tx.jobs.add(make_job("job-20260302-002", run=("train_model", "r1"))) is False
    with store.read() as tx:
        assert tx.jobs.get("job-20260302-002") is None


def test_a_run_whose_job_has_ended_may_carry_another_and_answers_the_newest(store: Store) -> None:
    run = ("train_model", "r1")
    submit(store, make_job("job-20260302-001", run=run, phase=Phase.FAILED))
    with store.begin() as tx:
        assert tx.jobs.add(make_job("job-20260302-002", run=run, restart_of="job-20260302-001")) is True
        assert tx.jobs.add(make_job("job-20260302-003", run=run)) is False
    with store.read() as tx:
        newest = tx.jobs.by_run(*run)
        assert newest is not None
        assert newest.id == "job-20260302-002"
        assert tx.jobs.get("job-20260302-003") is None


def test_an_ended_job_is_still_saved_after_its_run_carries_another(store: Store) -> None:
    run = ("train_model", "r1")
    old = make_job("job-20260302-001", run=run, phase=Phase.COMPLETED)
    submit(store, old, make_job("job-20260302-002", run=run))
    with store.begin() as tx:
        assert tx.jobs.save(replace(old, model_version=3)) is not None
    with store.read() as tx:
        newest = tx.jobs.by_run(*run)
        assert newest is not None
        assert newest.id == "job-20260302-002"


def test_an_ended_job_cannot_be_opened_again_beside_another_of_its_run(store: Store) -> None:
    run = ("train_model", "r1")
    old = make_job("job-20260302-001", run=run, phase=Phase.FAILED)
    submit(store, old, make_job("job-20260302-002", run=run))
    with pytest.raises(Conflict, match="carries another job"), store.begin() as tx:
        tx.jobs.save(replace(old, phase=Phase.WAITING))


def test_jobs_without_a_run_do_not_meet(store: Store) -> None:
    with store.begin() as tx:
        assert tx.jobs.add(make_job("job-20260302-001")) is True
        assert tx.jobs.add(make_job("job-20260302-002")) is True


def test_an_id_cannot_be_added_twice(store: Store) -> None:
    submit(store, make_job())
    with pytest.raises(Conflict, match="job-20260302-001 exists already"), store.begin() as tx:
        tx.jobs.add(make_job(run=("train_model", "r2")))


def test_a_save_moves_the_version_on(store: Store) -> None:
    submit(store, make_job())
    full = replace(make_full_job(), version=0)
    with store.begin() as tx:
        saved = tx.jobs.save(full)
    assert saved == replace(full, version=1)
    with store.read() as tx:
        assert tx.jobs.get(full.id) == saved


def test_a_save_with_an_old_version_is_a_lost_race_and_writes_nothing(store: Store) -> None:
    submit(store, make_job())
    with store.begin() as tx:
        tx.jobs.save(make_job(attempt=2))
    with store.begin() as tx:
        assert tx.jobs.save(make_job(attempt=9)) is None
    with store.read() as tx:
        stored = tx.jobs.get("job-20260302-001")
    assert stored is not None
    assert (stored.attempt, stored.version) == (2, 1)


def test_saving_a_job_that_was_never_added_is_a_lost_race(store: Store) -> None:
    with store.begin() as tx:
        assert tx.jobs.save(make_job()) is None


def test_a_run_that_another_job_has_cannot_be_saved(store: Store) -> None:
    submit(store, make_job(run=("train_model", "r1")), make_job("job-20260302-002"))
    with pytest.raises(Conflict, match="carries another job"), store.begin() as tx:
        tx.jobs.save(make_job("job-20260302-002", run=("train_model", "r1")))


def test_jobs_are_found_newest_submission_first(store: Store) -> None:
    submit(
        store,
        make_job("job-20260302-002", submitted_at=at(-10)),
        make_job("job-20260302-001", submitted_at=at(-60)),
        make_job("job-20260302-003", submitted_at=at(-5)),
    )
    assert found(store) == ["job-20260302-003", "job-20260302-002", "job-20260302-001"]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        pytest.param({"phases": {Phase.WAITING}}, ["b"], id="one phase"),
        pytest.param({"phases": {Phase.WAITING, Phase.RUNNING}}, ["b", "a"], id="two phases"),
        pytest.param({"phases": set()}, [], id="no phase matches nothing"),
        pytest.param({"pool": "local/other"}, ["c"], id="pool"),
        pytest.param({"owner": "bob"}, ["c", "b"], id="owner"),
        pytest.param({"owner": "bob", "pool": "local/other"}, ["c"], id="all filters together"),
        pytest.param({"changed_since": at(-20)}, ["c", "b"], id="changed at that very time is in"),
        pytest.param({"limit": 2}, ["c", "b"], id="limit"),
        pytest.param({"limit": 0}, [], id="limit zero"),
        pytest.param({"before": "b"}, ["a"], id="before"),
        pytest.param({"before": "c", "limit": 1}, ["b"], id="the next page"),
        pytest.param({"before": "a"}, [], id="after the last page"),
    ],
)
def test_filters(store: Store, filters: dict[str, object], expected: list[str]) -> None:
    submit(
        store,
        make_job("a", submitted_at=at(-50), changed_at=at(-21), phase=Phase.RUNNING),
        make_job("b", submitted_at=at(-40), changed_at=at(-20), spec=make_spec(owner="bob")),
        make_job(
            "c",
            submitted_at=at(-30),
            changed_at=at(-10),
            phase=Phase.FAILED,
            spec=make_spec(owner="bob", pool="local/other"),
        ),
    )
    assert found(store, **filters) == expected


def test_pages_lose_and_repeat_nothing_when_many_were_submitted_at_one_instant(store: Store) -> None:
    submit(store, *(make_job(f"job-20260302-{number}") for number in range(995, 1005)))
    pages, before = [], None
    while page := found(store, before=before, limit=3):
        pages += page
        before = page[-1]
    assert pages == [f"job-20260302-{number}" for number in range(1004, 994, -1)]


def test_a_page_after_a_job_that_does_not_exist_is_refused(store: Store) -> None:
    with pytest.raises(NotFound, match="'nothing' does not exist"), store.read() as tx:
        tx.jobs.find(before="nothing")


@pytest.mark.parametrize("message", ["nul \0 inside", "half \ud800 surrogate", "模型 🚀", "a" * 1_000_000])
def test_any_text_can_be_a_message(store: Store, message: str) -> None:
    submit(store, make_job(explanation=Explanation(Reason.USER_CODE, message, {"line": message})))
    with store.read() as tx:
        stored = tx.jobs.get("job-20260302-001")
    assert stored is not None
    assert stored.explanation.message == message.replace("\0", "\ufffd").replace("\ud800", "\ufffd")
    assert stored.explanation.numbers["line"] == message


def test_numbers_that_json_does_not_have_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="JSON"), store.begin() as tx:
        tx.jobs.add(make_job(explanation=Explanation(Reason.STAGING, "x", {"ratio": float("nan")})))
    with store.read() as tx:
        assert tx.jobs.find() == []
