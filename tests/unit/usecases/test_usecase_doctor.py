"""The doctor: every check can fail, each for all its reasons and at its boundary, and says then what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from world import POOL, World

from builders import make_lease, make_node, seconds
from fermion.adapters.models.local import LocalModels
from fermion.domain.leases import HolderKind, Lease
from fermion.domain.records import LedgerEntry, SyncRecord
from fermion.errors import OutsideUnavailable
from fermion.usecases.doctor import Check, Diagnosis, examine
from fermion.usecases.sync import sync_platform

LATE = timedelta(minutes=2)
"""A sync may be that old: it comes every half minute."""

MOMENT = timedelta(microseconds=1)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A healthy installation, just synced."""
    world = World(tmp_path, nodes=[make_node("n0", gpus=4, detail="declared slots stand in")])
    sync_platform(world.ctx)
    return world


def examined(world: World) -> Diagnosis:
    return examine(world.ctx, world.runs, how_to_start="`make up` starts it.")


def checked(world: World, name: str) -> Check:
    """The one check of that name."""
    (found,) = [check for check in examined(world).checks if check.name == name]
    return found


def hold(world: World, **changes: object) -> Lease:
    """A live lease for which there is no job."""
    now = world.clock.now()
    lease = make_lease(**{"holder_id": "job-20260101-001", "pool": POOL, "granted_at": now, "first": 3, **changes})
    with world.ctx.store.begin() as tx:
        tx.leases.add(lease)
    return lease


def note_sync(world: World, *, source: str = "cluster:local", error: str | None = None) -> None:
    """A sync that ended now."""
    now = world.clock.now()
    with world.ctx.store.begin() as tx:
        tx.records.put_sync(SyncRecord(source=source, started_at=now, ended_at=now, items=1, error=error))


class LostModels(LocalModels):
    """A repository whose disk is gone."""

    def models(self) -> Sequence[str]:
        raise OutsideUnavailable("the model repository does not answer")


def lose_models(world: World) -> None:
    world.ctx = replace(world.ctx, models=LostModels(Path("/nowhere")))


def lose_workload(world: World) -> None:
    job = world.running()
    world.driver.workloads.lose(world.name(job.id), orphans=2)


HARM: dict[str, Callable[[World], object]] = {
    "database": lambda world: world.memory.fail(),
    "cluster local": lambda world: world.driver.line.cut(),
    "models": lose_models,
    "sync": lambda world: note_sync(world, error="connection refused"),
    "ledger": lambda world: (hold(world), world.pass_time(1)),
    "orphans": lose_workload,
    "engine": lambda world: world.runs.line.cut(),
}
"""What makes each check fail."""


def test_a_healthy_installation_is_well_and_every_check_of_it_has_a_harm_here(world: World) -> None:
    found = examined(world)
    assert found.ok
    assert [check.name for check in found.checks] == list(HARM)
    assert [check for check in found.checks if check.to_do] == []


@pytest.mark.parametrize("name", HARM)
def test_each_check_can_fail_and_then_says_what_to_do(world: World, name: str) -> None:
    HARM[name](world)
    found = examined(world)
    (check,) = [each for each in found.checks if each.name == name]
    assert not check.ok
    assert check.to_do
    assert not found.ok


@pytest.mark.parametrize("name", ["models", "sync", "ledger", "orphans", "engine"])
def test_what_is_wrong_with_one_leaves_the_others_well(world: World, name: str) -> None:
    HARM[name](world)
    assert [check.name for check in examined(world).checks if not check.ok] == [name]


@pytest.mark.parametrize(
    ("name", "words", "to_do"),
    [
        ("database", "the database does not answer", "`make up` starts it."),
        ("cluster local", "the cluster does not answer", "config/fermion.yaml"),
        ("models", "the model repository does not answer", "models.uri"),
        ("sync", "cluster:local: connection refused", "sync_platform"),
        ("ledger", "1 open lease, 1.0 GPU-seconds leaked", "`fermion ledger`"),
        ("orphans", "2 processes of ours", "The next sync ends them."),
        ("engine", "the workflow engine does not answer", "`make up` starts it."),
    ],
)
def test_a_check_tells_what_is_wrong_in_the_words_of_what_failed(
    world: World, name: str, words: str, to_do: str
) -> None:
    HARM[name](world)
    check = checked(world, name)
    assert words in check.detail
    assert to_do in check.to_do


# --- sync -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ended_ago", "error", "ok"),
    [
        pytest.param(seconds(0), None, True, id="just now"),
        pytest.param(LATE, None, True, id="as long ago as it may be"),
        pytest.param(LATE + MOMENT, None, False, id="overdue"),
        pytest.param(seconds(0), "connection refused", False, id="failed"),
    ],
)
def test_a_sync_that_failed_or_is_overdue_is_not_well(
    world: World, ended_ago: timedelta, error: str | None, ok: bool
) -> None:
    note_sync(world, error=error)
    world.clock.advance(ended_ago)
    check = checked(world, "sync")
    assert (check.ok, bool(check.to_do)) == (ok, not ok)
    assert f"cluster:local {ended_ago.total_seconds():.0f} s ago" in check.detail


@pytest.mark.parametrize(
    ("ended_ago", "error", "ok"),
    [
        pytest.param(seconds(1), None, True, id="both are well"),
        pytest.param(LATE + MOMENT, None, False, id="one is overdue"),
        pytest.param(seconds(1), "connection refused", False, id="one failed"),
    ],
)
def test_one_of_several_syncs_is_enough(world: World, ended_ago: timedelta, error: str | None, ok: bool) -> None:
    note_sync(world, source="cluster:far", error=error)
    world.clock.advance(ended_ago)
    note_sync(world)
    assert checked(world, "sync").ok is ok


def test_an_installation_that_was_never_synced_is_not_well(tmp_path: Path) -> None:
    check = checked(World(tmp_path), "sync")
    assert (check.ok, check.detail) == (False, "none yet")
    assert check.to_do


# --- clusters ---------------------------------------------------------------------------------------------------------


def test_a_cluster_tells_what_is_usable_of_it_and_what_its_nodes_say(world: World) -> None:
    world.driver.nodes.put(make_node("n0", gpus=4, detail="no GPU"), make_node("n1", gpus=2, ready=False))
    assert checked(world, "cluster local").detail == "memory: 2 nodes, 4 devices; no GPU"


def test_each_cluster_is_a_check_of_its_own(world: World, tmp_path: Path) -> None:
    other = World(tmp_path / "other").driver
    world.ctx = replace(world.ctx, drivers={"local": world.driver, "far": other})
    other.line.cut()
    found = {check.name: check.ok for check in examined(world).checks}
    assert (found["cluster far"], found["cluster local"]) == (False, True)


# --- ledger -----------------------------------------------------------------------------------------------------------


def test_a_lease_of_a_job_that_holds_gpus_is_no_leak(world: World) -> None:
    world.running()
    world.pass_time(5)
    assert checked(world, "ledger").ok


def test_a_lease_of_an_earlier_attempt_is_a_leak(world: World) -> None:
    job = world.running()
    hold(world, holder_id=job.id, attempt=9)
    world.pass_time(2)
    assert checked(world, "ledger").detail == "2 open leases, 2.0 GPU-seconds leaked"


def test_a_ledger_that_holds_what_no_lease_does_is_a_leak(world: World) -> None:
    entry = LedgerEntry(
        lease_id="lease-7", pool=POOL, holder="job-20260101-001", kind="grant", gpus=3, at=world.clock.now()
    )
    tables = world.memory._tables
    world.memory._tables = replace(tables, ledger={**tables.ledger, 999: entry})
    world.pass_time(2)
    check = checked(world, "ledger")
    assert (check.ok, check.detail) == (False, "0 open leases, 6.0 GPU-seconds leaked")


@pytest.mark.parametrize("away", ["cluster local", "database"])
def test_what_cannot_be_looked_at_is_unknown_and_not_well(world: World, away: str) -> None:
    hold(world)
    HARM[away](world)
    for name in ("ledger", "orphans"):
        check = checked(world, name)
        assert not check.ok
        assert "unknown" in check.detail
        assert check.to_do == "Ask again once what does not answer is back."


def test_what_others_than_jobs_hold_is_not_judged_by_workloads(world: World) -> None:
    hold(world, holder_kind=HolderKind.INSTANCE)
    world.pass_time(2)
    assert checked(world, "ledger").ok


def test_without_an_engine_to_ask_there_is_no_check_of_it(world: World) -> None:
    assert "engine" not in [check.name for check in examine(world.ctx).checks]
