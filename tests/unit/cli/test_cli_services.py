"""The commands of services: answers for people and programs, with no platform running and with what the store knows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from installations import Installation

from builders import NOW, make_look, make_plan, make_replica, make_revision, make_rollout, make_service
from fermion.adapters.sql import open_store
from fermion.cli.service_payloads import look_payload, replica_payload, rollout_payload, why_of
from fermion.cli.services import look_line, spread_line
from fermion.domain.records import Decision
from fermion.domain.rollout.judging import judge
from fermion.domain.rollout.looks import Measured, proportion
from fermion.domain.rollout.plan import MetricRule, Share, SplitRule, Step
from fermion.domain.rollout.plan_reading import parse_plan
from fermion.domain.rollout.rollouts import Phase
from fermion.domain.serving.replicas import ReplicaSeen, ReplicaState
from fermion.domain.serving.routing import Match, MatchKind, Mirror, Spread
from fermion.domain.serving.services import RevisionPhase

SERVICE, NAME = "inf-digits-001", "digits"
SPEC = """
name: Digits!
model: digits
engine: nothing
image: nothing:1
pool: local/h100
replicas: 0
plan: {steps: [50, 10]}
"""


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """A service with two revisions, a replica and a rollout with a look; its router and its replicas are not there."""
    made = Installation(tmp_path_factory.mktemp("served"))
    with open_store(made.database).begin() as tx:
        tx.services.add(make_service(SERVICE, name=NAME, stable=1, newest=2, weights={"1": 100}))
        tx.services.add_revision(make_revision(1, service_id=SERVICE, phase=RevisionPhase.SERVING))
        tx.services.add_revision(make_revision(2, service_id=SERVICE, run=("deploy_service", "other")))
        tx.replicas.add_all([make_replica(1, revision=f"{SERVICE}-r1")])
        tx.rollouts.add(make_rollout("ro-1", service=SERVICE, created_at=NOW))
        tx.rollouts.add_look("ro-1", make_look(1))
        tx.records.add_decision(answer_of("ro-1"))
    return made


def answer_of(rollout: str) -> Decision:
    """What is kept of somebody's answer about a rollout."""
    return Decision(
        id=f"approval-{rollout}-1",
        kind="approval",
        subject=make_rollout(rollout, service=SERVICE).canary,
        verdict="approved",
        reason="answered",
        message="Approved by ann: 10 % may be left.",
        rule_version="rollout/1",
        decided_at=NOW,
        inputs={"rollout": rollout, "by": "ann", "note": "fine", "step": 0},
        numbers={"look": 1},
    )


@pytest.mark.parametrize(
    "words",
    [
        ("services",),
        ("service", NAME),
        ("rollout", "status", NAME),
        ("rollout", "replay", "ro-1"),
        ("engines",),
    ],
)
def test_what_can_be_looked_at_is_told_as_words_and_as_one_document(
    stocked: Installation, words: tuple[str, ...]
) -> None:
    assert stocked.called(*words).code in (0, 1)
    answer = stocked.called(*words, "--json", columns=20)
    assert answer.err == ""
    assert answer.document is not None


def test_what_the_router_does_not_tell_is_null_and_no_zero(stocked: Installation) -> None:
    document = stocked.called("service", NAME, "--json").document
    assert (document["id"], document["status"], document["weights"]) == (SERVICE, "down", None)
    assert document["metrics"]["lately"] is None
    assert document["replicas"]["ready"] == 0


def test_who_answered_and_on_what_evidence_is_told_of_a_rollout(stocked: Installation) -> None:
    assert "Approved by ann: 10 % may be left." in stocked.called("rollout", "status", NAME, columns=200).out
    (kept,) = stocked.called("rollout", "status", NAME, "--json").document["approvals"]
    assert (kept["verdict"], kept["by"], kept["note"], kept["evidence"]) == ("approved", "ann", "fine", {"look": 1})


def test_a_replica_whose_server_ends_again_and_again_is_told_with_when_it_starts_next() -> None:
    row = make_replica(1, revision=f"{SERVICE}-r1")
    told = "process 4 ended (exit code 1); the next one starts at 12:00:08"
    seen = ReplicaSeen(name=row.name, state=ReplicaState.BACKING_OFF, observed_at=NOW, starts=4, detail=told)
    shown = replica_payload(row, seen)
    assert (shown["state"], shown["starts"], shown["detail"], why_of(row, seen)) == ("backing_off", 4, told, told)
    calm = replace(seen, state=ReplicaState.READY, detail="")
    assert (replica_payload(row, calm)["detail"], why_of(row, calm)) == (None, row.explanation.message)
    assert (replica_payload(row, None)["state"], why_of(row, None)) == (None, row.explanation.message)


def test_every_problem_of_a_deployment_is_one_answer(stocked: Installation, tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(SPEC)
    answer = stocked.called("deploy", "--spec", str(file), "--json")
    assert answer.code == 2
    fields = {problem["field"] for problem in answer.document["problems"]}
    assert fields == {"name", "model", "image", "pool", "replicas", "plan.steps.1", "plan.steps"}


def test_that_what_failed_is_tried_again_can_be_said_for_one_call(stocked: Installation, tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(f"{SPEC}retry_failed: perhaps\n")
    for words, is_wrong in (((), True), (("--retry-failed",), False)):
        answer = stocked.called("deploy", "--spec", str(file), *words, "--json")
        fields = {problem["field"] for problem in answer.document["problems"]}
        assert ("retry_failed" in fields) is is_wrong


@pytest.mark.parametrize("word", ["pause", "abort"])
def test_a_wish_is_stored(stocked: Installation, word: str) -> None:
    answer = stocked.called("rollout", word, NAME, "--note", "because", "--json")
    assert (answer.code, answer.document["wish"]) == (0, word)
    with open_store(stocked.database).read() as tx:
        wish = tx.rollouts.wish("ro-1")
    assert wish is not None
    assert (str(wish.kind), wish.note) == (word, "because")


@pytest.mark.parametrize("word", ["approve", "reject"])
def test_an_answer_that_nobody_asked_for_is_a_conflict(stocked: Installation, word: str) -> None:
    answer = stocked.called("rollout", word, NAME, "--json")
    assert (answer.code, answer.document["error"]) == (5, "conflict")
    assert "nobody is asked about ro-1: it is baking" in answer.document["message"]


def test_an_answer_at_the_terminal_counts_where_airflow_is_not_there_and_a_strangers_does_not(tmp_path: Path) -> None:
    made = Installation(tmp_path)
    plan = parse_plan({"steps": [10, 100], "approval": True, "approvers": ["nobody-here"]})
    with open_store(made.database).begin() as tx:
        for name, asked in (("ro-1", plan), ("ro-2", replace(plan, approvers=()))):
            tx.services.add(make_service(f"inf-{name}", name=name, prefix=f"/{name}", stable=1, newest=2))
            asking = make_rollout(name, service=f"inf-{name}", phase=Phase.AWAITING_APPROVAL, plan=asked)
            tx.rollouts.add(replace(asking, canary=f"inf-{name}-r2"))
    refused = made.called("rollout", "approve", "ro-1", "--json")
    assert (refused.code != 0, refused.document["error"]) == (True, "not_permitted")
    assert "nobody-here may approve" in refused.document["message"]
    with open_store(made.database).read() as tx:
        assert tx.rollouts.approval("ro-1") is None
    given = made.called("rollout", "approve", "ro-2", "--note", "fine", "--json")
    assert (given.code, given.document["verdict"], given.document["note"]) == (0, "approved", "fine")
    with open_store(made.database).read() as tx:
        kept = tx.rollouts.approval("ro-2")
    assert kept is not None
    assert (kept.approved, kept.note) == (True, "fine")


def test_a_wish_that_makes_no_sense_is_a_conflict(stocked: Installation) -> None:
    assert stocked.called("rollout", "resume", NAME, "--json").code == 5


def test_scaling_is_a_wish_within_bounds(stocked: Installation) -> None:
    assert stocked.called("scale", NAME, "0", "--json").code == 2
    answer = stocked.called("scale", NAME, "1", "--json")
    assert (answer.code, answer.document["replicas"]["desired"]) == (0, 1)


def test_going_back_needs_a_warm_revision(stocked: Installation) -> None:
    answer = stocked.called("rollback", NAME, "--json")
    assert answer.code == 5
    assert "no warm revision" in answer.document["message"]


def test_a_router_that_is_away_gives_no_numbers_and_no_zeros(stocked: Installation) -> None:
    rows = stocked.called("traffic", NAME, "--json").document
    assert [(row["wished_percent"], row["applied_percent"], row["requests"]) for row in rows] == [
        (100, None, None),
        (0, None, None),
    ]


@pytest.mark.parametrize(
    ("spread", "line"),
    [
        (None, "nobody knows where"),
        (Spread(), "none"),
        (Spread(weights={"r1": 90, "r2": 10}), "r1 90 %, r2 10 %"),
        (Spread(weights={"r1": 90, "r2": 10}, sticky_cookie="v"), "r1 90 %, r2 10 %, kept by cookie v"),
        (Spread(weights={"r1": 100}, mirror=Mirror(backend="r2", percent=20)), "r1 100 %, r2 a copy of 20 %"),
        (
            Spread(weights={"r1": 100}, matches=(Match(kind=MatchKind.HEADER, name="x", value="b", backend="r2"),)),
            "r2 with header x: b, r1 100 %",
        ),
    ],
)
def test_how_requests_are_spread_is_one_line(spread: Spread | None, line: str) -> None:
    assert spread_line(spread) == line


@pytest.mark.parametrize(
    ("share", "begins"),
    [
        (Share(weight_percent=10), "look 1 at 10 %, requests 100 + 900 (10.0 %), error_rate 2.0 % / 1.0 %"),
        (Share(mirror_percent=10), "look 1 at a copy of 10 %, requests 100 + 900, error_rate 2.0 % / 1.0 %"),
        (Share(split=SplitRule(header="x", value="b")), "look 1 at the group with header x: b, requests 100 + 900 (10.0 %)"),
    ],
)  # fmt: skip
def test_a_look_says_who_the_canary_got_and_how_many_they_were(share: Share, begins: str) -> None:
    reading = proportion("error_rate", canary=(2, 100), stable=(9, 900))
    seen = Measured(
        step=0,
        weight_percent=share.weight_percent,
        split=share.split,
        mirror_percent=share.mirror_percent,
        started_at=NOW,
        ended_at=NOW,
        readings=(reading,),
    )
    look = judge(make_plan(metrics=(MetricRule(name="error_rate"),)), seen, None)
    assert look_line(look).startswith(begins)
    told = look_payload(look)
    assert told["share"]["told"] == str(share)
    assert told["counted_percent"] == (None if share.mirror_percent else 10.0)


def test_the_way_of_each_step_of_a_rollout_is_told() -> None:
    steps = (Step(weight_percent=0, mirror_percent=20), Step(weight_percent=5, split=SplitRule(cookie="v")))
    rollout = make_rollout("ro-9", plan=make_plan(steps=(*steps, Step(weight_percent=100))), phase=Phase.BAKING)
    told = rollout_payload(rollout)
    assert [each["way"] for each in told["shares"]] == ["mirrored", "sticky", "drawn"]
    assert told["shares"][1]["split"] == {"header": None, "cookie": "v", "value": None}
    assert told["share"]["told"] == str(rollout.wanted_share)


@pytest.mark.parametrize(
    "words",
    [
        ("service", "nobody"),
        ("traffic", "nobody"),
        ("scale", "nobody", "1"),
        ("close", "nobody"),
        ("predict", "nobody", "--inputs", __file__.replace("test_cli_services.py", "inputs.json")),
    ],
)
def test_what_is_not_there_is_not_found(stocked: Installation, words: tuple[str, ...]) -> None:
    answer = stocked.called(*words, "--json")
    assert (answer.code, answer.document["error"]) == (4, "not_found")


def test_a_service_that_is_closed_goes_down_with_all_of_its_revisions(tmp_path: Path) -> None:
    made = Installation(tmp_path)
    with open_store(made.database).begin() as tx:
        tx.services.add(make_service(SERVICE, name=NAME, stable=1, newest=1))
        tx.services.add_revision(make_revision(1, service_id=SERVICE, phase=RevisionPhase.SERVING))
    assert made.called("close", NAME, "--json").code == 0
    with open_store(made.database).read() as tx:
        revision = tx.services.revision(SERVICE, 1)
    assert revision is not None
    assert revision.phase is RevisionPhase.RETIRING
