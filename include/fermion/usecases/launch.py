"""Submit a job and start the run that carries it: the door of the command line and of the API."""

from __future__ import annotations

from collections.abc import Mapping

from fermion.domain.forms import to_form
from fermion.domain.jobs import Job, Move, Phase
from fermion.domain.reasons import Explanation, Reason
from fermion.errors import FermionError
from fermion.ports import Runs
from fermion.usecases.check import check
from fermion.usecases.context import Context
from fermion.usecases.moving import load, write_move
from fermion.usecases.submit import submit

DAG_ID = "train_model"


def launch(ctx: Context, runs: Runs, raw: Mapping[str, object], *, actor: str, restart_of: str | None = None) -> Job:
    """The job, checked, with its run started under the job's id.

    Raises:
        RequestRefused: the request can never run as asked; all problems are listed.
        OutsideUnavailable: the engine did not start the run; the job has failed and says so.
    """
    job = submit(ctx, raw, dag_id=DAG_ID, run_id=None, actor=actor, restart_of=restart_of)
    job = check(ctx, job.id)
    try:
        runs.trigger(DAG_ID, job.id, to_form(job.spec))
    except FermionError as error:
        _say_not_started(ctx, job, error)
        raise
    return job


def _say_not_started(ctx: Context, job: Job, error: FermionError) -> None:
    with ctx.store.begin() as tx:
        now = load(tx, job.id)
        if now.phase is Phase.SUBMITTED:
            explanation = Explanation(Reason.RUN_ENDED, f"Its run could not be started: {error.message}")
            write_move(ctx, tx, now, Move(to=Phase.FAILED, explanation=explanation))
