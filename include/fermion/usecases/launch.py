"""Submit a job and start the run that carries it: the door of the command line and of the API."""

from __future__ import annotations

from collections.abc import Mapping

from fermion.domain.forms import to_form
from fermion.domain.jobs import Job, Move, Phase
from fermion.domain.reasons import Explanation, Reason
from fermion.errors import FermionError, RequestRefused
from fermion.ports import Runs
from fermion.usecases.check import check
from fermion.usecases.context import Context
from fermion.usecases.moving import settle, write_move
from fermion.usecases.submit import submit

DAG_ID = "train_model"


def launch(ctx: Context, runs: Runs, raw: Mapping[str, object], *, actor: str, restart_of: str | None = None) -> Job:
    """The job, checked, with its run started under the job's id.

    Raises:
        RequestRefused: the request can never run as asked; all problems are listed.
        OutsideUnavailable: something did not answer, so that no run was started; the job has failed and says so.
    """
    job = submit(ctx, raw, dag_id=DAG_ID, run_id=None, actor=actor, restart_of=restart_of)
    try:
        job = check(ctx, job.id)
        if job.is_final:
            return job  # stopped meanwhile
        runs.trigger(DAG_ID, job.id, to_form(job.spec))
    except RequestRefused:
        raise
    except FermionError as error:
        _say_not_started(ctx, job, error)
        raise
    return job


def _say_not_started(ctx: Context, job: Job, error: FermionError) -> None:
    explanation = Explanation(Reason.RUN_ENDED, f"Its run could not be started: {error.message}")
    move = Move(to=Phase.FAILED, explanation=explanation)
    settle(ctx, job.id, lambda tx, now: write_move(ctx, tx, now, move) if now.phase is Phase.SUBMITTED else now)
