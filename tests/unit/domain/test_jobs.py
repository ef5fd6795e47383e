"""Jobs: which moves are legal, what a move sets, which word each phase is."""

from __future__ import annotations

from itertools import product

import pytest

from builders import at, make_job, seconds
from fermion.domain.jobs import (
    FINAL,
    HOLDING,
    IN_LINE,
    TRANSITIONS,
    Job,
    Move,
    Phase,
    Progress,
    Status,
    apply,
    phases_of,
)
from fermion.domain.reasons import Explanation, Reason
from fermion.errors import InvalidTransition

WHY = Explanation(Reason.TRAINING, "because")

LEGAL = {
    ("submitted", "staging"),
    ("submitted", "failed"),
    ("staging", "waiting"),
    ("staging", "failed"),
    ("waiting", "starting"),
    ("waiting", "failed"),
    ("starting", "running"),
    ("starting", "stopping"),
    ("starting", "saving"),
    ("starting", "staging"),
    ("starting", "failed"),
    ("running", "stopping"),
    ("running", "saving"),
    ("running", "staging"),
    ("running", "failed"),
    ("stopping", "staging"),
    ("stopping", "saving"),
    ("stopping", "failed"),
    ("saving", "completed"),
    ("saving", "failed"),
}


@pytest.mark.parametrize(("before", "to"), list(product(Phase, Phase)), ids=str)
def test_a_job_moves_only_where_the_table_lets_it(before: Phase, to: Phase) -> None:
    job = make_job(phase=before)
    if (str(before), str(to)) in LEGAL:
        moved = apply(job, Move(to=to, explanation=WHY), at(5))
        assert (moved.phase, moved.explanation, moved.changed_at) == (to, WHY, at(5))
    else:
        with pytest.raises(InvalidTransition, match=f"cannot go from {before} to {to}"):
            apply(job, Move(to=to, explanation=WHY), at(5))


def test_the_table_names_every_phase_and_final_ones_lead_nowhere() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert {phase for phase, after in TRANSITIONS.items() if not after} == FINAL


def test_every_phase_is_one_of_the_four_words() -> None:
    words = {status: phases_of(status) for status in Status}
    assert sum(len(phases) for phases in words.values()) == len(Phase)
    assert words[Status.PENDING] == {Phase.SUBMITTED, *IN_LINE}
    assert words[Status.RUNNING] == {*HOLDING, Phase.SAVING}
    assert all(make_job(phase=phase).status is word for word, phases in words.items() for phase in phases)


def move(job: Job, to: Phase, **changes: object) -> Job:
    return apply(job, Move(to=to, explanation=WHY, **changes), at(5))  # type: ignore[arg-type]


def test_joining_the_line_gives_a_place_that_a_fresh_attempt_keeps() -> None:
    joined = move(make_job(phase=Phase.SUBMITTED, queued_at=None), Phase.STAGING)
    assert joined.queued_at == at(5)
    again = move(make_job(phase=Phase.RUNNING, queued_at=at(-50)), Phase.STAGING, fresh_attempt=True)
    assert again.queued_at == at(-50)


def test_the_start_is_that_of_the_first_attempt() -> None:
    assert move(make_job(started_at=None), Phase.STARTING).started_at == at(5)
    assert move(make_job(started_at=at(-20)), Phase.STARTING).started_at == at(-20)


@pytest.mark.parametrize(("before", "to"), [(Phase.SAVING, Phase.COMPLETED), (Phase.RUNNING, Phase.FAILED)])
def test_an_end_has_its_time(before: Phase, to: Phase) -> None:
    assert move(make_job(phase=before), to).ended_at == at(5)
    assert move(make_job(phase=Phase.RUNNING), Phase.STOPPING).ended_at is None


def test_a_fresh_attempt_reads_its_own_progress_from_the_start_and_knows_the_usual_step() -> None:
    heard = Progress(percent=40, epoch=4, epochs=10, at=at(-1), usual_step=seconds(2), offset=900, lines=30)
    job = make_job(phase=Phase.RUNNING, progress=heard, preempted_for="job-9", attempt=2)
    fresh = move(job, Phase.STAGING, fresh_attempt=True, exclude_node="n0")
    assert fresh.attempt == 3
    assert fresh.progress == Progress(percent=40, epoch=4, epochs=10, usual_step=seconds(2))
    assert (fresh.preempted_for, fresh.excluded_nodes) == (None, ("n0",))


def test_a_published_model_has_a_path() -> None:
    job = make_job(phase=Phase.SAVING)
    assert job.output_model_path is None
    assert move(job, Phase.COMPLETED, model_version=7).output_model_path == "digits/7"


@pytest.mark.parametrize("phase", list(Phase))
def test_the_questions_about_a_phase_agree_with_each_other(phase: Phase) -> None:
    job = make_job(phase=phase)
    assert job.is_final is (phase in FINAL)
    assert job.is_failed is (phase is Phase.FAILED)
    assert job.is_waiting is (job.status is Status.PENDING)
    assert job.is_training is (job.is_waiting or phase in HOLDING)
