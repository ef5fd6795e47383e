"""A service that lost model servers gets others within one sync, and one that is taken down is gone."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving_world import ServingWorld

from builders import seconds
from fermion.domain.serving.replicas import ReplicaState
from fermion.domain.serving.services import ReplicaPhase
from fermion.usecases.serving import mend as mending
from fermion.usecases.serving.mend import is_mending, mend
from fermion.usecases.serving.wishes import close, scale
from fermion.usecases.sync import sync_platform

PATIENCE = seconds(30)
"""More than any of these takes; a test that needs it all hangs on something."""


@pytest.fixture
def world(tmp_path: Path) -> ServingWorld:
    return ServingWorld(tmp_path)


def test_lost_servers_are_replaced_and_get_requests_within_one_sync(world: ServingWorld) -> None:
    made = world.serving()
    lost = [row.name for row in world.rows()]
    for name in lost:
        world.driver.replicas.lose(name)
    sync_platform(world.ctx, patience=PATIENCE)

    assert [row.name for row in world.rows()] == [f"{made.id}-3", f"{made.id}-4"]
    assert set(world.ask(20)) == {200}
    assert world.held() == 2
    assert not is_mending(world.ctx)


def test_without_patience_a_sync_takes_one_step(world: ServingWorld) -> None:
    world.serving()
    for row in world.rows():
        world.driver.replicas.lose(row.name)
    sync_platform(world.ctx)

    assert {row.phase for row in world.rows()} == {ReplicaPhase.WAITING}
    assert is_mending(world.ctx)


def test_nobody_stays_with_a_server_that_waits_for_gpus(tmp_path: Path) -> None:
    world = ServingWorld(tmp_path, gpus=2)
    world.serving(replicas=1)
    world.running(gpus_per_node=1)
    scale(world.ctx, "digits", 2, by="ann")
    world.rounds(1)
    assert is_mending(world.ctx), "its workload is not made yet"
    world.rounds(3)

    assert [row.phase for row in world.rows()] == [ReplicaPhase.HOLDING, ReplicaPhase.WAITING]
    assert not is_mending(world.ctx)


def test_nobody_stays_with_a_server_that_ends_again_and_again(world: ServingWorld) -> None:
    made = world.serving(replicas=1)
    world.driver.replicas.crash_always(f"{made.id}-1")

    assert world.driver.replicas.look(f"{made.id}-1").state is ReplicaState.BACKING_OFF
    assert not is_mending(world.ctx)


def test_a_server_that_takes_longer_than_the_patience_is_left_to_the_next_sync(world: ServingWorld) -> None:
    made = world.serving(replicas=1)
    world.driver.replicas.lose(f"{made.id}-1")
    world.driver.replicas.hold(f"{made.id}-2")
    mend(world.ctx, patience=seconds(0.5))

    assert set(world.ask(5)) == {503}
    assert is_mending(world.ctx)
    world.driver.replicas.release(f"{made.id}-2")
    sync_platform(world.ctx, patience=PATIENCE)
    assert set(world.ask(5)) == {200}


def test_a_service_that_is_taken_down_is_gone_within_one_sync_and_its_route_with_it(
    world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mending, "sleep", lambda pause_s: world.clock.advance(seconds(pause_s)))
    made = world.serving()
    close(world.ctx, "digits", by="ann")
    assert is_mending(world.ctx)
    sync_platform(world.ctx, patience=PATIENCE)

    with world.ctx.store.read() as tx:
        closed = tx.services.get(made.service_id)
    assert closed is not None
    assert not closed.is_open
    assert set(world.ask(5)) == {404}, "nobody would take the route away later"
    assert (world.rows(), world.held()) == ([], 0)
    assert not is_mending(world.ctx)


def test_where_nothing_is_missing_nothing_is_done(world: ServingWorld) -> None:
    world.serving()
    assert not is_mending(world.ctx)
