"""What failed in a service is not tried in it again by itself, whoever asks; a person may want it all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from serving_world import ServingWorld

from fermion.domain.reasons import Reason
from fermion.domain.serving.services import SERVICE_DAG, Revision, RevisionPhase
from fermion.errors import RequestRefused
from fermion.usecases.serving.follow import release_versions
from fermion.usecases.serving.queries import deployment
from fermion.usecases.serving.stage import stage
from fermion.usecases.serving.submit import RETRIED, launch, submit
from fermion.usecases.serving.wishes import roll_back


@pytest.fixture
def world(tmp_path: Path) -> ServingWorld:
    """With a service that serves, and a version of its model that was rolled back."""
    made = ServingWorld(tmp_path)
    made.serving(follow=True)
    made.publish("bad")
    fail(made, made.deploy(follow=True))
    return made


def fail(world: ServingWorld, made: Revision) -> None:
    """The revision is tried, and answers with errors until it is rolled back."""
    world.driver.router.answers(made.id, 500)
    for _ in range(120):
        if world.revision(made).phase is RevisionPhase.FAILED:
            return
        world.rounds(1, requests=40)
    raise AssertionError(world.revision(made).explanation.message)


def numbers(world: ServingWorld) -> list[int]:
    with world.ctx.store.read() as tx:
        return [each.number for each in tx.services.revisions(world.service().id)]


def test_every_door_refuses_what_failed_and_nothing_is_left_of_the_request(world: ServingWorld) -> None:
    request = world.service_request(version=2)
    with world.ctx.store.read() as tx:
        told = tx.services.revisions(world.service().id)[1].explanation.message
    doors: dict[str, Any] = {
        "a run": lambda: submit(world.ctx, request, run_id="scheduled__2026-11-24", actor="ann"),
        "the command line": lambda: launch(world.ctx, world.runs, request, actor="ann"),
        "the newest version": lambda: submit(world.ctx, world.service_request(), run_id="ci-7", actor="ann"),
    }
    for name, door in doors.items():
        with pytest.raises(RequestRefused) as refused:
            door()
        (problem,) = refused.value.problems
        assert problem.code == "failed_before", name
        assert "failed as inf-digits-001-r2" in problem.message
        assert told in problem.message
    assert numbers(world) == [1, 2]


def test_a_version_with_the_same_files_is_not_released_by_itself_and_the_next_one_is(world: ServingWorld) -> None:
    world.publish("bad")
    (refused,) = release_versions(world.ctx, world.runs, {"digits/3"})
    assert "failed as inf-digits-001-r2" in str(refused.refused)
    with world.ctx.store.read() as tx:
        (kept,) = tx.records.decisions(subject=world.service().id, kind="follow")
    assert (kept.verdict, kept.reason) == ("refused", "failed_before")
    world.publish("good")
    assert [each.path for each in release_versions(world.ctx, world.runs, {"digits/4"}) if each.revision] == [
        "digits/4"
    ]


def test_a_person_may_have_it_tried_again_and_is_named(world: ServingWorld) -> None:
    made = launch(world.ctx, world.runs, world.service_request(retry_failed=True), actor="ann")
    with world.ctx.store.read() as tx:
        (kept,) = tx.records.decisions(subject=made.id, kind=RETRIED)
    assert (kept.verdict, kept.inputs["by"], kept.inputs["failed"]) == ("allowed", "ann", "inf-digits-001-r2")
    assert "ann asked to try it again, although" in kept.message
    assert world.runs.conf(SERVICE_DAG, made.id)["retry_failed"] is True, "the run's own check passes too"


def test_who_asks_to_try_again_what_never_failed_is_not_written_down_as_that(world: ServingWorld) -> None:
    world.publish("good")
    made = world.submit_service(retry_failed=True)
    assert world.decisions(made.id, RETRIED) == []


def test_that_a_person_had_something_tried_again_does_not_hold_for_the_versions_that_follow(
    world: ServingWorld,
) -> None:
    fail(world, world.deploy(follow=True, retry_failed=True))
    world.publish("bad")
    (refused,) = release_versions(world.ctx, world.runs, {"digits/3"})
    assert "failed as inf-digits-001-r3" in str(refused.refused)


def test_what_was_tried_again_and_serves_needs_no_more_permission_until_somebody_goes_back(world: ServingWorld) -> None:
    made = world.deploy(retry_failed=True)
    world.rounds(80, requests=40)
    assert world.service().stable == made.number
    last = world.submit_service()
    assert last.number == 4
    stage(world.ctx, last.service_id, last.number)
    world.rounds(80, requests=40)
    roll_back(world.ctx, "digits", to=None, by="ann")
    with pytest.raises(RequestRefused, match="ann went back"):
        world.submit_service()


def test_what_waits_while_the_same_thing_fails_is_not_tried(tmp_path: Path) -> None:
    world = ServingWorld(tmp_path, gpus=8)
    world.serving()
    world.publish("bad")
    first, second, wanted = world.deploy(), world.deploy(), world.deploy(retry_failed=True)
    fail(world, first)
    world.rounds(6, requests=40)
    after = world.revision(second)
    assert (after.phase, after.explanation.reason) == (RevisionPhase.RETIRED, Reason.FAILED_BEFORE)
    assert f"failed as {first.id}" in after.explanation.message
    assert deployment(world.ctx, second.service_id, second.number).rollout is None
    assert world.service().candidate == wanted.number, "that was asked for"


def test_a_mended_server_is_another_thing(world: ServingWorld) -> None:
    assert world.submit_service(command="serve --mended --port {port:http}").number == 3
