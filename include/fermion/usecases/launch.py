"""Submit a job and start the run that carries it: the door of the command line and of the API."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fermion.domain.forms import to_form
from fermion.domain.jobs import Job, Move, Phase
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.request import read_request
from fermion.errors import FermionError
from fermion.ports import Runs
from fermion.usecases.check import check
from fermion.usecases.context import Context
from fermion.usecases.examine import examine
from fermion.usecases.moving import settle, write_move
from fermion.usecases.stage import enqueue
from fermion.usecases.submit import submit

log = logging.getLogger(__name__)

DAG_ID = "train_model"


def launch(ctx: Context, runs: Runs, raw: Mapping[str, object], *, actor: str, restart_of: str | None = None) -> Job:
    """The job, checked and in line, with its run started under the job's id.

    Its place in line does not wait for the engine to come to its tasks. Everything that must answer is asked before there is
    a job, so that a request that is sent again leaves nothing behind.

    Raises:
        RequestRefused: the request can never run as asked; all problems are listed.
        OutsideUnavailable: something did not answer and there is no job; the same call may succeed later. Only where the
            engine answered and then could not start the run, there is one, which has failed; the message names it.
    """
    asked = read_request(raw).owned_by(actor)
    found = None if asked.problems else examine(ctx, asked)
    if found is not None and not found.problems:  # else it is refused anyway
        runs.state(DAG_ID, "-")
    job = submit(ctx, raw, dag_id=DAG_ID, run_id=None, actor=actor, restart_of=restart_of)
    job = check(ctx, job.id, found)
    if job.is_final:
        return job  # stopped meanwhile
    try:
        runs.trigger(DAG_ID, job.id, to_form(job.spec))
    except FermionError as error:
        _say_not_started(ctx, job, error)
        raise type(error)(f"{error.message} Job {job.id} has failed because of it.", what=error.what) from error
    try:
        return enqueue(ctx, job.id)
    except FermionError as error:
        log.warning("job %s joins the line when its run comes to it: %s", job.id, error)
        return job


def _say_not_started(ctx: Context, job: Job, error: FermionError) -> None:
    explanation = Explanation(Reason.RUN_ENDED, f"Its run could not be started: {error.message}")
    move = Move(to=Phase.FAILED, explanation=explanation)
    settle(ctx, job.id, lambda tx, now: write_move(ctx, tx, now, move) if now.phase is Phase.SUBMITTED else now)
