"""Watching: every numbered rule of ``decide`` with its boundary, what a stop meant, and how an abandoned job ends."""

from __future__ import annotations

import signal
from itertools import product
from typing import Any

import pytest

from builders import NOW, at, make_job, make_lease, make_node, make_policy, make_pool, make_spec, seconds
from fermion.domain.jobs import FINAL, HOLDING, TRANSITIONS, Job, Move, Phase, Progress, apply
from fermion.domain.leases import Slice
from fermion.domain.pools import PoolPolicy
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.records import StageSpan
from fermion.domain.watching import (
    CODE_SIGNALS,
    Watched,
    abandon,
    could_move,
    decide,
    last_failure,
    runtime_limit,
    with_failure,
    with_step,
)
from fermion.domain.workloads import ExitCause, ExitRecord, Seen, WorkloadState

POLICY = make_policy(start_timeout=seconds(60), hang_floor=seconds(30), hang_factor=5.0, max_attempts=3)
GONE = [WorkloadState.EXITED, WorkloadState.LOST, WorkloadState.ABSENT]


def seen(state: WorkloadState = WorkloadState.RUNNING, *, ran_s: float = 10, **changes: object) -> Seen:
    """A look at a workload that was executed ``ran_s`` ago."""
    exec_at = at(-ran_s) if state is WorkloadState.RUNNING else None
    return Seen(**{"name": "w", "state": state, "observed_at": NOW, "exec_at": exec_at, **changes})  # type: ignore[arg-type]


def exited(
    code: int | None = 0, *, signal_number: int | None = None, cause: ExitCause = ExitCause.EXITED, detail: str = ""
) -> Seen:
    """A look at a workload with an exit record."""
    record = ExitRecord(cause=cause, code=code, signal=signal_number, exec_at=at(-10), exit_at=NOW, detail=detail)
    return seen(WorkloadState.EXITED, exit=record)


def stopping(why: Reason, **changes: Any) -> Job:
    """A job that was asked to end for that reason."""
    asked = Explanation(Reason.STOP_REQUESTED, "told", {"why": str(why), "message": "the very words", "extra": 1})
    return make_job(phase=Phase.STOPPING, explanation=asked, **changes)


def due(
    job: Job, what: Seen | None = None, *, policy: PoolPolicy = POLICY, held_s: float = 10, other_nodes: bool = False
) -> Move | None:
    """The move that is due at ``NOW``."""
    lease = make_lease(held_s=held_s) if job.phase in HOLDING else None
    watched = Watched(job=job, policy=policy, seen=what, lease=lease, other_nodes=other_nodes)
    return decide(watched, NOW)


def outcome(move: Move | None) -> tuple[Phase, Reason] | None:
    """Where it goes, and why."""
    return None if move is None else (move.to, move.explanation.reason)


# --- in line ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "when"),
    [
        (Phase.SUBMITTED, "before it was in line"),
        (Phase.STAGING, "while it waited for GPUs"),
        (Phase.WAITING, "while it waited for GPUs"),
    ],
)
def test_rule_1_a_stop_ends_a_job_in_line(phase: Phase, when: str) -> None:
    job = make_job(phase=phase, stop_requested_at=at(-1), stop_requested_by="ann", queued_at=at(-9999))
    move = due(job, policy=make_policy(queue_timeout=seconds(1)))
    assert move is not None
    assert outcome(move) == (Phase.FAILED, Reason.STOPPED)
    assert move.explanation.message == f"Stopped by ann {when}."


@pytest.mark.parametrize(
    ("asked", "allowed", "waited", "ends"),
    [
        pytest.param(None, None, 10**6, False, id="without a limit it waits for ever"),
        pytest.param(60, None, 60, False, id="at the limit is not over it"),
        pytest.param(60, None, 60.001, True, id="over what it asked for"),
        pytest.param(None, 60, 61, True, id="over what the pool allows"),
        pytest.param(600, 60, 61, True, id="the pool's limit counts where the job asks for more"),
        pytest.param(30, 60, 31, True, id="the job's limit counts where it asks for less"),
    ],
)
def test_rule_2_the_queue_timeout(asked: float | None, allowed: float | None, waited: float, ends: bool) -> None:
    spec = make_spec(queue_timeout=None if asked is None else seconds(asked))
    policy = make_policy(queue_timeout=None if allowed is None else seconds(allowed))
    move = due(make_job(spec=spec, queued_at=at(-waited)), policy=policy)
    assert outcome(move) == ((Phase.FAILED, Reason.QUEUE_TIMEOUT) if ends else None)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"started_at": at(-50)}, id="it has started once"),
        pytest.param({"queued_at": None, "phase": Phase.SUBMITTED}, id="it is not in line yet"),
    ],
)
def test_rule_2_does_not_count(changes: dict[str, Any]) -> None:
    job = make_job(**{"queued_at": at(-999), **changes})
    assert due(job, policy=make_policy(queue_timeout=seconds(1))) is None


# --- the workload ended -----------------------------------------------------------------------------------------------

ENDS = [
    pytest.param(exited(0), (Phase.SAVING, Reason.SAVING), id="code 0"),
    pytest.param(exited(1), (Phase.FAILED, Reason.USER_CODE), id="code 1"),
    pytest.param(exited(255), (Phase.FAILED, Reason.USER_CODE), id="code 255"),
    pytest.param(
        exited(None, cause=ExitCause.OUT_OF_MEMORY, signal_number=9), (Phase.FAILED, Reason.OUT_OF_MEMORY), id="memory"
    ),
    pytest.param(exited(None, cause=ExitCause.NEVER_STARTED), (Phase.FAILED, Reason.USER_CODE), id="never started"),
    pytest.param(
        exited(None, cause=ExitCause.STOPPED, signal_number=15), (Phase.FAILED, Reason.STOPPED), id="stopped by others"
    ),
    pytest.param(
        exited(None, cause=ExitCause.SIGNALLED, signal_number=9), (Phase.STAGING, Reason.RETRYING), id="killed"
    ),
    pytest.param(
        exited(None, cause=ExitCause.SIGNALLED, signal_number=250), (Phase.STAGING, Reason.RETRYING), id="odd signal"
    ),
    pytest.param(seen(WorkloadState.LOST), (Phase.STAGING, Reason.RETRYING), id="lost"),
    pytest.param(seen(WorkloadState.ABSENT), (Phase.STAGING, Reason.RETRYING), id="absent"),
    pytest.param(seen(WorkloadState.EXITED), (Phase.STAGING, Reason.RETRYING), id="ended without a record"),
]


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.RUNNING])
@pytest.mark.parametrize(("what", "expected"), ENDS)
def test_rules_3_and_4_an_ended_workload_moves_its_job(
    phase: Phase, what: Seen, expected: tuple[Phase, Reason]
) -> None:
    assert outcome(due(make_job(phase=phase), what)) == expected


def test_a_workload_that_nobody_asked_to_end_went_with_its_platform() -> None:
    what = exited(None, cause=ExitCause.STOPPED, signal_number=15, detail="its runner was told to end (SIGTERM)")
    move = due(make_job(phase=Phase.RUNNING), what)
    assert move is not None
    assert move.explanation.message == (
        "The platform or its machine was taken down while it ran: its runner was told to end (SIGTERM)."
        " Restart it with --resume to go on from its last checkpoint."
    )


@pytest.mark.parametrize("number", sorted(CODE_SIGNALS), ids=lambda number: number.name)
def test_rule_3_a_signal_of_its_own_fault_is_the_codes_error(number: signal.Signals) -> None:
    move = due(make_job(phase=Phase.RUNNING), exited(None, cause=ExitCause.SIGNALLED, signal_number=int(number)))
    assert outcome(move) == (Phase.FAILED, Reason.USER_CODE)


@pytest.mark.parametrize(
    ("attempt", "expected"),
    [(1, (Phase.STAGING, Reason.RETRYING)), (2, (Phase.STAGING, Reason.RETRYING)), (3, (Phase.FAILED, None))],
)
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        pytest.param(seen(WorkloadState.LOST), Reason.WORKLOAD_LOST, id="lost"),
        pytest.param(exited(None, cause=ExitCause.SIGNALLED, signal_number=9), Reason.KILLED, id="killed"),
    ],
)
def test_rule_4_the_last_attempt_fails_with_its_cause(
    attempt: int, expected: tuple[Phase, Reason | None], what: Seen, reason: Reason
) -> None:
    move = due(make_job(phase=Phase.RUNNING, attempt=attempt), what)
    assert outcome(move) == (expected[0], expected[1] or reason)
    assert move is not None
    assert move.fresh_attempt is (attempt < 3)


@pytest.mark.parametrize(
    ("what", "other_nodes", "excluded"),
    [
        pytest.param(seen(WorkloadState.LOST), True, "n0", id="lost, and it could go elsewhere"),
        pytest.param(seen(WorkloadState.LOST), False, None, id="lost, and there is nowhere else"),
        pytest.param(
            exited(None, cause=ExitCause.SIGNALLED, signal_number=9), True, None, id="killed: not the node's fault"
        ),
    ],
)
def test_rule_4_a_node_that_lost_a_workload_is_left_out(what: Seen, other_nodes: bool, excluded: str | None) -> None:
    move = due(make_job(phase=Phase.RUNNING), what, other_nodes=other_nodes)
    assert move is not None
    assert move.exclude_node == excluded


@pytest.mark.parametrize("what", [seen(WorkloadState.LOST), exited(None, cause=ExitCause.SIGNALLED, signal_number=9)])
def test_rule_4_nothing_is_tried_again_against_a_stop(what: Seen) -> None:
    job = make_job(phase=Phase.RUNNING, stop_requested_at=at(-1), stop_requested_by="ann")
    assert outcome(due(job, what)) == (Phase.FAILED, Reason.STOPPED)


# --- it was asked to end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [WorkloadState.RUNNING, WorkloadState.SUSPENDED])
def test_rule_5_who_was_asked_to_end_and_lives_is_left_alone(state: WorkloadState) -> None:
    job = stopping(Reason.STOPPED, stop_requested_at=at(-1), preempted_for="job-9")
    assert due(job, seen(state), held_s=9999) is None


WHYS = [
    Reason.STOPPED,
    Reason.MAX_RUNTIME,
    Reason.HANG,
    Reason.START_TIMEOUT,
    Reason.RUN_ENDED,
]


@pytest.mark.parametrize("why", WHYS)
@pytest.mark.parametrize("what", [exited(None, cause=ExitCause.STOPPED, signal_number=15), *map(seen, GONE), exited(1)])
def test_a_stop_means_what_it_was_asked_for(why: Reason, what: Seen) -> None:
    move = due(stopping(why), what)
    assert outcome(move) == (Phase.FAILED, why)
    assert move is not None
    assert move.explanation.message == "the very words"
    assert move.explanation.numbers["extra"] == 1


def test_a_victim_goes_back_into_line_with_a_fresh_attempt() -> None:
    move = due(stopping(Reason.PREEMPTED), exited(None, cause=ExitCause.STOPPED, signal_number=15))
    assert outcome(move) == (Phase.STAGING, Reason.PREEMPTED)
    assert move is not None
    assert move.fresh_attempt
    assert move.exclude_node is None


def test_a_victim_that_was_stopped_as_well_does_not_go_back() -> None:
    job = stopping(Reason.PREEMPTED, stop_requested_at=at(-1), stop_requested_by="ann")
    assert outcome(due(job, seen(WorkloadState.ABSENT))) == (Phase.FAILED, Reason.STOPPED)


def test_whoever_ends_well_while_being_asked_to_end_keeps_the_model() -> None:
    assert outcome(due(stopping(Reason.PREEMPTED), exited(0))) == (Phase.SAVING, Reason.SAVING)


def test_code_0_after_a_stop_is_still_a_stop() -> None:
    assert outcome(due(stopping(Reason.STOPPED), exited(0, cause=ExitCause.STOPPED))) == (Phase.FAILED, Reason.STOPPED)


# --- alive ------------------------------------------------------------------------------------------------------------


def why_of(move: Move | None) -> str | None:
    """What a stop was asked for."""
    if move is None or move.to is not Phase.STOPPING:
        return None
    return str(move.explanation.numbers["why"])


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.RUNNING])
@pytest.mark.parametrize("state", [WorkloadState.SUSPENDED, WorkloadState.RUNNING])
def test_rule_6_a_stop_comes_before_everything_else(phase: Phase, state: WorkloadState) -> None:
    job = make_job(phase=phase, stop_requested_at=at(-1), stop_requested_by="ann", preempted_for="job-9")
    assert why_of(due(job, seen(state, ran_s=10**6), held_s=10**6)) == "stopped"


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.RUNNING])
def test_rule_7_a_victim_is_asked_to_end(phase: Phase) -> None:
    move = due(make_job(phase=phase, preempted_for="job-9"), seen(ran_s=10**6), held_s=10**6)
    assert why_of(move) == "preempted"
    assert move is not None
    assert "job-9" in move.explanation.message


@pytest.mark.parametrize(
    ("held", "expected"),
    [pytest.param(60, None, id="at the limit is not over it"), pytest.param(60.001, "start_timeout", id="over it")],
)
def test_rule_8_it_has_to_start_in_time(held: float, expected: str | None) -> None:
    assert why_of(due(make_job(phase=Phase.STARTING), seen(WorkloadState.SUSPENDED), held_s=held)) == expected


def test_rule_9_the_first_sight_of_its_process_makes_it_running_however_late() -> None:
    move = due(make_job(phase=Phase.STARTING), seen(), held_s=10**6)
    assert outcome(move) == (Phase.RUNNING, Reason.TRAINING)


@pytest.mark.parametrize(
    ("asked", "allowed", "ran", "expected"),
    [
        pytest.param(None, None, 10**6, None, id="without a limit it runs for ever"),
        pytest.param(60, None, 60, None, id="at the limit is not over it"),
        pytest.param(60, None, 60.001, "max_runtime", id="over what it asked for"),
        pytest.param(600, 60, 61, "max_runtime", id="the pool's limit counts where the job asks for more"),
        pytest.param(30, 60, 31, "max_runtime", id="the job's limit counts where it asks for less"),
    ],
)
def test_rule_10_it_may_not_run_too_long(
    asked: float | None, allowed: float | None, ran: float, expected: str | None
) -> None:
    job = make_job(phase=Phase.RUNNING, spec=make_spec(max_runtime=None if asked is None else seconds(asked)))
    policy = make_policy(max_runtime=None if allowed is None else seconds(allowed))
    assert why_of(due(job, seen(ran_s=ran), policy=policy)) == expected
    limits = [limit for limit in (asked, allowed) if limit is not None]
    assert runtime_limit(job, policy) == (seconds(min(limits)) if limits else None)


@pytest.mark.parametrize(
    ("silent", "usual", "expected"),
    [
        pytest.param(30, 1, None, id="at the floor is not over it"),
        pytest.param(30.001, 1, "hang", id="over the floor, when five usual steps are less"),
        pytest.param(50, 10, None, id="at five usual steps is not over them"),
        pytest.param(50.001, 10, "hang", id="over five usual steps, when the floor is less"),
        pytest.param(10**6, None, None, id="who said one line has no usual step yet"),
        pytest.param(None, 1, None, id="who was not heard in this attempt is not silent"),
    ],
)
def test_rule_11_it_has_to_make_progress(silent: float | None, usual: float | None, expected: str | None) -> None:
    progress = Progress(
        at=None if silent is None else at(-silent), usual_step=None if usual is None else seconds(usual)
    )
    assert why_of(due(make_job(phase=Phase.RUNNING, progress=progress), seen(ran_s=10**6))) == expected


# --- all pairs --------------------------------------------------------------------------------------------------------

LOOKS = [
    seen(WorkloadState.ABSENT),
    seen(WorkloadState.SUSPENDED),
    seen(),
    seen(WorkloadState.LOST),
    seen(WorkloadState.EXITED),
    exited(0),
    exited(3),
    exited(None, cause=ExitCause.SIGNALLED, signal_number=9),
    exited(None, cause=ExitCause.OUT_OF_MEMORY, signal_number=9),
    exited(None, cause=ExitCause.STOPPED, signal_number=15),
    exited(None, cause=ExitCause.NEVER_STARTED),
]


@pytest.mark.parametrize(("phase", "what"), list(product(Phase, LOOKS)))
@pytest.mark.parametrize("changes", [{}, {"stop_requested_at": at(-1)}, {"preempted_for": "job-9"}, {"attempt": 3}])
def test_every_decision_is_a_legal_move_and_the_gone_leave_the_holding_phases(
    phase: Phase, what: Seen, changes: dict[str, Any]
) -> None:
    job = make_job(phase=phase, **changes)
    move = due(job, what)
    if move is not None:
        moved = apply(job, move, NOW)
        assert move.to in TRANSITIONS[phase]
        assert moved.attempt == job.attempt + move.fresh_attempt
    if phase in HOLDING and what.state in GONE:
        assert move is not None
        assert move.to not in HOLDING
    if phase in (Phase.SAVING, *FINAL):
        assert move is None


def test_nothing_is_decided_of_a_holder_that_was_not_looked_at() -> None:
    assert due(make_job(phase=Phase.RUNNING), None) is None


# --- abandoned --------------------------------------------------------------------------------------------------------


def span(stage: str, outcome: str = "failed", *, attempt: int = 1, ended_s: float = 0) -> StageSpan:
    """A stage that ended."""
    return StageSpan(
        job_id="job-1",
        attempt=attempt,
        stage=stage,
        started_at=at(-60),
        ended_at=at(ended_s),
        outcome=outcome,
        detail="the disk is full",
    )


@pytest.mark.parametrize("phase", list(Phase))
def test_an_abandoned_job_ends_because_its_run_ended(phase: Phase) -> None:
    job = make_job(phase=phase)
    move = abandon(job, "The run ended.")
    if phase in (Phase.STOPPING, *FINAL):
        assert move is None
    elif phase in HOLDING:
        assert why_of(move) == "run_ended"
    else:
        assert outcome(move) == (Phase.FAILED, Reason.RUN_ENDED)
    if move is not None:
        apply(job, move, NOW)


@pytest.mark.parametrize(
    ("phase", "stage", "reason"),
    [
        pytest.param(Phase.STAGING, "pull_image", Reason.STAGING_FAILED, id="staging"),
        pytest.param(Phase.SAVING, "save_model", Reason.SAVE_FAILED, id="saving"),
        pytest.param(Phase.WAITING, "pull_image", Reason.RUN_ENDED, id="it failed once and was repeated"),
        pytest.param(Phase.SAVING, "mount_dataset", Reason.RUN_ENDED, id="a stage of long ago"),
    ],
)
def test_the_stage_that_gave_up_is_the_reason(phase: Phase, stage: str, reason: Reason) -> None:
    move = abandon(make_job(phase=phase), "The run ended.", failed=span(stage))
    assert outcome(move) == (Phase.FAILED, reason)
    assert move is not None
    assert ("the disk is full" in move.explanation.message) is (reason is not Reason.RUN_ENDED)


@pytest.mark.parametrize("phase", [Phase.SUBMITTED, Phase.STAGING, Phase.WAITING])
def test_a_stop_wins_over_the_end_of_the_run(phase: Phase) -> None:
    job = make_job(phase=phase, stop_requested_at=at(-1), stop_requested_by="ann")
    assert outcome(abandon(job, "The run ended.", failed=span("pull_image"))) == (Phase.FAILED, Reason.STOPPED)
    held = make_job(phase=Phase.RUNNING, stop_requested_at=at(-1), stop_requested_by="ann")
    assert why_of(abandon(held, "The run ended.")) == "stopped"


@pytest.mark.parametrize(
    ("phase", "spans", "stage"),
    [
        pytest.param(Phase.STAGING, [], None, id="none was recorded"),
        pytest.param(
            Phase.STAGING,
            [span("pull_image", ended_s=1), span("mount_dataset", ended_s=3), span("prepare", ended_s=2)],
            "mount_dataset",
            id="the last of several",
        ),
        pytest.param(Phase.STAGING, [span("pull_image", "succeeded")], None, id="it was repeated well"),
        pytest.param(Phase.STAGING, [span("pull_image", attempt=2)], None, id="another attempt's"),
        pytest.param(Phase.STAGING, [span("save_model")], None, id="a stage of another phase"),
        pytest.param(Phase.SAVING, [span("save_model"), span("pull_image", ended_s=9)], "save_model", id="saving"),
        pytest.param(Phase.SUBMITTED, [span("check_quota")], "check_quota", id="being checked"),
        pytest.param(Phase.RUNNING, [span("pull_image")], None, id="no stage can fail in this phase"),
        pytest.param(Phase.FAILED, [span("save_model")], None, id="the job's own reason tells it"),
    ],
)
def test_the_last_failure_is_of_a_stage_that_the_job_is_in(
    phase: Phase, spans: list[StageSpan], stage: str | None
) -> None:
    found = last_failure(make_job(phase=phase), spans)
    assert (found and found.stage) == stage
    told = with_failure("Its model is being published.", found)
    assert ("the disk is full" in told) is (stage is not None)
    assert told.startswith("Its model is being published.")


# --- elsewhere --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "nodes", "excluded", "expected"),
    [
        pytest.param(2, 1, (), True, id="the other node is wide enough"),
        pytest.param(4, 1, (), False, id="the other node is too narrow"),
        pytest.param(2, 2, (), False, id="it needs two, and one is left"),
        pytest.param(2, 1, ("n1",), False, id="the other node is left out already"),
    ],
)
def test_a_job_could_move_where_enough_other_nodes_are(
    gpus: int, nodes: int, excluded: tuple[str, ...], expected: bool
) -> None:
    pool = make_pool(nodes=(4, 2, make_node("n2", gpus=8, ready=False)))
    job = make_job(spec=make_spec(gpus_per_node=gpus, nodes=nodes), excluded_nodes=excluded)
    assert could_move(job, pool, make_lease(slices=(Slice("n0", ("n0-0",)),))) is expected


def test_nobody_moves_in_a_pool_that_is_not_there() -> None:
    assert not could_move(make_job(), None, None)


# --- the usual step ---------------------------------------------------------------------------------------------------


def test_the_first_line_gives_no_step_and_the_second_does() -> None:
    first = with_step(Progress(), Progress(percent=1, at=at(-500)), 1, at(0))
    assert (first.at, first.usual_step) == (at(0), None)
    second = with_step(first, Progress(percent=2, at=at(-499)), 1, at(4))
    assert (second.at, second.usual_step) == (at(4), seconds(4))


def test_the_mean_forgets_one_fifth_at_a_time_and_counts_every_line() -> None:
    before = Progress(percent=1, at=at(0), usual_step=seconds(10))
    assert with_step(before, Progress(percent=2, at=at(20)), 1, at(20)).usual_step == seconds(12)
    assert with_step(before, Progress(percent=2, at=at(20)), 4, at(20)).usual_step == seconds(9)


def test_when_a_line_was_heard_counts_and_not_what_it_claims() -> None:
    before = Progress(percent=1, at=at(0), usual_step=seconds(1))
    assert with_step(before, Progress(percent=2, at=at(-86400)), 1, at(3)).at == at(3)


def test_lines_that_say_nothing_are_silence() -> None:
    before = Progress(percent=1, at=at(0), usual_step=seconds(1), offset=10, lines=2)
    assert with_step(before, before, 5, at(60)) == before
