"""``ports.Rollouts`` and ``ports.Traffic`` on every store."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import MISSING, fields, replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from store_race import race

from builders import at, make_counters, make_look, make_plan, make_rollout, make_service
from fermion.adapters.sql import open_store
from fermion.adapters.sql.store import SqlStore
from fermion.domain.rollout.evidence import Evidence
from fermion.domain.rollout.looks import Carried, CheckLook, CheckReading, Look, Measured, MetricLook, Outcome, Reading
from fermion.domain.rollout.plan import (
    Kind,
    MetricRule,
    NoData,
    OnApprovalTimeout,
    OnUndecided,
    OutputCheck,
    Plan,
    SplitRule,
    Step,
    Worse,
)
from fermion.domain.rollout.reasons import Explanation, Reason
from fermion.domain.rollout.rollouts import FINAL, Approval, Phase, Rollout, Wish, WishKind
from fermion.domain.serving.output_check import OutputSeen
from fermion.domain.serving.tensors import Tensor, TensorSpec
from fermion.domain.serving.traffic import Counters
from fermion.errors import Conflict, NotFound
from fermion.ports import Store

LIMIT_S = 60
SERVICE = "inf-digits-001"
OTHER = "inf-other-001"
BACKEND = "inf-digits-001-r1"
LONG = "因为 naïve 🚀 nul \0 half \ud800 " * 100


SAMPLE = Tensor(name="pixels", datatype="FP64", shape=(1, 2), data=(0.5, 2.0**-40))
EXPECTED = TensorSpec(name="digit", datatype="INT64", shape=(-1,), low=0, high=9)
FULL_CHECK = CheckReading(
    check="grey",
    replica="inf-digits-001-r2-1",
    outputs=(
        OutputSeen(
            name="digit", datatype="FP64", shape=(2,), values=2, not_finite=1, first_not_finite="nan", low=0.5, high=0.5
        ),
    ),
    refused=LONG,
    error="it is late",
)


def make_full_plan() -> Plan:
    """A plan in which no field has its default."""
    rule = MetricRule(
        name="latency_p95",
        kind=Kind.QUANTILE,
        worse=Worse.LOWER,
        quantile=0.95,
        guard=0.5,
        tolerance=0.1,
        weight=2.5,
        min_samples=50,
        no_data=NoData.FAIL,
    )
    step = Step(
        weight_percent=12.5,
        bake_min=timedelta(seconds=1),
        bake_max=timedelta(hours=1),
        approval=True,
        split=SplitRule(cookie="variant", value="b"),
        mirror_percent=7,
    )
    return make_plan(
        steps=(step, Step(weight_percent=100)),
        metrics=(rule, MetricRule(name="error_rate")),
        alpha=0.05,
        interval=timedelta(seconds=5, microseconds=1),
        warm_up=timedelta(0),
        min_requests=7,
        on_undecided=OnUndecided.ROLL_BACK,
        approval_timeout=timedelta(days=2),
        approvers=("ann", "Zoë"),
        on_approval_timeout=OnApprovalTimeout.ROLL_BACK,
        ready_timeout=timedelta(minutes=1),
        unready_limit=timedelta(minutes=2),
        shift_timeout=timedelta(minutes=3),
        output_checks=(OutputCheck(name="grey", inputs=(SAMPLE,), outputs=(EXPECTED,)),),
    )


def make_full_rollout() -> Rollout:
    """A rollout in which no field has its default."""
    return make_rollout(
        plan=make_full_plan(),
        phase=Phase.PROMOTED,
        explanation=Explanation(
            Reason.SERVES_ALL, LONG, {"by": ["ann"], "weight_percent": 12.5, "nested": {"a": None}}
        ),
        step=1,
        obeyed_at=at(-9.000001),
        ended_at=at(-1),
    )


def make_full_look() -> Look:
    """A look in which no field has its default, but for its rules."""
    carried = Carried(
        evidence=Evidence(looks=3, log_stakes=(-1.5, 1e-300, -700.25)),
        bounds=(0.1, 0.2),
        lately_canary=(1.5, 0.0, 2.0),
        lately_stable=(9.25, 1.0, 0.5),
        fresh_canary=(1, 2, 3),
        fresh_stable=(4, 5, 2**40),
        fresh_since=at(-30),
        passed_at=at(-60.5),
    )
    metric = MetricLook(
        metric="latency_p95",
        outcome=Outcome.FAIL,
        sentence=LONG,
        statistic=12.25,
        bound=5.3,
        canary_value=0.25,
        stable_value=0.125,
        worsening=1.0,
        canary_samples=100,
        stable_samples=900,
        carried=carried,
    )
    readings = (
        Reading(metric="latency_p95", canary=(1, 2, 3), stable=(4, 5, 6), bounds=(0.1, 0.2)),
        Reading(metric="error_rate", error="the query failed"),
    )
    return make_look(
        4,
        measured=Measured(
            step=1,
            weight_percent=12.5,
            started_at=at(-30),
            ended_at=at(0),
            readings=readings,
            checks=(FULL_CHECK,),
            split=SplitRule(header="x-group", value="beta"),
            mirror_percent=7,
        ),
        outcome=Outcome.FAIL,
        sentence=LONG,
        metrics=(metric,),
        checks=(CheckLook(check="grey", outcome=Outcome.FAIL, sentence=LONG),),
        failed_look=3,
        failure="latency_p95 is surely worse.",
        rule_version="rollout/0",
    )


def make_wish(kind: WishKind = WishKind.PAUSE, *, asked_s: float = 0, note: str = "") -> Wish:
    """What ann asks for."""
    return Wish(kind=kind, by="ann", at=at(asked_s), note=note)


def make_approval(step: int = 0, *, approved: bool = True, note: str = "") -> Approval:
    """What ann answers."""
    return Approval(step=step, approved=approved, by="ann", at=at(step), note=note)


def add(store: Store, *rollouts: Rollout) -> None:
    """Add them, and the services that they belong to."""
    with store.begin() as tx:
        for rollout in rollouts:
            if tx.services.get(rollout.service) is None:
                tx.services.add(make_service(rollout.service))
            assert tx.rollouts.add(rollout)


def add_looks(store: Store, *looks: Look, rollout_id: str = "rollout-1") -> None:
    """Add looks, and the rollout if it is not there."""
    with store.read() as tx:
        is_there = tx.rollouts.get(rollout_id) is not None
    if not is_there:
        add(store, make_rollout(rollout_id))
    with store.begin() as tx:
        for look in looks:
            assert tx.rollouts.add_look(rollout_id, look)


def read(store: Store, *readings: Counters) -> int:
    """Add the readings."""
    with store.begin() as tx:
        return tx.traffic.add(readings)


@pytest.mark.parametrize(
    ("full", "given"),
    [
        pytest.param(make_full_rollout(), {"version"}, id="rollout"),
        pytest.param(make_full_plan(), set(), id="plan"),
        pytest.param(make_full_plan().metrics[0], set(), id="metric's rule"),
        pytest.param(make_full_plan().steps[0], set(), id="step"),
        pytest.param(make_full_look(), set(), id="look"),
        pytest.param(make_full_look().measured, set(), id="measured"),
        pytest.param(make_full_look().metrics[0], set(), id="metric's look"),
        pytest.param(make_full_look().metrics[0].carried, set(), id="carried"),
        pytest.param(make_full_plan().output_checks[0], set(), id="output check"),
        pytest.param(FULL_CHECK, set(), id="check's reading"),
        pytest.param(FULL_CHECK.outputs[0], set(), id="output"),
        pytest.param(make_full_look().checks[0], set(), id="check's look"),
    ],
)
def test_the_full_values_leave_no_field_at_its_default(full: Any, given: set[str]) -> None:
    defaults = {field.name: field.default for field in fields(full) if field.default is not MISSING}
    made = {field.name: field.default_factory() for field in fields(full) if field.default_factory is not MISSING}
    same = {name for name, default in {**defaults, **made}.items() if getattr(full, name) == default}
    assert same == given


# --- rollouts -------------------------------------------------------------------------------------------------------


def test_a_rollout_comes_back_as_it_was(store: Store) -> None:
    rollout = make_full_rollout()
    add(store, rollout)
    with store.read() as tx:
        assert tx.rollouts.get("rollout-1") == rollout


def test_an_empty_store_has_nothing(store: Store) -> None:
    with store.read() as tx:
        assert tx.rollouts.get("rollout-1") is None
        assert tx.rollouts.of_service(SERVICE) == []
        assert tx.rollouts.open() == []
        assert tx.rollouts.wish("rollout-1") is None
        assert tx.rollouts.approval("rollout-1") is None
        assert tx.rollouts.looks("rollout-1") == []
        assert tx.rollouts.newest_look("rollout-1") is None
        assert tx.traffic.since([BACKEND], at(0)) == {BACKEND: []}


@pytest.mark.parametrize("phase", Phase)
def test_a_service_has_one_rollout_that_has_not_ended(store: Store, phase: Phase) -> None:
    add(store, make_rollout(phase=phase))
    with store.begin() as tx:
        assert tx.rollouts.add(make_rollout("rollout-2")) is (phase in FINAL)
    with store.read() as tx:
        expected = "rollout-2" if phase in FINAL else "rollout-1"
        assert [rollout.id for rollout in tx.rollouts.open()] == [expected]


def test_rollouts_of_two_services_do_not_meet(store: Store) -> None:
    add(store, make_rollout("b"), make_rollout("a", service=OTHER))
    with store.read() as tx:
        assert [rollout.id for rollout in tx.rollouts.open()] == ["b", "a"]


def test_a_rollout_that_ends_makes_room_for_the_next(store: Store) -> None:
    add(store, make_rollout())
    with store.begin() as tx:
        tx.rollouts.save(make_rollout(phase=Phase.ROLLED_BACK, ended_at=at(0)))
        assert tx.rollouts.open() == []
        assert tx.rollouts.add(make_rollout("rollout-2"))


def test_a_rollout_added_again_while_it_is_open_is_there_already(store: Store) -> None:
    add(store, make_rollout())
    with store.begin() as tx:
        assert tx.rollouts.add(make_rollout()) is False


def test_the_id_of_an_ended_rollout_cannot_be_given_again(store: Store) -> None:
    add(store, make_rollout(phase=Phase.ABORTED))
    with pytest.raises(Conflict, match="rollout-1 exists already"), store.begin() as tx:
        tx.rollouts.add(make_rollout())


def test_a_rollout_of_a_service_that_does_not_exist_is_refused(store: Store) -> None:
    with pytest.raises(NotFound), store.begin() as tx:
        tx.rollouts.add(make_rollout())
    with store.read() as tx:
        assert tx.rollouts.open() == []


def test_an_ended_rollout_cannot_be_opened_again_beside_another(store: Store) -> None:
    ended = make_rollout(phase=Phase.ABORTED)
    add(store, ended, make_rollout("rollout-2"))
    with pytest.raises(Conflict, match="another rollout that has not ended"), store.begin() as tx:
        tx.rollouts.save(replace(ended, phase=Phase.WAITING))
    with store.begin() as tx:
        assert tx.rollouts.save(replace(ended, step=1)) is not None


def test_a_save_moves_the_version_on_and_an_old_one_loses(store: Store) -> None:
    add(store, make_rollout())
    full = make_full_rollout()
    with store.begin() as tx:
        saved = tx.rollouts.save(full)
        assert saved == replace(full, version=1)
    with store.begin() as tx:
        assert tx.rollouts.save(make_rollout()) is None
        assert tx.rollouts.save(make_rollout("rollout-404")) is None
    with store.read() as tx:
        assert tx.rollouts.get("rollout-1") == saved


def test_rollouts_of_a_service_are_newest_first(store: Store) -> None:
    add(
        store,
        make_rollout("b", phase=Phase.ABORTED, created_at=at(-10)),
        make_rollout("a", phase=Phase.ABORTED, created_at=at(-60)),
        make_rollout("c", phase=Phase.ABORTED, created_at=at(-10)),
        make_rollout("x", service=OTHER),
    )
    with store.read() as tx:
        assert [rollout.id for rollout in tx.rollouts.of_service(SERVICE)] == ["c", "b", "a"]
        assert [rollout.id for rollout in tx.rollouts.of_service(SERVICE, 2)] == ["c", "b"]
        assert tx.rollouts.of_service(SERVICE, 0) == []


# --- people ---------------------------------------------------------------------------------------------------------


def test_what_people_say_comes_back_and_leaves_the_version_as_it_is(store: Store) -> None:
    add(store, make_rollout())
    wish, approval = make_wish(WishKind.ABORT, note=LONG), make_approval(2, approved=False, note=LONG)
    with store.begin() as tx:
        tx.rollouts.put_wish("rollout-1", wish)
        tx.rollouts.put_approval("rollout-1", approval)
        assert tx.rollouts.wish("rollout-1") == wish
    with store.begin() as tx:
        assert tx.rollouts.approval("rollout-1") == approval
        assert tx.rollouts.get("rollout-1") == make_rollout()
        assert tx.rollouts.save(make_rollout()) is not None


def test_the_last_word_counts_whatever_its_clock_says(store: Store) -> None:
    add(store, make_rollout(), make_rollout("rollout-2", service=OTHER))
    words = [make_wish(WishKind.PAUSE, asked_s=5), make_wish(WishKind.RESUME, asked_s=3)]
    with store.begin() as tx:
        for wish in words:
            tx.rollouts.put_wish("rollout-1", wish)
        tx.rollouts.put_wish("rollout-2", make_wish(WishKind.ABORT))
        for step in (1, 0):
            tx.rollouts.put_approval("rollout-1", make_approval(step))
    with store.read() as tx:
        assert tx.rollouts.wish("rollout-1") == words[-1]
        assert tx.rollouts.approval("rollout-1") == make_approval(0)
        assert tx.rollouts.approval("rollout-2") is None


def test_every_word_is_kept(database: SqlStore, database_url: str) -> None:
    add(database, make_rollout())
    for kind in (WishKind.PAUSE, WishKind.PAUSE, WishKind.RESUME):
        with database.begin() as tx:
            tx.rollouts.put_wish("rollout-1", make_wish(kind))
            tx.rollouts.put_approval("rollout-1", make_approval())
    engine = create_engine(database_url)
    with engine.connect() as connection:
        payloads = connection.scalars(text("SELECT payload FROM wishes ORDER BY seq")).all()
        assert connection.scalar(text("SELECT count(*) FROM approvals")) == 3
    engine.dispose()
    wishes = [json.loads(each) if isinstance(each, str) else each for each in payloads]
    assert [wish["kind"] for wish in wishes] == ["pause", "pause", "resume"]


@pytest.mark.parametrize(
    "put",
    [
        pytest.param(lambda tx: tx.rollouts.put_wish("nothing", make_wish()), id="wish"),
        pytest.param(lambda tx: tx.rollouts.put_approval("nothing", make_approval()), id="approval"),
        pytest.param(lambda tx: tx.rollouts.add_look("nothing", make_look()), id="look"),
    ],
)
def test_what_belongs_to_no_rollout_is_refused(store: Store, put: Callable[[Any], object]) -> None:
    with pytest.raises(NotFound), store.begin() as tx:
        put(tx)
    with store.read() as tx:
        assert tx.rollouts.newest_look("nothing") is None


# --- looks ----------------------------------------------------------------------------------------------------------


def test_a_look_comes_back_as_it_was(store: Store) -> None:
    look = make_full_look()
    add_looks(store, look)
    with store.read() as tx:
        assert tx.rollouts.looks("rollout-1") == [look]
        assert tx.rollouts.newest_look("rollout-1") == look


def test_a_look_of_a_number_that_is_there_writes_nothing(store: Store) -> None:
    add_looks(store, make_look(1), make_look(2))
    with store.begin() as tx:
        assert tx.rollouts.add_look("rollout-1", make_look(1, sentence="another")) is False
    with store.read() as tx:
        assert tx.rollouts.looks("rollout-1") == [make_look(1), make_look(2)]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        pytest.param({}, [1, 2, 9, 10], id="in order"),
        pytest.param({"after": 2}, [9, 10], id="after a number"),
        pytest.param({"after": 5}, [9, 10], id="after a number that is missing"),
        pytest.param({"after": 10}, [], id="after the last"),
        pytest.param({"limit": 2}, [1, 2], id="limit"),
        pytest.param({"limit": 0}, [], id="limit zero"),
        pytest.param({"after": 1, "limit": 2}, [2, 9], id="a page"),
    ],
)
def test_looks_are_in_order_of_their_numbers(store: Store, filters: dict[str, int], expected: list[int]) -> None:
    add_looks(store, *(make_look(number) for number in (2, 10, 1, 9)))
    add(store, make_rollout("rollout-2", service=OTHER))
    add_looks(store, make_look(99), rollout_id="rollout-2")
    with store.read() as tx:
        assert [look.number for look in tx.rollouts.looks("rollout-1", **filters)] == expected
        newest = tx.rollouts.newest_look("rollout-1")
    assert newest is not None
    assert newest.number == 10


def test_a_worsening_without_end_is_none(store: Store) -> None:
    metric = replace(make_look().metrics[0], canary_value=None, worsening=None)
    add_looks(store, make_look(metrics=(metric,)))
    with store.read() as tx:
        newest = tx.rollouts.newest_look("rollout-1")
    assert newest is not None
    assert newest.metrics == (metric,)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_of_rollouts_that_json_does_not_have_are_refused(store: Store, value: float) -> None:
    metric = replace(make_look().metrics[0], worsening=value)
    add_looks(store)
    with pytest.raises(ValueError, match="JSON"), store.begin() as tx:
        tx.rollouts.add_look("rollout-1", make_look(metrics=(metric,)))
    with pytest.raises(ValueError, match="JSON"), store.begin() as tx:
        tx.traffic.add([make_counters(), make_counters(observed_s=1, latency_sum_ms=value)])
    with store.read() as tx:
        assert tx.rollouts.newest_look("rollout-1") is None
        assert tx.traffic.since([BACKEND], at(-60)) == {BACKEND: []}


# --- traffic --------------------------------------------------------------------------------------------------------


def test_a_reading_comes_back_as_it_was(store: Store) -> None:
    reading = Counters(
        backend="模型-r1",
        epoch=LONG,
        observed_at=at(-0.000001),
        requests=2**50,
        by_class={"5xx": 1, "2xx": 2**50},
        router_made=3,
        active=4,
        latency_ms={"inf": 7, "0.5": 5, "10": 6},
        latency_sum_ms=1e-300,
    )
    assert read(store, reading) == 1
    with store.read() as tx:
        [stored] = tx.traffic.since(["模型-r1"], at(-1))["模型-r1"]
    assert stored == reading
    assert list(stored.latency_ms) == ["inf", "0.5", "10"]


def test_a_reading_taken_twice_is_kept_once(store: Store) -> None:
    readings = [make_counters(observed_s=number, requests=number) for number in range(3)]
    assert read(store) == 0
    assert read(store, *readings[:2]) == 2
    assert read(store, *readings, readings[2], make_counters(observed_s=1, requests=99)) == 1
    with store.read() as tx:
        assert tx.traffic.since([BACKEND], at(0))[BACKEND] == readings


@pytest.mark.parametrize(
    ("since_s", "expected"),
    [
        pytest.param(-1, [0, 10, 20, 30], id="before the first: all"),
        pytest.param(0, [0, 10, 20, 30], id="at the first: nothing is before it"),
        pytest.param(0.000001, [0, 10, 20, 30], id="just after the first: it is the one before"),
        pytest.param(10, [0, 10, 20, 30], id="at a reading: it and the one before"),
        pytest.param(15, [10, 20, 30], id="between two"),
        pytest.param(30, [20, 30], id="at the last"),
        pytest.param(31, [30], id="after the last: it alone"),
    ],
)
def test_readings_since_a_time_begin_with_the_one_before(store: Store, since_s: float, expected: list[float]) -> None:
    read(store, *(make_counters(observed_s=number) for number in (20, 0, 30, 10)))
    read(store, *(make_counters("other", observed_s=number) for number in (-5, 14, 29, 35)))
    with store.read() as tx:
        found = tx.traffic.since([BACKEND], at(since_s))
    assert found == {BACKEND: [make_counters(observed_s=number) for number in expected]}


def test_readings_are_told_apart_by_backend(store: Store) -> None:
    read(store, make_counters("a", observed_s=1), make_counters("b", observed_s=2), make_counters("c", observed_s=9))
    with store.read() as tx:
        found = tx.traffic.since({"a", "c", "nothing"}, at(5))
        assert tx.traffic.since([], at(5)) == {}
    assert found == {"a": [make_counters("a", observed_s=1)], "c": [make_counters("c", observed_s=9)], "nothing": []}


def test_forgetting_takes_what_is_older_and_says_how_many(store: Store) -> None:
    read(store, *(make_counters(backend, observed_s=number) for backend in ("a", "b") for number in (0, 10, 20)))
    with store.begin() as tx:
        assert tx.traffic.forget(at(10)) == 2
        assert tx.traffic.forget(at(10)) == 0
    with store.read() as tx:
        found = tx.traffic.since(["a", "b"], at(-60))
    assert found == {name: [make_counters(name, observed_s=number) for number in (10, 20)] for name in ("a", "b")}


# --- rows of other programs -----------------------------------------------------------------------------------------


def test_a_payload_of_yesterday_or_tomorrow_is_read(database: SqlStore, database_url: str) -> None:
    """A key that is missing takes its default; one that nobody knows is left out."""
    add_looks(database, make_look())
    add(database, make_rollout("rollout-2", service=OTHER))
    read(database, make_counters())
    edits: dict[str, Callable[[dict[str, Any]], object]] = {
        "looks": lambda look: (look.pop("failure"), look["metrics"][0].pop("carried"), look.update(tomorrow=[1])),
        "rollouts": lambda rollout: (rollout["plan"].pop("alpha"), rollout["plan"]["steps"][0].update(colour="red")),
        "services": lambda service: (service.pop("weights"), service.update(tomorrow={"a": 1})),
        "traffic": lambda reading: (reading.pop("active"), reading.update(tomorrow=None)),
    }
    for table, edit in edits.items():
        edit_payloads(database_url, table, edit)
    with database.read() as tx:
        assert tx.rollouts.newest_look("rollout-1") == make_look()
        assert tx.rollouts.get("rollout-1") == make_rollout()
        assert tx.services.get(SERVICE) == make_service()
        assert tx.traffic.since([BACKEND], at(0)) == {BACKEND: [make_counters()]}


def edit_payloads(url: str, table: str, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON of every row, past the store."""
    engine = create_engine(url)
    with engine.begin() as connection:
        for (stored,) in connection.execute(text(f"SELECT DISTINCT CAST(payload AS TEXT) FROM {table}")).all():
            payload = json.loads(stored)
            edit(payload)
            query = text(f"UPDATE {table} SET payload = :new WHERE CAST(payload AS TEXT) = :old")
            assert connection.execute(query, {"new": json.dumps(payload), "old": stored}).rowcount == 1
    engine.dispose()


# --- two connections ------------------------------------------------------------------------------------------------


def test_of_several_that_begin_a_rollout_save_it_or_look_exactly_one_wins(
    database: SqlStore, database_url: str
) -> None:
    with database.begin() as tx:
        tx.services.add(make_service())

    def step_of(call: Callable[[Any, int], object]) -> Callable[[Store, int], bool]:
        def step(store: Store, number: int) -> bool:
            with store.begin() as tx:
                return call(tx, number) not in (False, None)

        return step

    calls: Sequence[Callable[[Any, int], object]] = [
        lambda tx, number: tx.rollouts.add(make_rollout(f"rollout-{number}")),
        lambda tx, number: tx.rollouts.save(replace(tx.rollouts.open()[0], version=0, step=number)),
        lambda tx, number: tx.rollouts.add_look(tx.rollouts.open()[0].id, make_look(1, sentence=str(number))),
        lambda tx, _: bool(tx.traffic.add([make_counters()])),
    ]
    assert [sum(race(database_url, step_of(call))) for call in calls] == [1, 1, 1, 1]


def test_a_person_s_word_during_a_save_is_kept_and_loses_nobody_the_race(database_url: str) -> None:
    first, second = open_store(database_url), open_store(database_url)
    add(first, make_rollout())

    def speak() -> None:
        with second.begin() as tx:
            tx.rollouts.put_wish("rollout-1", make_wish())

    with ThreadPoolExecutor(1) as pool:
        with first.begin() as tx:
            assert tx.rollouts.save(make_rollout(step=1)) is not None
            spoken = pool.submit(speak)
        spoken.result(timeout=LIMIT_S)
    with second.read() as tx:
        assert tx.rollouts.wish("rollout-1") == make_wish()
        assert tx.rollouts.get("rollout-1") == make_rollout(step=1, version=1)
    first.close()
    second.close()


def test_looks_of_a_transaction_that_is_given_up_are_gone(store: Store) -> None:
    add(store, make_rollout())
    with suppress(RuntimeError), store.begin() as tx:
        tx.rollouts.add_look("rollout-1", make_look())
        tx.traffic.add([make_counters()])
        tx.rollouts.put_wish("rollout-1", make_wish())
        raise RuntimeError("the caller gave up")
    with store.begin() as tx:
        assert tx.rollouts.newest_look("rollout-1") is None
        assert tx.rollouts.wish("rollout-1") is None
        assert tx.traffic.since([BACKEND], at(0)) == {BACKEND: []}
        assert tx.rollouts.add_look("rollout-1", make_look())
