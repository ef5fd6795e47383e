"""The output checks of a plan, over a whole platform in memory: whom they ask, when, and what follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from serving_world import PLAN, ServingWorld, doubled

from fermion.domain.rollout.looks import RULE_VERSION, Outcome
from fermion.domain.rollout.replay import replay
from fermion.domain.rollout.rollouts import Phase
from fermion.domain.serving.services import RevisionPhase
from fermion.domain.serving.tensors import Tensor
from fermion.errors import RequestRefused

CHECK = {
    "name": "halves",
    "inputs": [{"name": "x", "datatype": "FP64", "shape": [2, 1], "data": 0.5}],
    "outputs": [{"name": "doubled", "datatype": "FP64", "shape": [-1, 1], "range": [1, 1]}],
}
CHECKED = {**PLAN, "output_checks": [CHECK]}


@pytest.fixture
def world(tmp_path: Path) -> ServingWorld:
    return ServingWorld(tmp_path)


def no_numbers(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    return [replace(each, data=(math.nan,) * len(each.data)) for each in doubled(inputs)]


def too_late(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    raise TimeoutError


def boom(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    raise RuntimeError("boom")


def test_a_canary_that_gives_what_is_expected_is_asked_before_its_traffic_and_at_every_look(
    world: ServingWorld,
) -> None:
    world.serving(replicas=4)
    new = world.deploy(replicas=4, plan={**CHECKED, "steps": [50, 100], "bake_min": "8s"})
    world.rounds(90, requests=40)
    assert world.rollout(new).phase is Phase.PROMOTED
    looks = world.looks(new)
    assert (looks[0].measured.weight_percent, looks[0].metrics) == (0, ())
    assert len(looks) > 2
    asked = [each.measured.checks[0].replica for each in looks]
    assert asked == [f"{new.id}-{1 + number % 2}" for number in range(len(looks))], "its two replicas in turn"
    assert all(each.has_passed_checks for each in looks)
    assert replay(world.rollout(new).plan, looks) == []


def test_a_canary_that_gives_no_numbers_never_gets_a_request(world: ServingWorld) -> None:
    old = world.serving()
    world.inference.answers[f"{old.service_id}-r2"] = no_numbers
    new = world.deploy(plan=CHECKED)
    world.rounds(20, requests=20)
    rollout = world.rollout(new)
    assert (rollout.phase, rollout.explanation.reason) == (Phase.ABORTED, "failed")
    assert "output 'doubled' holds 2 of 2 values that are not finite (nan)" in rollout.explanation.message
    counted = world.driver.router.counters([new.id])
    assert new.id not in counted or counted[new.id].requests == 0
    assert world.weights() == {old.id: 100}
    (look,) = world.looks(new)
    assert replay(rollout.plan, [look]) == []
    assert (look.outcome, look.measured.checks[0].outputs[0].not_finite) == (Outcome.FAIL, 2)
    world.rounds(20)
    assert (world.revision(new).phase, world.revision(new).failed) == (RevisionPhase.FAILED, True)
    assert world.held() == 2


def test_outputs_that_go_wrong_under_traffic_go_back_to_stable_although_every_status_is_200(
    world: ServingWorld,
) -> None:
    old = world.serving()
    new = world.deploy(plan=CHECKED)
    world.rounds(6, requests=40)
    assert world.weights() == {old.id: 80, new.id: 20}
    world.inference.answers[new.id] = no_numbers
    world.rounds(40, requests=40)
    rollout = world.rollout(new)
    assert (rollout.phase, rollout.explanation.reason) == (Phase.ROLLED_BACK, "failed")
    failed = world.looks(new)[-1]
    assert [each.outcome for each in failed.metrics] == [Outcome.PASS] * 2
    assert world.weights() == {old.id: 100}


def test_a_server_that_fails_over_the_sample_violates_the_check(world: ServingWorld) -> None:
    old = world.serving()
    world.inference.answers[f"{old.service_id}-r2"] = boom
    new = world.deploy(plan=CHECKED)
    world.rounds(10)
    assert world.rollout(new).explanation.reason == "failed"
    assert (
        "which gives no outputs: the server of model 'digits' failed: boom." in world.rollout(new).explanation.message
    )


def test_a_check_that_cannot_be_asked_is_neither_a_pass_nor_a_failure_and_is_asked_again(world: ServingWorld) -> None:
    old = world.serving()
    slow = f"{old.service_id}-r2"
    world.inference.answers[slow] = too_late
    new = world.deploy(plan=CHECKED)
    world.rounds(30)
    assert world.rollout(new).phase is Phase.WAITING
    looks = world.looks(new)
    assert [each.outcome for each in looks] == [Outcome.ERROR] * len(looks)
    assert len(looks) == 3, "one every 2 s"
    del world.inference.answers[slow]
    world.rounds(11, requests=10)
    assert world.weights() == {old.id: 80, new.id: 20}
    world.inference.answers[slow] = too_late
    world.rounds(60, requests=40)
    assert world.rollout(new).phase is Phase.BAKING, "no step is passed meanwhile"
    assert replay(world.rollout(new).plan, world.looks(new)) == []


def test_a_check_that_could_never_be_asked_ends_before_any_traffic(world: ServingWorld) -> None:
    world.serving()
    world.inference.answers["inf-digits-001-r2"] = too_late
    new = world.deploy(plan={**CHECKED, "ready_timeout": "5s"})
    world.rounds(40)
    rollout = world.rollout(new)
    assert (rollout.phase, rollout.explanation.reason) == (Phase.ABORTED, "ready_timeout")
    assert "could not be checked within 5 s" in rollout.explanation.message


# --- the first revision -----------------------------------------------------------------------------------------------


def test_a_first_revision_serves_only_if_its_outputs_are_as_expected(world: ServingWorld) -> None:
    world.inference.answers["inf-digits-001-r1"] = no_numbers
    made = world.deploy(plan=CHECKED)
    world.rounds(20)
    after = world.revision(made)
    assert (after.phase, after.failed) == (RevisionPhase.FAILED, True)
    assert "holds 2 of 2 values that are not finite (nan)" in after.explanation.message
    assert (world.held(), world.weights()) == (0, {})
    with world.ctx.store.read() as tx:
        (decision,) = tx.records.decisions(subject=made.id, kind="output_check")
    assert (decision.verdict, decision.rule_version) == ("fail", RULE_VERSION)
    again = world.serving(plan=CHECKED, retry_failed=True)
    assert world.weights() == {again.id: 100}


def test_a_first_revision_that_cannot_be_asked_waits_without_requests_and_then_fails(world: ServingWorld) -> None:
    world.inference.answers["inf-digits-001-r1"] = too_late
    made = world.deploy(plan=CHECKED, ready_timeout="10s")
    world.rounds(30)
    assert (world.revision(made).phase, world.weights()) == (RevisionPhase.STARTING, {})
    with world.ctx.store.read() as tx:
        assert len(tx.records.decisions(subject=made.id, kind="output_check")) == 3
    world.rounds(40)
    after = world.revision(made)
    assert after.phase is RevisionPhase.FAILED
    assert after.explanation.message.startswith("Its outputs could not be checked within 10 s. Output check halves")


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"api_type": "websocket"}, id="nobody can ask a WebSocket"),
        pytest.param({"engine": "vllm", "command": None}, id="another protocol"),
    ],
)
def test_a_check_that_can_never_be_asked_is_refused(world: ServingWorld, changes: dict[str, object]) -> None:
    with pytest.raises(RequestRefused) as refusal:
        world.submit_service(plan=CHECKED, **changes)
    assert ("plan.output_checks", "cannot_be_asked") in {(each.field, each.code) for each in refusal.value.problems}
