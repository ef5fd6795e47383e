"""Services from request to rollback, over a whole platform in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving_world import PLAN, ServingWorld

from builders import seconds
from fermion.domain.reasons import Reason
from fermion.domain.rollout.looks import Outcome
from fermion.domain.rollout.replay import replay
from fermion.domain.rollout.rollouts import Phase
from fermion.domain.serving.routing import RouteTable
from fermion.domain.serving.services import ReplicaPhase, Revision, RevisionPhase, move_replica
from fermion.errors import OutsideBroken, OutsideUnavailable, RequestRefused
from fermion.usecases.doctor import examine
from fermion.usecases.serving import sync as serving_sync
from fermion.usecases.serving.release import release
from fermion.usecases.serving.stage import stage
from fermion.usecases.serving.steer import Steering
from fermion.usecases.serving.sync import sync_services
from fermion.usecases.serving.tend import ServiceTender
from fermion.usecases.serving.wishes import close, roll_back, scale


@pytest.fixture
def world(tmp_path: Path) -> ServingWorld:
    return ServingWorld(tmp_path)


# --- fetching -------------------------------------------------------------------------------------------------------


def test_what_is_not_what_was_pinned_ends_the_revision_with_that_as_its_reason(world: ServingWorld) -> None:
    made = world.submit_service()
    image = world.driver.images.known()[0]
    world.driver.images.put(replace(image, digest="sha256:" + "2" * 64))
    with pytest.raises(OutsideBroken, match="was pinned as"):
        stage(world.ctx, made.service_id, made.number)
    release(world.ctx, made.service_id, made.number, why="Its run has ended.")
    after = world.revision(made)
    assert (after.phase, after.explanation.reason) == (RevisionPhase.RETIRED, Reason.STAGING_FAILED)
    assert "was pinned as" in after.explanation.message


def test_what_cannot_be_fetched_now_may_be_fetched_later(world: ServingWorld) -> None:
    made = world.submit_service()
    with world.line_cut(), pytest.raises(OutsideUnavailable):
        stage(world.ctx, made.service_id, made.number)
    assert stage(world.ctx, made.service_id, made.number).phase is RevisionPhase.STARTING


# --- the first revision ---------------------------------------------------------------------------------------------


def test_the_first_revision_serves_once_all_of_its_replicas_are_ready(world: ServingWorld) -> None:
    made = world.deploy()
    assert (made.id, made.phase, made.model_path) == ("inf-digits-001-r1", RevisionPhase.STARTING, "digits/1")
    world.driver.replicas.hold("inf-digits-001-r1-2")
    world.rounds(5)
    assert world.weights() == {}, "half of it is not it"
    assert world.held() == 2
    world.driver.replicas.release("inf-digits-001-r1-2")
    world.rounds(3)
    assert world.weights() == {"inf-digits-001-r1": 100}
    assert set(world.ask(20)) == {200}
    assert (world.service().stable, world.service().candidate) == (1, None)


def test_a_first_revision_that_crashes_at_its_start_fails_and_holds_nothing(world: ServingWorld) -> None:
    made = world.deploy()
    world.rounds(2)
    for row in world.rows():
        world.driver.replicas.crash_always(row.name)
    world.rounds(60, every_s=1)
    after = world.revision(made)
    assert after.phase is RevisionPhase.FAILED
    assert "was started" in after.explanation.message
    assert world.held() == 0
    assert world.rows() == []
    assert world.driver.replicas.names() == []


def test_replicas_wait_in_line_and_start_when_gpus_are_free(tmp_path: Path) -> None:
    world = ServingWorld(tmp_path, gpus=2)
    job = world.running(gpus_per_node=1)
    made = world.deploy()
    world.rounds(4)
    assert [row.phase for row in world.rows()] == [ReplicaPhase.HOLDING, ReplicaPhase.WAITING]
    waiting = world.rows(ReplicaPhase.WAITING)[0]
    assert waiting.explanation.reason == "waiting_for_quota"
    world.driver.workloads.exit(world.name(job.id))
    world.tend()
    world.rounds(4)
    assert world.revision(made).phase is RevisionPhase.SERVING


def test_a_service_does_not_take_gpus_from_a_job_unless_it_asks_to_borrow(tmp_path: Path) -> None:
    world = ServingWorld(tmp_path, gpus=2)
    job = world.running(gpus_per_node=2)
    world.deploy(replicas=1)
    world.rounds(4)
    world.tend()
    assert world.job(job.id).preempted_for is None
    world.deploy(name="other", replicas=1, capacity="borrow")
    world.rounds(4)
    assert world.job(job.id).preempted_for == "inf-other-001-r1-1"


# --- a canary that is as good ---------------------------------------------------------------------------------------


def test_a_good_canary_is_promoted_and_the_old_revision_stays_warm_for_its_time(world: ServingWorld) -> None:
    old = world.serving()
    world.publish("better")
    new = world.deploy()
    world.rounds(6, requests=40)
    assert world.weights() == {old.id: 80, new.id: 20}
    assert world.service().candidate == 2
    world.rounds(60, requests=40)
    assert world.rollout(new).phase is Phase.PROMOTED
    assert world.weights() == {new.id: 100}
    assert (world.service().stable, world.service().candidate) == (2, None)
    assert world.revision(old).phase is RevisionPhase.WARM
    assert world.held() == 4, "the old one is warm"
    looks = world.looks(new)
    assert {look.outcome for look in looks} <= {Outcome.PASS, Outcome.NODATA}
    assert not replay(world.rollout(new).plan, looks)
    world.rounds(70, every_s=1)
    assert world.revision(old).phase is RevisionPhase.RETIRED
    assert world.held() == 2


def test_without_requests_nothing_is_promoted_and_a_person_is_asked(world: ServingWorld) -> None:
    world.serving()
    new = world.deploy()
    world.rounds(60, every_s=1)
    rollout = world.rollout(new)
    assert rollout.phase is Phase.PAUSED
    assert rollout.explanation.reason == "undecided"
    assert world.weights()[new.id] == 20


# --- a canary that is worse -----------------------------------------------------------------------------------------


def test_a_canary_that_answers_500_is_rolled_back_weights_first(world: ServingWorld) -> None:
    old = world.serving()
    new = world.deploy()
    world.rounds(6, requests=40)
    world.driver.router.answers(new.id, 500, 500, 200)
    world.rounds(40, requests=40)
    assert world.weights() == {old.id: 100}
    world.rounds(20, requests=40)
    rollout = world.rollout(new)
    assert (rollout.phase, rollout.explanation.reason) == (Phase.ROLLED_BACK, "failed")
    world.rounds(40, requests=10)
    after = world.revision(new)
    assert (after.phase, after.failed) == (RevisionPhase.FAILED, True)
    assert world.held() == 2
    assert world.service().stable == 1


def test_a_canary_that_crashes_under_requests_is_rolled_back(world: ServingWorld) -> None:
    old = world.serving()
    new = world.deploy()
    world.rounds(6, requests=40)
    world.driver.replicas.crash_always(f"{new.id}-1")
    world.rounds(60, every_s=1, requests=10)
    assert world.rollout(new).phase is Phase.ROLLED_BACK
    assert world.weights() == {old.id: 100}


def test_a_canary_without_a_ready_replica_gets_no_requests_until_one_is_back(world: ServingWorld) -> None:
    old = world.serving()
    new = world.deploy()
    world.rounds(6, requests=40)
    assert world.weights()[new.id] == 20
    world.driver.replicas.unready(f"{new.id}-1")
    world.rounds(2)
    assert world.weights() == {old.id: 100}
    assert world.rollout(new).phase is Phase.SHIFTING, "it is neither judged by that nor given up yet"
    world.driver.replicas.ready(f"{new.id}-1")
    world.rounds(3)
    assert world.weights()[new.id] == 20


def test_a_canary_keeps_its_share_where_stable_cannot_answer_either(world: ServingWorld) -> None:
    old = world.serving()
    new = world.deploy()
    world.rounds(6, requests=40)
    for name in (f"{new.id}-1", f"{old.id}-1", f"{old.id}-2"):
        world.driver.replicas.unready(name)
    world.rounds(2)
    assert world.weights()[new.id] == 20


def test_a_router_that_cannot_be_read_is_neither_a_pass_nor_a_failure(
    world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.serving()
    new = world.deploy()
    world.rounds(14, requests=40)
    assert world.rollout(new).phase is Phase.BAKING
    before = len(world.looks(new))

    def silent(backends: object) -> object:
        from fermion.errors import OutsideUnavailable

        raise OutsideUnavailable("the router does not answer", what="router")

    monkeypatch.setattr(world.driver.router, "counters", silent)
    world.rounds(40, requests=40)
    later = world.looks(new)[before:]
    assert later
    assert {look.outcome for look in later} == {Outcome.ERROR}
    assert world.rollout(new).phase is Phase.BAKING


# --- several, and ends of runs --------------------------------------------------------------------------------------


def test_a_second_deployment_waits_for_the_first_and_holds_nothing_meanwhile(world: ServingWorld) -> None:
    world.serving()
    second, third = world.deploy(), world.deploy()
    world.rounds(6, requests=40)
    assert world.service().candidate == second.number
    assert {row.revision for row in world.rows()} == {"inf-digits-001-r1", second.id}
    for _ in range(100):
        world.rounds(1, requests=40)
        if world.rollout(second).phase is Phase.PROMOTED:
            break
    world.rounds(1)
    assert (world.service().stable, world.service().candidate) == (second.number, third.number)


def test_a_deployment_that_supersedes_ends_the_one_under_way(world: ServingWorld) -> None:
    world.serving()
    second = world.deploy()
    world.rounds(6, requests=40)
    third = world.deploy(when_busy="supersede")
    world.rounds(30, requests=40)
    assert world.rollout(second).explanation.reason == "superseded"
    assert world.service().candidate == third.number
    assert not world.revision(second).failed, "nobody found anything wrong with it"


def test_a_run_that_ends_in_the_middle_leaves_stable_alone_and_nothing_of_the_candidate(world: ServingWorld) -> None:
    old = world.serving()
    new = world.deploy()
    world.rounds(8, requests=40)
    assert world.weights()[new.id] == 20

    class Passing:
        def round(self) -> None:
            world.rounds(1, every_s=1, requests=5)

    import fermion.usecases.serving.release as module

    original = module.ServiceTender
    module.ServiceTender = lambda ctx: Passing()  # type: ignore[assignment,misc]
    try:
        release(world.ctx, new.service_id, new.number, why="the run was marked failed")
    finally:
        module.ServiceTender = original  # type: ignore[misc]
    assert world.weights() == {old.id: 100}
    assert world.held() == 2
    assert world.revision(old).phase is RevisionPhase.SERVING


@pytest.mark.parametrize("state", ["absent", "failed", "success"])
def test_a_candidate_whose_run_is_gone_is_let_go_by_the_sync_requests_first(
    world: ServingWorld, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_sync, "LET_GO_WITHIN", seconds(0))  # the clock of this world does not move by itself
    old = world.serving()
    new = world.deploy(plan={**PLAN, "bake_min": "300s", "bake_max": "600s"})
    _runs(world, old, new)
    world.rounds(40, every_s=1, requests=5)
    sync_services(world.ctx)
    assert world.weights()[new.id] == 20, "its run goes on"

    if state == "absent":
        world.runs.delete("deploy_service", new.id)
    else:
        world.runs.end("deploy_service", new.id, state)
    sync_services(world.ctx)
    assert world.weights() == {old.id: 100}
    world.rounds(20, every_s=1, requests=5)
    assert world.rollout(new).phase is Phase.ROLLED_BACK
    assert "The sync found that its run" in world.rollout(new).explanation.message
    assert world.held() == 2
    assert world.revision(old).phase is RevisionPhase.SERVING, "the run of what serves has ended long ago"


def test_a_revision_that_never_got_a_run_is_let_go_after_a_while(
    world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_sync, "LET_GO_WITHIN", seconds(0))
    made = world.submit_service()
    for advance_s, phase in ((60, RevisionPhase.STAGING), (600, RevisionPhase.RETIRED)):
        world.clock.advance(seconds(advance_s))
        sync_services(world.ctx)
        world.rounds(1)
        assert world.revision(made).phase is phase


def test_while_the_engine_does_not_answer_no_candidate_is_let_go(world: ServingWorld) -> None:
    world.serving()
    new = world.deploy(plan={**PLAN, "bake_min": "300s", "bake_max": "600s"})
    world.rounds(40, every_s=1, requests=5)
    world.runs.line.cut()
    sync_services(world.ctx)
    assert world.weights()[new.id] == 20


def _runs(world: ServingWorld, *revisions: Revision) -> None:
    """They are carried by runs; that of the first has ended."""
    for revision in revisions:
        world.runs.trigger("deploy_service", revision.id, {})
        world.runs.put_task("deploy_service", revision.id, "canary", "deferred")
    world.runs.end("deploy_service", revisions[0].id)


def test_gpus_that_are_short_at_the_promotion_are_taken_replica_by_replica(tmp_path: Path) -> None:
    world = ServingWorld(tmp_path, gpus=3)
    old = world.serving()
    new = world.deploy()
    least = 2
    for _ in range(400):
        world.rounds(1, requests=10)
        serving = sum(len(backend.endpoints) > 0 for backend in world.driver.router._table.backends)
        assert serving >= 1
        assert world.held() <= 3
        least = min(least, len(world.rows(ReplicaPhase.HOLDING)))
        if world.rollout(new).phase is Phase.PROMOTED:
            break
    assert world.weights() == {new.id: 100}
    assert least >= 2, "never fewer replicas than the service has"
    assert world.revision(old).phase is not RevisionPhase.SERVING


# --- people ---------------------------------------------------------------------------------------------------------


def test_a_rollback_to_a_warm_revision_starts_nothing(world: ServingWorld) -> None:
    old = world.serving()
    new = world.deploy()
    world.rounds(80, requests=40)
    assert world.revision(old).phase is RevisionPhase.WARM
    before = {row.name for row in world.rows(ReplicaPhase.HOLDING) if row.revision == old.id}
    roll_back(world.ctx, "digits", to=None, by="ann")
    world.rounds(1)
    assert world.weights() == {old.id: 100}
    assert {row.name for row in world.rows(ReplicaPhase.HOLDING) if row.revision == old.id} == before
    world.rounds(20)
    assert world.revision(new).failed
    assert world.held() == 2


def test_whoever_read_before_a_rollback_does_not_put_the_weights_back(
    world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = world.serving()
    world.deploy()
    world.rounds(80, requests=40)
    slow = ServiceTender(world.ctx)
    steer = slow.steering.steer

    def meanwhile(*scene: Any) -> Any:
        steered = steer(*scene)
        roll_back(world.ctx, "digits", to=None, by="ann")
        monkeypatch.undo()
        world.services.round()
        assert world.weights() == {old.id: 100}
        return steered

    monkeypatch.setattr(Steering, "steer", lambda self, *scene: meanwhile(*scene))
    slow.round()
    assert world.weights() == {old.id: 100}


def test_scaling_up_and_down_follows_the_wish(world: ServingWorld) -> None:
    world.serving()
    scale(world.ctx, "digits", 4, by="ann")
    world.rounds(5)
    assert world.held() == 4
    scale(world.ctx, "digits", 1, by="ann")
    world.rounds(10)
    assert world.held() == 1
    assert [row.number for row in world.rows()] == [1], "the newest go first"
    with pytest.raises(RequestRefused, match="pool local/declared has 6"):
        scale(world.ctx, "digits", 7, by="ann")


def test_a_replica_that_is_lost_is_replaced_and_its_lease_ends(world: ServingWorld) -> None:
    made = world.serving()
    world.driver.replicas.lose(f"{made.id}-1")
    world.rounds(6)
    assert sorted(row.number for row in world.rows()) == [2, 3]
    assert world.held() == 2
    assert world.weights() == {made.id: 100}


def test_what_goes_wrong_with_one_service_keeps_nobody_from_looking_after_the_others(
    world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.deploy(replicas=1)
    other = world.deploy(name="other", replicas=1)
    steer = Steering.steer

    def breaks(self: Steering, driver: Any, service: Any, *scene: Any) -> Any:
        if service.name == "digits":
            raise RuntimeError("a bug")
        return steer(self, driver, service, *scene)

    monkeypatch.setattr(Steering, "steer", breaks)
    world.rounds(6)
    assert world.revision(other).phase is RevisionPhase.SERVING


def test_a_closed_service_leaves_nothing_and_its_name_is_free(world: ServingWorld) -> None:
    world.serving()
    close(world.ctx, "digits", by="ann")
    world.rounds(20)
    assert world.held() == 0
    assert world.rows() == []
    again = world.deploy()
    assert again.service_id == "inf-digits-002"


# --- requests -------------------------------------------------------------------------------------------------------


def test_everything_wrong_with_a_request_is_one_answer_and_leaves_nothing(world: ServingWorld) -> None:
    with pytest.raises(RequestRefused) as refused:
        world.submit_service(model="digits/9", image="nothing:1", replicas=7, plan={**PLAN, "alpha": 2})
    assert sorted(problem.field for problem in refused.value.problems) == ["image", "plan.alpha", "version"]
    with pytest.raises(RequestRefused) as refused:
        world.submit_service(replicas=7)
    assert [problem.code for problem in refused.value.problems] == ["over_capacity"]
    with world.ctx.store.read() as tx:
        assert not tx.services.find()


def test_a_model_whose_files_were_changed_on_disk_is_refused(world: ServingWorld) -> None:
    version = world.models.versions("digits")[0]
    file = world.folder / "models" / "digits" / "1" / "model.joblib"
    file.chmod(0o644)
    file.write_text("something else")
    with pytest.raises(RequestRefused, match="damaged"):
        world.submit_service()
    assert version.number == 1


def test_a_run_carries_one_revision(world: ServingWorld) -> None:
    first = world.submit_service(run_id="r1")
    assert world.submit_service(run_id="r1") == first
    with pytest.raises(RequestRefused, match="already carries"):
        world.submit_service(run_id="r1", replicas=1)


def test_two_services_on_one_route_are_refused(world: ServingWorld) -> None:
    world.serving()
    with pytest.raises(RequestRefused, match="would also be service 'digits'"):
        world.submit_service(name="other", prefix="/digits/v2")


# --- what the doctor says -------------------------------------------------------------------------------------------


def test_a_router_that_does_not_do_what_is_wished_is_not_well(world: ServingWorld) -> None:
    world.serving()
    assert next(check for check in examine(world.ctx).checks if check.name == "router local").ok
    world.driver.router.apply(RouteTable())
    check = next(check for check in examine(world.ctx).checks if check.name == "router local")
    assert (check.ok, "digits" in check.detail) == (False, True)
    world.driver.line.cut()
    assert not next(check for check in examine(world.ctx).checks if check.name == "router local").ok


def test_a_lease_that_no_replica_holds_is_a_leak_until_the_next_sync(world: ServingWorld) -> None:
    made = world.serving()
    row = world.rows()[0]
    with world.ctx.store.begin() as tx:
        ended = move_replica(row, ReplicaPhase.ENDED, row.explanation, world.clock.now())
        assert tx.replicas.save(ended) is not None
    world.driver.replicas.lose(row.name)
    world.clock.advance(seconds(10))
    assert (examine(world.ctx).leaked_gpu_seconds or 0) > 0
    sync_services(world.ctx)
    assert examine(world.ctx).leaked_gpu_seconds == 0
    assert world.revision(made).phase is RevisionPhase.SERVING
