"""The tasks of ``deploy_service`` over a platform in memory: which outcome of a use case becomes which outcome of a task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    TaskAwaitingInput,
    TaskDeferred,
)
from serving_world import PLAN, ServingWorld
from structlog.testing import capture_logs

from builders import seconds
from fermion.domain.rollout.rollouts import Phase, WishKind
from fermion.domain.serving.services import SERVICE_DAG, Revision, RevisionPhase
from fermion.errors import NotFound
from fermion.usecases.serving.approvals import answer_open
from fermion.usecases.serving.wishes import close, wish
from fermion_airflow.operators import serving
from fermion_airflow.triggers.services import DeploymentTrigger

SOON_S = 20


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServingWorld:
    """Its tasks find it as they find the real one, and defer at once."""
    made = ServingWorld(tmp_path)
    monkeypatch.setattr(serving.FermionHook, "platform", lambda _: made.ctx)
    monkeypatch.setattr(serving, "ATTEMPTS_AT_ONCE", timedelta(0))
    return made


def context_of(run: Revision | str, conf: Mapping[str, object] | None = None) -> dict[str, Any]:
    """What a task sees of the run that carries the revision."""
    run_id = run if isinstance(run, str) else run.id
    dag_run = SimpleNamespace(run_id=run_id, conf=dict(conf or {}), triggering_user_name="ann")
    return {"dag_run": dag_run, "run_id": run_id, "params": {}}


def task(kind: Callable[..., Any], task_id: str = "task", **arguments: Any) -> Any:
    """One task of a DAG with the DAG's name."""
    from airflow.sdk import DAG

    with DAG(dag_id=SERVICE_DAG, schedule=None):
        return kind(task_id=task_id, retries=2, **arguments)


def stage_waited_for(deferred: TaskDeferred) -> tuple[str, str]:
    """The stage that a deferred task waits for, and the method that goes on."""
    assert isinstance(deferred.trigger, DeploymentTrigger)
    return deferred.trigger.stage, deferred.method_name


def baking(world: ServingWorld, **changes: Any) -> Revision:
    """A second revision, with its share of the requests."""
    world.serving()
    made = world.deploy(**changes)
    world.rounds(6, requests=40)
    assert world.rollout(made).phase in (Phase.WARMING, Phase.BAKING)
    return made


def promoted(world: ServingWorld) -> Revision:
    """A second revision that has taken the place of the first."""
    made = baking(world)
    world.rounds(60, requests=40)
    assert world.rollout(made).phase is Phase.PROMOTED
    return made


def rolled_back(world: ServingWorld) -> Revision:
    """A second revision that was bad, and is gone."""
    made = baking(world)
    world.driver.router.answers(made.id, 500)
    world.rounds(60, requests=40)
    assert world.revision(made).phase is RevisionPhase.FAILED
    return made


# --- check_request --------------------------------------------------------------------------------------------------


def test_the_check_makes_the_revision_of_its_run_once_and_pins_it(world: ServingWorld) -> None:
    for _ in range(2):
        task(serving.CheckRequest).execute(context_of("r1", world.service_request()))
    with world.ctx.store.read() as tx:
        made = tx.services.revision_of_run(SERVICE_DAG, "r1")
        assert len(tx.services.revisions(world.service().id)) == 1
    assert made is not None
    assert (made.spec.owner, made.model_path, made.phase) == ("ann", "digits/1", RevisionPhase.STAGING)


def test_all_that_is_wrong_with_a_request_fails_its_task_for_good_and_is_noted_on_the_run(world: ServingWorld) -> None:
    world.runs.trigger(SERVICE_DAG, "r1", {})
    wrong = world.service_request(replicas=0, image="nothing:1", model="digits/7", plann=[])
    with pytest.raises(AirflowFailException) as failed:
        task(serving.CheckRequest, "check_request").execute(context_of("r1", wrong))
    note = world.runs.notes(SERVICE_DAG, "r1")["check_request"]
    for name in ("replicas", "image", "version", "plann"):
        assert f"  - {name}: " in str(failed.value)
        assert f"**{name}**" in note
    with world.ctx.store.read() as tx:
        assert tx.services.find() == []


def test_a_check_while_the_model_repository_is_away_is_tried_again(
    world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        from fermion.errors import OutsideUnavailable

        raise OutsideUnavailable("the model repository does not answer")

    monkeypatch.setattr(type(world.models), "versions", away)
    monkeypatch.setattr(type(world.models), "get", away)
    with pytest.raises(AirflowException, match="does not answer") as failed:
        task(serving.CheckRequest).execute(context_of("r1", world.service_request()))
    assert not isinstance(failed.value, AirflowFailException)


def test_every_other_task_of_a_run_that_was_refused_fails_for_good(world: ServingWorld) -> None:
    for kind in (serving.Enqueue, serving.WaitForGpus, serving.DeployRevision, serving.Canary, serving.ReleaseGpus):
        with pytest.raises(AirflowFailException, match="carries no deployment"):
            task(kind).execute(context_of("refused"))
    with pytest.raises(AirflowSkipException, match="Nothing to tell"):
        task(serving.WriteVerdict).execute(context_of("refused"))


# --- until it is ready ----------------------------------------------------------------------------------------------


def test_gpus_that_are_free_are_granted_without_a_deferral(
    world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "ATTEMPTS_AT_ONCE", timedelta(seconds=SOON_S))
    made = world.submit_service()
    task(serving.Enqueue).execute(context_of(made))
    assert world.revision(made).phase is RevisionPhase.STAGING
    task(serving.WaitForGpus).execute(context_of(made))
    assert world.revision(made).phase is RevisionPhase.STARTING
    assert world.held() == 2
    task(serving.DeployRevision).execute(context_of(made))
    task(serving.WaitFor, stage="ready").execute(context_of(made))
    assert world.weights() == {made.id: 100}


def test_a_revision_whose_gpus_others_hold_waits_in_the_triggerer_with_all_fetched(world: ServingWorld) -> None:
    world.running(gpus_per_node=6)
    made = world.submit_service()
    with pytest.raises(TaskDeferred) as deferred:
        task(serving.WaitForGpus).execute(context_of(made))
    assert stage_waited_for(deferred.value) == ("granted", "execute")
    assert world.revision(made).phase is RevisionPhase.STARTING
    assert world.held() == 0


def test_a_service_that_was_taken_down_meanwhile_fails_whatever_waits_for_it(world: ServingWorld) -> None:
    made = world.deploy()
    close(world.ctx, "digits", by="bob")
    for kind in (serving.WaitForGpus, serving.DeployRevision, serving.Canary, serving.Promote):
        with pytest.raises(AirflowFailException, match="bob took digits down"):
            task(kind).execute(context_of(made))


def test_the_router_knows_a_deployed_revision_and_sends_it_nothing(world: ServingWorld) -> None:
    old = world.serving()
    made = world.deploy()
    with capture_logs() as logged:
        task(serving.DeployRevision).execute(context_of(made))
    assert f"The router knows {made.id}: 0 requests so far." in [str(entry["event"]) for entry in logged]
    assert world.weights() == {old.id: 100}


# --- the canary -----------------------------------------------------------------------------------------------------


def test_a_first_revision_needs_no_canary(world: ServingWorld) -> None:
    task(serving.Canary).execute(context_of(world.serving()))


def test_a_canary_is_watched_from_the_triggerer_until_it_is_judged(world: ServingWorld) -> None:
    made = baking(world)
    for kind, stage in ((serving.Canary, "judged"), (serving.Promote, "promoted"), (serving.RetireOld, "retired")):
        with pytest.raises(TaskDeferred) as deferred:
            task(kind).execute(context_of(made))
        assert stage_waited_for(deferred.value) == (stage, "execute")
    world.rounds(60, requests=40)
    for kind in (serving.Canary, serving.Promote, serving.RetireOld, serving.ReleaseGpus):
        task(kind).execute(context_of(made))


def test_a_canary_that_went_back_fails_its_task_for_good_with_the_numbers(world: ServingWorld) -> None:
    made = rolled_back(world)
    with pytest.raises(AirflowFailException, match=rf"{made.id} was not promoted: Look \d+ failed"):
        task(serving.Canary).execute(context_of(made))


def test_a_run_whose_revision_was_promoted_and_replaced_before_it_looked_ends_well(world: ServingWorld) -> None:
    made = promoted(world)
    world.deploy(plan={**PLAN, "steps": [100]}, keep_warm="0s")
    world.rounds(90, every_s=1)
    assert world.revision(made).phase is RevisionPhase.RETIRED
    for kind in (serving.Canary, serving.WatchApproval, serving.Promote, serving.RetireOld, serving.ReleaseGpus):
        task(kind).execute(context_of(made))


# --- the end --------------------------------------------------------------------------------------------------------


def test_releasing_a_revision_that_serves_leaves_it_alone_and_one_that_failed_fails_the_run(
    world: ServingWorld,
) -> None:
    made = rolled_back(world)
    with pytest.raises(AirflowFailException, match=f"{made.id} failed"):
        task(serving.ReleaseGpus).execute(context_of(made))
    old = world.service().stable
    assert (old, world.held()) == (1, 2)
    task(serving.ReleaseGpus).execute(context_of(f"{world.service().id}-r1"))
    assert world.held() == 2


def test_releasing_a_revision_that_never_came_to_serve_ends_it_and_fails_the_run(
    world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fermion.usecases.serving.release.sleep", lambda _: world.clock.advance(seconds(1)))
    old = world.serving()
    world.driver.replicas.hold(f"{old.service_id}-r2-1")
    made = world.deploy()
    world.rounds(4)
    assert world.held() == 3, "its first step needs one replica"
    with pytest.raises(AirflowFailException, match="Its run has ended"):
        task(serving.ReleaseGpus).execute(context_of(made))
    assert world.revision(made).phase is RevisionPhase.RETIRED
    assert (world.held(), world.weights()) == (2, {old.id: 100})


@pytest.mark.parametrize("is_first", [True, False], ids=["the first one", "a later one"])
def test_releasing_a_revision_that_was_never_fetched_fails_the_run(world: ServingWorld, is_first: bool) -> None:
    if not is_first:
        world.serving()
    made = world.submit_service()
    with pytest.raises(AirflowFailException, match=f"{made.id} did not come to serve"):
        task(serving.ReleaseGpus).execute(context_of(made))
    assert world.revision(made).phase is RevisionPhase.RETIRED


def test_releasing_a_first_revision_that_was_replaced_since_is_well(world: ServingWorld) -> None:
    made = world.serving(keep_warm="0s")
    world.deploy(keep_warm="0s")
    world.rounds(80, requests=40)
    assert world.revision(made).phase is RevisionPhase.RETIRED
    task(serving.ReleaseGpus).execute(context_of(made))


def test_releasing_a_canary_that_is_on_its_way_back_keeps_that_it_failed(
    world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = baking(world)
    world.driver.router.answers(made.id, 500)
    while world.rollout(made).phase is not Phase.ROLLING_BACK:
        world.rounds(1, requests=40)
    monkeypatch.setattr("fermion.usecases.serving.release.sleep", lambda _: world.clock.advance(seconds(1)))
    with pytest.raises(AirflowFailException, match=rf"{made.id} failed: Look \d+ failed"):
        task(serving.ReleaseGpus).execute(context_of(made))
    assert world.revision(made).failed


def test_the_verdict_tells_every_look_and_is_a_decision_once(world: ServingWorld) -> None:
    made = rolled_back(world)
    for _ in range(2):
        with capture_logs() as logged:
            task(serving.WriteVerdict).execute(context_of(made))
        told = str(logged[-1]["event"])
        assert all(f"look {look.number} at 20 %" in told for look in world.looks(made))
        assert "Judged again from the stored counts: the same." in told
    assert world.decisions(made.id, "rollout") == ["rolled_back"]


def take_down(world: ServingWorld) -> None:
    """Somebody closes the service."""
    close(world.ctx, "digits", by="bob")


# --- the trigger ----------------------------------------------------------------------------------------------------


@dataclass
class Waiting:
    """A trigger of the task of a run, stepped by hand."""

    world: ServingWorld
    stage: str
    run_id: str

    async def first(self, meanwhile: Callable[[], None] = lambda: None) -> Any:
        """Its event; ``meanwhile`` happens once it waits."""
        trigger = DeploymentTrigger(stage=self.stage)
        of = {"dag_id": SERVICE_DAG, "run_id": self.run_id, "task_id": "task", "map_index": -1, "id": "ti"}
        trigger.task_instance = SimpleNamespace(**of)  # type: ignore[assignment]
        waiting = asyncio.ensure_future(anext(trigger.run()))
        await asyncio.sleep(0)
        meanwhile()
        return await asyncio.wait_for(waiting, SOON_S)


@pytest.fixture
def in_triggerer(world: ServingWorld, monkeypatch: pytest.MonkeyPatch) -> ServingWorld:
    async def platform(_: object) -> Any:
        return world.ctx

    monkeypatch.setattr(serving.FermionHook, "aplatform", platform)
    return world


def test_a_trigger_fires_for_a_stage_that_is_reached_and_again_when_it_is_started_again(
    in_triggerer: ServingWorld,
) -> None:
    made = in_triggerer.serving()
    for _ in range(2):
        event = asyncio.run(Waiting(in_triggerer, "ready", made.id).first())
        assert event.payload == {"revision": made.id}


def test_a_trigger_tends_the_services_itself_and_fires_when_its_stage_comes(in_triggerer: ServingWorld) -> None:
    made = in_triggerer.deploy()
    assert in_triggerer.weights() == {}
    asyncio.run(Waiting(in_triggerer, "ready", made.id).first())
    assert in_triggerer.weights() == {made.id: 100}


def test_a_trigger_fires_when_the_deployment_is_over_without_its_stage(in_triggerer: ServingWorld) -> None:
    made = baking(in_triggerer)
    event = asyncio.run(Waiting(in_triggerer, "promoted", made.id).first(lambda: take_down(in_triggerer)))
    assert event.payload == {"revision": made.id}


def test_a_trigger_of_a_run_without_a_deployment_says_so(in_triggerer: ServingWorld) -> None:
    with pytest.raises(NotFound, match="carries no deployment"):
        asyncio.run(Waiting(in_triggerer, "ready", "refused").first())


def test_a_trigger_that_belongs_to_no_task_says_so() -> None:
    with pytest.raises(RuntimeError, match="for a task of that run"):
        asyncio.run(anext(DeploymentTrigger(stage="ready").run()))  # type: ignore[arg-type]


# --- approvals ------------------------------------------------------------------------------------------------------

ASKING = {**PLAN, "steps": [{"weight": 20, "approval": True}, {"weight": 50, "approval": True}, 100]}


@dataclass
class Person:
    """Whoever is asked, and how Airflow hands the answer over."""

    world: ServingWorld
    made: Revision
    asked: list[dict[str, Any]]

    def go_on(self, event: Mapping[str, Any] | None = None, *, step: int = 0) -> None:
        """The task that asks before that step is left begins, or goes on with what came."""
        approve = task(serving.Approve, "approve", step=step)
        context = {**context_of(self.made), "task_instance": SimpleNamespace(id="ti", map_index=step)}
        if event is None:
            approve.execute(context)
        else:
            approve.execute_complete(context, dict(event))

    def said(self, word: str, **note: str) -> dict[str, Any]:
        """The answer as Airflow hands it over."""
        user = {"id": "7", "name": "ann"}
        at = self.world.clock.now()
        return {"chosen_options": [word], "params_input": note, "responded_at": at, "responded_by_user": user}

    def until(self, phase: Phase) -> None:
        """Rounds with requests until the rollout is there."""
        for _ in range(200):
            if self.world.rollout(self.made).phase is phase:
                return
            self.world.rounds(1, requests=60)
        raise AssertionError(self.world.rollout(self.made).explanation.message)


@pytest.fixture
def person(world: ServingWorld, monkeypatch: pytest.MonkeyPatch) -> Person:
    """Asked about a canary whose plan asks twice, once its first step has passed."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **put: asked.append(put))
    found = Person(world, baking(world, plan=ASKING), asked)
    world.runs.trigger(SERVICE_DAG, found.made.id, {})
    world.runs.put_task(SERVICE_DAG, found.made.id, "approve[0]", "running")
    found.until(Phase.AWAITING_APPROVAL)
    return found


def test_nobody_is_asked_about_a_plan_that_asks_nobody(world: ServingWorld) -> None:
    second = promoted(world)
    for run in (f"{second.service_id}-r1", second.id):
        with pytest.raises(AirflowSkipException, match="Nobody was asked"):
            task(serving.Approve, step=0).execute(context_of(run))


def test_a_canary_ends_where_a_person_is_asked_and_the_question_is_noted_on_its_task(person: Person) -> None:
    task(serving.Canary).execute(context_of(person.made))
    with pytest.raises(TaskAwaitingInput) as waiting:
        person.go_on()
    assert waiting.value.method_name == "execute_complete"
    assert seconds(0) < waiting.value.timeout <= seconds(4 * 3600 + 5)
    (put,) = person.asked
    assert (put["options"], put["subject"]) == (["Approve", "Reject"], "May digits/1 go on as digits?")
    assert list(put["params"]) == ["note"]
    assert "50 % next" in put["body"]
    assert person.world.runs.notes(SERVICE_DAG, person.made.id)["approve[0]"] == put["body"]


def test_each_step_that_asks_is_asked_for_by_its_own_instance_with_its_own_text(person: Person) -> None:
    for step, weight in ((0, 50), (1, 100)):
        with pytest.raises(TaskAwaitingInput):
            person.go_on(step=step)
        assert f"{weight} % next" in person.asked[-1]["body"]
        if step == 0:
            with pytest.raises(TaskDeferred) as deferred:
                person.go_on(step=1)
            assert (stage_waited_for(deferred.value), deferred.value.trigger.step) == (("asked", "execute"), 1)
        person.world.clock.advance(seconds(1))
        with pytest.raises(TaskDeferred) as deferred:
            person.go_on(person.said("Approve", note="go"), step=step)
        assert (stage_waited_for(deferred.value), deferred.value.trigger.step) == (("asked", "execute"), step)
        person.world.rounds(1, requests=60)
        person.go_on({"revision": person.made.id}, step=step)
        if step == 0:
            person.until(Phase.AWAITING_APPROVAL)
    person.until(Phase.PROMOTED)
    kept = person.world.decisions(person.made.id, "approval")
    assert kept == ["approved", "approved"]


def test_a_step_that_was_not_asked_for_before_the_rollout_went_back_is_skipped(person: Person) -> None:
    with pytest.raises(TaskDeferred):
        person.go_on(person.said("Reject"), step=0)
    person.until(Phase.ROLLED_BACK)
    person.go_on({"revision": person.made.id}, step=0)
    with pytest.raises(AirflowSkipException):
        person.go_on({"revision": person.made.id}, step=1)


def test_a_rejection_goes_back_and_the_run_fails_with_who_said_it(person: Person) -> None:
    with pytest.raises(TaskDeferred):
        person.go_on(person.said("Reject", note="not today"))
    person.until(Phase.ROLLED_BACK)
    person.go_on({"revision": person.made.id})
    person.world.runs.put_task(SERVICE_DAG, person.made.id, "approve[0]", "success")
    with pytest.raises(AirflowFailException, match=r"Rejected by ann\. not today"):
        task(serving.WatchApproval).execute(context_of(person.made))


def test_a_question_whose_time_is_over_is_asked_again_once_the_rollout_was_resumed(person: Person) -> None:
    person.world.clock.advance(seconds(4 * 3600))
    person.until(Phase.PAUSED)
    with pytest.raises(TaskDeferred) as deferred:
        person.go_on({"error": "The response timeout has passed", "error_type": "timeout"})
    assert stage_waited_for(deferred.value) == ("asked", "execute")
    wish(person.world.ctx, "digits", WishKind.RESUME, by="ann")
    person.world.rounds(1, requests=60)
    person.until(Phase.AWAITING_APPROVAL)
    with pytest.raises(TaskAwaitingInput):
        person.go_on({"revision": person.made.id})


def test_an_answer_that_was_taken_at_the_terminal_is_not_taken_twice(person: Person) -> None:
    with pytest.raises(TaskAwaitingInput):
        person.go_on()
    person.world.runs.put_task(SERVICE_DAG, person.made.id, "approve[0]", "awaiting_input")
    answer_open(person.world.ctx, person.world.runs, "digits", approved=True, by="bob", note="seen")
    given = person.world.runs.answers(SERVICE_DAG, person.made.id)["approve[0]"]
    with pytest.raises(TaskDeferred):
        person.go_on({**person.said("Approve"), **given})
    with person.world.ctx.store.read() as tx:
        kept = tx.records.decisions(subject=person.made.id, kind="approval")
    assert [each.inputs["by"] for each in kept] == ["bob"]


def test_an_approval_of_a_stranger_is_refused_and_asked_for_again(
    world: ServingWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr("airflow.providers.standard.operators.hitl.upsert_hitl_detail", lambda **put: asked.append(put))
    found = Person(world, baking(world, plan={**ASKING, "approvers": ["cara"]}), asked)
    world.runs.trigger(SERVICE_DAG, found.made.id, {})
    found.until(Phase.AWAITING_APPROVAL)
    with pytest.raises(TaskAwaitingInput):
        found.go_on()
    with pytest.raises(TaskAwaitingInput):
        found.go_on(found.said("Approve"))
    assert "An approval by ann was refused: cara may approve this rollout." in asked[-1]["body"]
    assert world.decisions(found.made.id, "approval") == ["refused"]


def test_looks_that_fail_while_a_person_is_asked_go_back_and_close_the_question(person: Person) -> None:
    with pytest.raises(TaskDeferred) as deferred:
        task(serving.WatchApproval).execute(context_of(person.made))
    assert stage_waited_for(deferred.value) == ("answered", "execute")
    person.world.driver.router.answers(person.made.id, 500)
    person.until(Phase.ROLLING_BACK)
    person.world.runs.put_task(SERVICE_DAG, person.made.id, "approve[0]", "awaiting_input")
    with pytest.raises(AirflowFailException, match=r"was not promoted: Look \d+ failed"):
        task(serving.WatchApproval).execute(context_of(person.made))
    assert person.world.runs.state(SERVICE_DAG, person.made.id).tasks["approve[0]"] == "skipped"


def test_a_promotion_by_hand_closes_the_question_and_fails_nothing(person: Person) -> None:
    wish(person.world.ctx, "digits", WishKind.PROMOTE, by="ann")
    person.until(Phase.PROMOTING)
    person.world.runs.put_task(SERVICE_DAG, person.made.id, "approve[0]", "awaiting_input")
    task(serving.WatchApproval).execute(context_of(person.made))
    assert person.world.runs.state(SERVICE_DAG, person.made.id).tasks["approve[0]"] == "skipped"


def test_a_question_that_is_just_being_asked_is_closed_once_it_is_asked(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[str] = []

    def park(_: float) -> None:
        waited.append("a moment")
        person.world.runs.put_task(SERVICE_DAG, person.made.id, "approve[0]", "awaiting_input")

    wish(person.world.ctx, "digits", WishKind.PROMOTE, by="ann")
    person.until(Phase.PROMOTING)
    monkeypatch.setattr(serving, "sleep", park)
    task(serving.WatchApproval).execute(context_of(person.made))
    assert waited == ["a moment"]
    assert person.world.runs.state(SERVICE_DAG, person.made.id).tasks["approve[0]"] == "skipped"
