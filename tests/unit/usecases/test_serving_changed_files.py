"""The files of a model that serves are changed: what runs goes on, nothing starts from them, and the reason can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving_world import ServingWorld

from fermion.domain.reasons import Reason
from fermion.domain.serving.replicas import ReplicaState
from fermion.domain.serving.services import Replica, ReplicaPhase, Revision
from fermion.domain.workloads import ExitCause
from fermion.usecases.serving.queries import service_state
from fermion.usecases.serving.wishes import close


@pytest.fixture
def world(tmp_path: Path) -> ServingWorld:
    return ServingWorld(tmp_path)


@pytest.fixture
def served(world: ServingWorld) -> Revision:
    return world.serving()


def states(world: ServingWorld) -> list[tuple[Replica, ReplicaState | None]]:
    return [(row, seen and seen.state) for row, seen in service_state(world.ctx, "digits", traffic_of=()).replicas]


def leases(world: ServingWorld) -> int:
    with world.ctx.store.read() as tx:
        return len(tx.leases.live())


def test_a_replica_that_cannot_be_staged_waits_without_gpus_and_says_why(world: ServingWorld, served: Revision) -> None:
    gone, kept = (row.name for row, _ in states(world))
    world.driver.models.spoil(served.pins.model_checksum)
    world.driver.replicas.lose(gone)
    world.rounds(6)
    (running, state), (waiting, _) = states(world)
    assert (running.name, state) == (kept, ReplicaState.READY), "what runs goes on"
    assert (waiting.phase, waiting.prepared_at) == (ReplicaPhase.WAITING, None)
    assert waiting.explanation.reason is Reason.STAGING_FAILED
    assert "is not sha256:" in waiting.explanation.message
    assert leases(world) == 1

    world.driver.models.restore(served.pins.model_checksum)
    world.rounds(6)
    assert [state for _, state in states(world)] == [ReplicaState.READY] * 2
    assert Reason.STAGING_FAILED not in {row.explanation.reason for row, _ in states(world)}


def test_one_that_cannot_be_staged_keeps_no_other_from_giving_its_gpus_back(
    world: ServingWorld, served: Revision
) -> None:
    world.driver.models.spoil(served.pins.model_checksum)
    for row, _ in states(world):
        world.driver.replicas.lose(row.name)
    world.rounds(6)
    assert {row.phase for row, _ in states(world)} == {ReplicaPhase.WAITING}
    assert leases(world) == 0
    close(world.ctx, "digits", by="ann")
    world.rounds(6)
    assert not world.service(served.service_id).is_open


def test_files_are_put_right_for_a_server_that_could_not_be_executed(world: ServingWorld, served: Revision) -> None:
    row, _ = states(world)[0]
    for _ in range(2):  # the first start after an end comes at once
        world.driver.replicas.crash(row.name, cause=ExitCause.NEVER_STARTED, detail="a file is not what was published")
    world.driver.models.spoil(served.pins.model_checksum)
    world.rounds(1)
    assert states(world)[0][0].explanation.reason is Reason.STAGING_FAILED
    world.driver.models.restore(served.pins.model_checksum)
    world.driver.models.staged.clear()
    world.rounds(1)
    assert list(world.driver.models.staged) == [served.pins.model_checksum]
    assert states(world)[0][0].explanation.reason is Reason.STAGING


def test_a_server_that_crashes_by_itself_has_nothing_fetched_for_it(world: ServingWorld, served: Revision) -> None:
    row, _ = states(world)[0]
    for _ in range(2):
        world.driver.replicas.crash(row.name)
    world.driver.models.staged.clear()
    world.rounds(1)
    assert not world.driver.models.staged
