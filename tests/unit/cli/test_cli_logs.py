"""``fermion logs`` where there is nothing to print: words on standard error, and the right code."""

from __future__ import annotations

import json

import pytest
from installations import Installation

from fermion.domain.jobs import Move, Phase
from fermion.domain.reasons import Explanation, Reason
from fermion.settings import load
from fermion.usecases.context import Context
from fermion.usecases.moving import load as load_job
from fermion.usecases.moving import write_move
from fermion.usecases.submit import submit
from fermion.wiring import build

REQUEST = {
    "name": "digits",
    "pool": "local/declared",
    "image": "digits:1",
    "repository": "https://git.example/x.git",
    "entrypoint": "python train.py",
    "output_model": "digits",
}


@pytest.fixture
def platform(installed: Installation) -> Context:
    return build(load(environ={"FERMION_ROOT": str(installed.root), "FERMION_DATABASE_URL": installed.database}))


def test_a_job_that_has_not_run_says_so_and_why(installed: Installation, platform: Context) -> None:
    job = submit(platform, REQUEST, dag_id="train_model", run_id=None, actor="ann")
    assert installed.called("logs", job.id) == (0, "", f"{job.id} has not run yet: The request is being checked.\n")
    with platform.store.begin() as tx:
        failed = Move(to=Phase.FAILED, explanation=Explanation(Reason.STOPPED, "Stopped by ann."))
        write_move(platform, tx, load_job(tx, job.id), failed)
    assert installed.called("logs", "-f", job.id) == (0, "", f"{job.id} never ran: Stopped by ann.\n")
    code, printed, complained = installed.called("logs", job.id, "--json")
    assert (code, complained) == (0, "")
    assert json.loads(printed) == {"job": job.id, "attempts": [], "log": "", "bytes": 0, "missing": None}


def test_an_attempt_that_there_is_not_is_not_found(installed: Installation, platform: Context) -> None:
    job = submit(platform, REQUEST, dag_id="train_model", run_id=None, actor="ann")
    code, printed, complained = installed.called("logs", "--attempt", "7", job.id)
    assert (code, printed) == (4, "")
    assert complained == f"job {job.id} has no attempt 7; it has had 1 attempt.\n"
