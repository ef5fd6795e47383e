"""``ports.Services`` and ``ports.ReplicaRows`` on every store."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import MISSING, Field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from store_race import race

from builders import at, make_plan, make_replica, make_revision, make_service, make_service_spec
from fermion.adapters.sql import open_store
from fermion.adapters.sql.store import SqlStore
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.rollout.plan import SplitRule
from fermion.domain.serving.autoscaling import Autoscaling, TargetMetric
from fermion.domain.serving.replicas import Probe, ProbeKind, Probes
from fermion.domain.serving.routing import Balancing
from fermion.domain.serving.services import (
    HOLDING,
    REVISION_FINAL,
    ApiType,
    Capacity,
    Replica,
    ReplicaPhase,
    Revision,
    RevisionPhase,
    Service,
    ServicePins,
    ServiceSpec,
    WhenBusy,
)
from fermion.errors import Conflict, NotFound
from fermion.ports import Store

LIMIT_S = 60
SERVICE = "inf-digits-001"
LONG = "模型服务 naïve 🚀" * 20
SCALING = Autoscaling(
    metric=TargetMetric.GPU,
    target=70.5,
    min_replicas=2,
    max_replicas=9,
    tolerance=0.2,
    up_window=timedelta(seconds=3),
    down_window=timedelta(seconds=9),
)


def make_full_service() -> Service:
    """A service in which no field has its default."""
    return make_service(
        owner="Zoë",
        team="vision",
        port=8443,
        api_type=ApiType.GRPC,
        replicas=3,
        autoscaling=SCALING,
        follow=True,
        stable=1,
        candidate=2,
        newest=2,
        weights={"2": 10, "1": 90},
        split=SplitRule(cookie="variant"),
        mirror_percent=7,
        closing=True,
        closed_at=at(-1.000001),
    )


def make_full_spec() -> ServiceSpec:
    """A spec in which no field that may be left out has its default."""
    probe = Probe(kind=ProbeKind.EXEC, path="/x", port="grpc", command=("true", "-v"), period=timedelta(seconds=2))
    return make_service_spec(
        plan=make_plan(alpha=0.05, min_requests=7),
        version=4,
        command=("serve", "--port", "{port:http}"),
        repository="file:///srv/git/digits.git",
        ref="v1",
        api_type=ApiType.WEBSOCKET,
        replicas=2,
        gpus_per_replica=4,
        memory_mib=2048,
        cpus=1.5,
        prefix="/numbers",
        port=9000,
        balancing=Balancing.ROUND_ROBIN,
        autoscaling=SCALING,
        probes=Probes(startup=probe, readiness=probe, liveness=probe),
        environment={"NAME": LONG, "EMPTY": ""},
        capacity=Capacity.SWAP,
        when_busy=WhenBusy.SUPERSEDE,
        keep_warm=timedelta(seconds=61, microseconds=1),
        ready_timeout=timedelta(hours=1),
        priority=7,
        follow=True,
        retry_failed=True,
        owner="Zoë",
        team="vision",
    )


def make_full_revision() -> Revision:
    """A revision in which no field has its default."""
    return make_revision(
        2,
        spec=make_full_spec(),
        pins=ServicePins(model_version=4, model_checksum="sha256:ab", image_digest="sha256:cd", commit="c" * 40),
        explanation=Explanation(Reason.STAGING, "because 因为", {"gpus": 8, "by": ["ann"], "nested": {"a": None}}),
        run=("deploy_service", "manual__1"),
        wanted=3,
        replica_count=5,
        warm_until=at(600),
        failed=True,
    )


def make_full_replica() -> Replica:
    """A replica in which no field has its default."""
    return make_replica(
        12,
        phase=ReplicaPhase.DRAINING,
        explanation=Explanation(Reason.STOP_REQUESTED, LONG, {"gpus": 1}),
        prepared_at=at(-350),
        lease_id="lease-12",
        draining_since=at(-2.5),
    )


def add(store: Store, *services: Service) -> None:
    """Add them in one transaction."""
    with store.begin() as tx:
        for service in services:
            assert tx.services.add(service)


def add_revisions(store: Store, *revisions: Revision) -> None:
    """Add them, and ``inf-digits-001`` if it is not there."""
    with store.begin() as tx:
        if tx.services.get(SERVICE) is None:
            tx.services.add(make_service())
        for revision in revisions:
            assert tx.services.add_revision(revision)


def add_replicas(store: Store, *rows: Replica) -> None:
    """Add them and the two revisions of ``inf-digits-001`` that they belong to."""
    add_revisions(store, make_revision(1), make_revision(2))
    with store.begin() as tx:
        tx.replicas.add_all(rows)


def found(store: Store, **filters: Any) -> list[str]:
    """The ids that ``find`` answers."""
    with store.read() as tx:
        return [service.id for service in tx.services.find(**filters)]


def found_replicas(store: Store, **filters: Any) -> list[int]:
    """The numbers that ``find`` answers."""
    with store.read() as tx:
        return [row.number for row in tx.replicas.find(**filters)]


@pytest.mark.parametrize(
    ("full", "plain"),
    [
        pytest.param(make_full_service(), make_service(), id="service"),
        pytest.param(make_full_spec(), make_service_spec(), id="spec"),
        pytest.param(make_full_revision(), make_revision(2), id="revision"),
        pytest.param(make_full_replica(), make_replica(lease_id=None), id="replica"),
    ],
)
def test_the_full_values_leave_no_field_at_a_default_that_it_has(full: Any, plain: Any) -> None:
    same = {field.name for field in fields(full) if getattr(full, field.name) == getattr(plain, field.name)}
    with_default = {field.name for field in fields(full) if not _is_required(field)}
    assert same & with_default <= {"version"}


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


# --- ids ------------------------------------------------------------------------------------------------------------


def test_ids_count_from_one_within_their_slug(store: Store) -> None:
    with store.begin() as tx:
        ids = [tx.services.new_id(name) for name in ("Digits", "digits!", "other one", LONG, "模型", "")]
    assert ids[:3] == ["inf-digits-001", "inf-digits-002", "inf-other-one-001"]
    assert ids[4:] == ["inf-service-001", "inf-service-002"]
    assert ids[3].startswith("inf-na-ve-")


def test_the_thousandth_id_of_a_slug_has_four_digits(store: Store) -> None:
    with store.begin() as tx:
        ids = [tx.services.new_id("digits") for _ in range(1000)]
    assert ids[998:] == ["inf-digits-999", "inf-digits-1000"]


def test_an_id_is_not_given_again_when_its_service_was_closed(store: Store) -> None:
    with store.begin() as tx:
        tx.services.add(make_service(tx.services.new_id("digits"), closed_at=at(0)))
    with store.begin() as tx:
        assert tx.services.new_id("digits") == "inf-digits-002"


def test_threads_never_get_one_id_twice(store: Store) -> None:
    def take(_: int) -> str:
        with store.begin() as tx:
            return tx.services.new_id("digits")

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(take, range(80)))
    assert sorted(taken) == [f"inf-digits-{number:03d}" for number in range(1, 81)]


def test_processes_never_get_one_id_twice(database: SqlStore, database_url: str) -> None:
    worker = str(Path(__file__).with_name("store_worker.py"))
    command = [sys.executable, worker, database_url, "take_service_ids", "10"]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    taken = [line for worker in workers for line in worker.communicate(timeout=LIMIT_S)[0].split()]
    assert sorted(taken) == [f"inf-digits-{number:03d}" for number in range(1, 81)]
    assert len(found(database)) == 80


# --- services -------------------------------------------------------------------------------------------------------


def test_a_service_comes_back_as_it_was(store: Store) -> None:
    service = make_full_service()
    add(store, service)
    with store.read() as tx:
        assert tx.services.get(service.id) == service


def test_an_empty_store_has_nothing(store: Store) -> None:
    with store.read() as tx:
        assert tx.services.get(SERVICE) is None
        assert tx.services.by_name("digits") is None
        assert tx.services.find() == []
        assert tx.services.revision(SERVICE, 1) is None
        assert tx.services.revision_of_run("deploy_service", "r1") is None
        assert tx.services.revisions(SERVICE) == []
        assert tx.services.open_revisions() == []
        assert tx.replicas.get("inf-digits-001-r1-1") is None
        assert tx.replicas.find() == []


@pytest.mark.parametrize("name", ["digits", "模型", LONG, "nul \0 inside", "half \ud800 surrogate", 'it\'s %s "x"'])
def test_a_service_is_found_by_any_name(store: Store, name: str) -> None:
    service = make_service(name=name, prefix="/digits")
    add(store, service)
    with store.read() as tx:
        assert tx.services.by_name(name) == service
        assert tx.services.by_name(f"{name}2") is None


@pytest.mark.parametrize(
    ("other", "is_added"),
    [
        pytest.param({"name": "digits", "prefix": "/other"}, False, id="the same name"),
        pytest.param({"name": "other", "prefix": "/digits"}, False, id="the same prefix"),
        pytest.param({"name": "other", "port": 9000}, False, id="the same port"),
        pytest.param({"name": "Digits", "prefix": "/other"}, True, id="another case is another name"),
        pytest.param({"name": "other", "prefix": "/digits/"}, True, id="another prefix"),
        pytest.param({"name": "other", "port": 9001}, True, id="another port"),
        pytest.param({"name": "other"}, True, id="no port"),
        pytest.param({"name": "digits", "port": 9000, "closed_at": at(0)}, True, id="one that is closed"),
    ],
)
def test_two_open_services_share_no_name_and_no_route(store: Store, other: dict[str, Any], is_added: bool) -> None:
    add(store, make_service(port=9000))
    with store.begin() as tx:
        assert tx.services.add(make_service("inf-other-001", **other)) is is_added
    with store.read() as tx:
        assert (tx.services.get("inf-other-001") is not None) is is_added


def test_services_without_a_port_do_not_meet(store: Store) -> None:
    add(store, make_service("inf-a-001"), make_service("inf-b-001"))


def test_the_name_and_the_route_of_a_closed_service_are_free_again(store: Store) -> None:
    service = make_service(port=9000)
    add(store, service)
    with store.begin() as tx:
        assert tx.services.save(replace(service, closed_at=at(0))) is not None
        assert tx.services.by_name("digits") is None
        assert tx.services.add(make_service("inf-digits-002", port=9000))
    with store.read() as tx:
        assert tx.services.by_name("digits") == make_service("inf-digits-002", port=9000)


def test_a_closed_service_is_still_saved_after_its_name_was_given_to_another(store: Store) -> None:
    closed = make_service(closed_at=at(-5))
    add(store, closed, make_service("inf-digits-002"))
    with store.begin() as tx:
        assert tx.services.save(replace(closed, team="vision")) is not None


@pytest.mark.parametrize("changes", [{"closed_at": None}, {"name": "free"}, {"prefix": "/free"}], ids=str)
def test_what_another_open_service_has_cannot_be_saved(store: Store, changes: dict[str, Any]) -> None:
    closed = make_service(closed_at=at(-5))
    add(store, closed, make_service("inf-digits-002"))
    with pytest.raises(Conflict, match="the name or the route of inf-digits-001"), store.begin() as tx:
        tx.services.save(replace(closed, **{"closed_at": None, **changes}))
    with store.read() as tx:
        assert tx.services.get(SERVICE) == closed


def test_an_id_cannot_be_added_twice(store: Store) -> None:
    add(store, make_service())
    with pytest.raises(Conflict, match="inf-digits-001 exists already"), store.begin() as tx:
        tx.services.add(make_service(name="other"))


def test_a_save_moves_the_version_on(store: Store) -> None:
    add(store, make_service())
    full = make_full_service()
    with store.begin() as tx:
        saved = tx.services.save(full)
        assert saved == replace(full, version=1)
    with store.read() as tx:
        assert tx.services.get(full.id) == saved


def test_a_save_with_an_old_version_is_a_lost_race_and_writes_nothing(store: Store) -> None:
    add(store, make_service())
    with store.begin() as tx:
        saved = tx.services.save(make_service(replicas=2))
    with store.begin() as tx:
        assert tx.services.save(make_service(replicas=9)) is None
    with store.read() as tx:
        assert tx.services.get(SERVICE) == saved == make_service(replicas=2, version=1)


def test_saving_what_was_never_added_is_a_lost_race(store: Store) -> None:
    with store.begin() as tx:
        assert tx.services.save(make_service()) is None
        assert tx.services.save_revision(make_revision()) is None
        assert tx.replicas.save(make_replica()) is None


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        pytest.param({}, ["c", "b", "a"], id="newest first"),
        pytest.param({"is_open": True}, ["c", "a"], id="open"),
        pytest.param({"is_open": False}, ["b"], id="closed"),
        pytest.param({"pool": "local/other"}, ["c"], id="pool"),
        pytest.param({"owner": "Zoë"}, ["c", "b"], id="owner"),
        pytest.param({"owner": "Zoë", "is_open": True}, ["c"], id="all filters together"),
        pytest.param({"limit": 2}, ["c", "b"], id="limit"),
        pytest.param({"limit": 0}, [], id="limit zero"),
        pytest.param({"before": "b"}, ["a"], id="before"),
        pytest.param({"before": "c", "limit": 1}, ["b"], id="the next page"),
        pytest.param({"before": "a"}, [], id="after the last page"),
        pytest.param({"before": "c", "is_open": True}, ["a"], id="a page of a filter"),
    ],
)
def test_filters(store: Store, filters: dict[str, Any], expected: list[str]) -> None:
    add(
        store,
        make_service("c", created_at=at(-30), owner="Zoë", pool="local/other"),
        make_service("a", created_at=at(-50)),
        make_service("b", created_at=at(-40), owner="Zoë", closed_at=at(-1)),
    )
    assert found(store, **filters) == expected


def test_pages_lose_and_repeat_nothing_when_many_were_created_at_one_instant(store: Store) -> None:
    add(store, *(make_service(f"inf-s{number}-001") for number in range(10)))
    pages, before = [], None
    while page := found(store, before=before, limit=3):
        pages += page
        before = page[-1]
    assert pages == [f"inf-s{number}-001" for number in range(9, -1, -1)]


def test_a_page_after_a_service_that_does_not_exist_is_refused(store: Store) -> None:
    with pytest.raises(NotFound, match="'nothing' does not exist"), store.read() as tx:
        tx.services.find(before="nothing")


@pytest.mark.parametrize("target", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_refused(store: Store, target: float) -> None:
    scaling = Autoscaling(metric=TargetMetric.QPS, target=target)
    with pytest.raises(ValueError, match="JSON"), store.begin() as tx:
        tx.services.add(make_service(autoscaling=scaling))
    assert found(store) == []


def test_a_transaction_that_is_given_up_leaves_nothing(store: Store) -> None:
    with suppress(RuntimeError), store.begin() as tx:
        tx.services.add(make_service(tx.services.new_id("digits")))
        tx.services.add_revision(make_revision())
        tx.replicas.add_all([make_replica()])
        raise RuntimeError("the caller gave up")
    with store.begin() as tx:
        assert tx.services.new_id("digits") == SERVICE
        assert tx.services.find() == tx.services.open_revisions() == tx.replicas.find() == []


# --- revisions ------------------------------------------------------------------------------------------------------


def test_a_revision_comes_back_as_it_was(store: Store) -> None:
    revision = make_full_revision()
    add_revisions(store, revision)
    with store.read() as tx:
        assert tx.services.revision(SERVICE, 2) == revision
        assert tx.services.revision_of_run("deploy_service", "manual__1") == revision
        assert tx.services.revision_of_run("other_dag", "manual__1") is None


def test_a_number_is_given_once(store: Store) -> None:
    add_revisions(store, make_revision())
    with store.begin() as tx:
        assert tx.services.add_revision(make_revision(wanted=9)) is False
    with store.read() as tx:
        assert tx.services.revisions(SERVICE) == [make_revision()]


def test_a_run_carries_one_revision_also_when_it_has_ended(store: Store) -> None:
    run = ("deploy_service", "r1")
    add_revisions(store, make_revision(run=run, phase=RevisionPhase.FAILED))
    with store.begin() as tx:
        assert tx.services.add_revision(make_revision(2, run=run)) is False
        assert tx.services.add_revision(make_revision(2, run=("deploy_service", "r2"))) is True


def test_revisions_without_a_run_do_not_meet(store: Store) -> None:
    add_revisions(store, make_revision(1), make_revision(2))


def test_a_revision_can_be_given_a_run_but_not_that_of_another(store: Store) -> None:
    add_revisions(store, make_revision(1, run=("deploy_service", "r1")), make_revision(2))
    with store.begin() as tx:
        assert tx.services.save_revision(make_revision(2, run=("deploy_service", "r2"))) is not None
        given = tx.services.revision_of_run("deploy_service", "r2")
    assert given is not None
    assert given.number == 2
    with pytest.raises(Conflict, match="carries another revision"), store.begin() as tx:
        tx.services.save_revision(replace(given, run=("deploy_service", "r1")))


def test_a_revision_of_a_service_that_does_not_exist_is_refused(store: Store) -> None:
    with pytest.raises(NotFound), store.begin() as tx:
        tx.services.add_revision(make_revision())
    with store.read() as tx:
        assert tx.services.open_revisions() == []


def test_revisions_of_a_service_are_oldest_first(store: Store) -> None:
    add(store, make_service("inf-other-001"))
    add_revisions(store, *(make_revision(number) for number in (2, 10, 1)))
    add_revisions(store, make_revision(3, service_id="inf-other-001"))
    with store.read() as tx:
        assert [revision.number for revision in tx.services.revisions(SERVICE)] == [1, 2, 10]


def test_a_saved_revision_has_the_next_version_and_an_old_one_loses(store: Store) -> None:
    add_revisions(store, make_revision(2))
    full = make_full_revision()
    with store.begin() as tx:
        saved = tx.services.save_revision(full)
        assert saved == replace(full, version=1)
    with store.begin() as tx:
        assert tx.services.save_revision(make_revision(2, wanted=9)) is None
    with store.read() as tx:
        assert tx.services.revision(SERVICE, 2) == saved


def test_open_revisions_are_those_of_all_services_that_are_not_final(store: Store) -> None:
    add(store, make_service("inf-other-001"), make_service("inf-closed-001", closed_at=at(0)))
    phases = list(RevisionPhase)
    add_revisions(store, *(make_revision(number, phase=phase) for number, phase in enumerate(phases, 1)))
    add_revisions(store, make_revision(service_id="inf-other-001"), make_revision(service_id="inf-closed-001"))
    with store.read() as tx:
        open_revisions = tx.services.open_revisions()
    expected = [f"{SERVICE}-r{number}" for number, phase in enumerate(phases, 1) if phase not in REVISION_FINAL]
    assert [revision.id for revision in open_revisions] == [*expected, "inf-other-001-r1", "inf-closed-001-r1"]


def test_a_revision_that_ends_is_open_no_more(store: Store) -> None:
    add_revisions(store, make_revision())
    with store.begin() as tx:
        tx.services.save_revision(make_revision(phase=RevisionPhase.RETIRED))
        assert tx.services.open_revisions() == []


# --- replicas -------------------------------------------------------------------------------------------------------


def test_a_replica_comes_back_as_it_was(store: Store) -> None:
    row = make_full_replica()
    add_replicas(store, row)
    with store.read() as tx:
        assert tx.replicas.get("inf-digits-001-r1-12") == row
        assert tx.replicas.find() == [row]


def test_adding_none_writes_nothing(store: Store) -> None:
    with store.begin() as tx:
        tx.replicas.add_all([])


@pytest.mark.parametrize("numbers", [[1], [2, 1], [2, 2]], ids=str)
def test_a_replica_s_number_is_given_once(store: Store, numbers: list[int]) -> None:
    add_replicas(store, make_replica(1))
    with pytest.raises(Conflict, match="exist"), store.begin() as tx:
        tx.replicas.add_all([make_replica(number) for number in numbers])
    assert found_replicas(store) == [1]


@pytest.mark.parametrize("revision", ["inf-digits-001-r9", "inf-other-001-r1"])
def test_a_replica_of_nothing_is_refused(store: Store, revision: str) -> None:
    add_replicas(store)
    with pytest.raises(NotFound), store.begin() as tx:
        tx.replicas.add_all([make_replica(1), make_replica(1, revision=revision)])
    assert found_replicas(store) == []


def test_a_saved_replica_has_the_next_version_and_an_old_one_loses(store: Store) -> None:
    add_replicas(store, make_replica(12), make_replica(1))
    full = make_full_replica()
    with store.begin() as tx:
        saved = tx.replicas.save(full)
        assert saved == replace(full, version=1)
    with store.begin() as tx:
        assert tx.replicas.save(make_replica(12, lease_id="lease-9")) is None
    with store.read() as tx:
        assert tx.replicas.get(full.name) == saved
        assert tx.replicas.get("inf-digits-001-r1-1") == make_replica(1)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        pytest.param({}, [3, 10, 1, 2], id="by the time they joined the line, then as they were added"),
        pytest.param({"service_id": SERVICE}, [3, 10, 1], id="service"),
        pytest.param({"service_id": "nothing"}, [], id="no such service"),
        pytest.param({"phases": {ReplicaPhase.WAITING}}, [3], id="one phase"),
        pytest.param({"phases": {ReplicaPhase.WAITING, ReplicaPhase.ENDED}}, [3, 2], id="two phases"),
        pytest.param({"phases": HOLDING}, [10, 1], id="those that have a lease"),
        pytest.param({"phases": set()}, [], id="no phase matches nothing"),
        pytest.param({"pools": {"local/other"}}, [1], id="pool"),
        pytest.param({"pools": {"local/other", "local/declared"}}, [3, 10, 1, 2], id="two pools"),
        pytest.param({"pools": set()}, [], id="no pool matches nothing"),
        pytest.param({"service_id": SERVICE, "phases": HOLDING, "pools": {"local/declared"}}, [10], id="all together"),
    ],
)
def test_replicas_are_found(store: Store, filters: dict[str, Any], expected: list[int]) -> None:
    add(store, make_service("inf-other-001"))
    add_revisions(store, make_revision(service_id="inf-other-001"))
    add_replicas(
        store,
        make_replica(10, revision="inf-digits-001-r2"),
        make_replica(1, phase=ReplicaPhase.STOPPING, pool="local/other"),
        make_replica(2, revision="inf-other-001-r1", phase=ReplicaPhase.ENDED),
        make_replica(3, phase=ReplicaPhase.WAITING, queued_at=at(-500)),
    )
    assert found_replicas(store, **filters) == expected


def test_many_replicas_are_added_and_found_at_once(store: Store) -> None:
    rows = [make_replica(number) for number in range(1, 1001)]
    add_replicas(store, *rows)
    with store.read() as tx:
        assert tx.replicas.find(phases=HOLDING) == rows


# --- two connections ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", ["name", "prefix", "port"])
def test_of_several_that_add_one_name_or_route_exactly_one_wins(database_url: str, shared: str) -> None:
    same = {"name": "digits", "prefix": "/digits", "port": 9000}[shared]

    def step(store: Store, number: int) -> bool:
        with store.begin() as tx:
            return tx.services.add(make_service(f"inf-s{number}-001", **{shared: same, **_own(number, shared)}))

    assert sum(race(database_url, step)) == 1


def _own(number: int, shared: str) -> dict[str, str]:
    return {name: f"/own-{number}" for name in ("name", "prefix") if name != shared}


def test_of_several_that_save_one_version_exactly_one_wins(database: SqlStore, database_url: str) -> None:
    add_replicas(database, make_replica())

    def saves(save: Callable[[Any, int], object]) -> Callable[[Store, int], bool]:
        def step(store: Store, number: int) -> bool:
            with store.begin() as tx:
                return save(tx, number) is not None

        return step

    steps: Sequence[Callable[[Any, int], object]] = [
        lambda tx, number: tx.services.save(make_service(replicas=number)),
        lambda tx, number: tx.services.save_revision(make_revision(wanted=number)),
        lambda tx, number: tx.replicas.save(make_replica(lease_id=f"lease-{number}")),
    ]
    assert [sum(race(database_url, saves(step))) for step in steps] == [1, 1, 1]


def test_of_several_that_add_one_revision_or_carry_one_run_exactly_one_wins(
    database: SqlStore, database_url: str
) -> None:
    add(database, make_service())

    def add_number(store: Store, number: int) -> bool:
        with store.begin() as tx:
            return tx.services.add_revision(make_revision(1, wanted=number))

    def add_run(store: Store, number: int) -> bool:
        with store.begin() as tx:
            return tx.services.add_revision(make_revision(10 + number, run=("deploy_service", "r1")))

    assert sum(race(database_url, add_number)) == 1
    assert sum(race(database_url, add_run)) == 1


def test_of_several_that_add_the_same_replicas_exactly_one_wins(database: SqlStore, database_url: str) -> None:
    add_replicas(database)

    def step(store: Store, _: int) -> bool:
        try:
            with store.begin() as tx:
                tx.replicas.add_all([make_replica(1), make_replica(2)])
        except Conflict:
            return False
        return True

    assert sum(race(database_url, step)) == 1
    assert found_replicas(database) == [1, 2]


def test_a_name_that_was_freed_while_another_waited_for_it_is_given(database_url: str) -> None:
    """Whoever waits for the one who closes it sees what it left."""
    first, second = open_store(database_url), open_store(database_url)
    add(first, make_service())

    def take() -> bool:
        with second.begin() as tx:
            return tx.services.add(make_service("inf-digits-002"))

    with ThreadPoolExecutor(1) as pool:
        with first.begin() as tx:
            tx.services.save(make_service(closed_at=at(0)))
            waiting = pool.submit(take)
        assert waiting.result(timeout=LIMIT_S) is True
    first.close()
    second.close()
