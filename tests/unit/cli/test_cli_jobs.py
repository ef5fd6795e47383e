"""Commands about one job: what they print of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from installations import Installation

from builders import make_node
from fermion.cli.output import Exit
from fermion.domain.figures import Method
from fermion.domain.jobs import Job, Phase
from fermion.domain.reasons import Explanation, Reason
from fermion.settings import load
from fermion.usecases.context import Context
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


@pytest.fixture
def job(platform: Context) -> Job:
    return submit(platform, REQUEST, dag_id="train_model", run_id=None, actor="ann")


def test_a_stop_that_was_asked_for_is_told_with_its_time_and_who_asked(
    installed: Installation, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads(installed.fermion("job", job.id, "--json")[1])
    assert (before["stop_requested_at"], before["stop_requested_by"]) == (None, None)
    monkeypatch.setenv("LOGNAME", "bob")
    told = json.loads(installed.fermion("stop", job.id, "--json")[1])
    assert told["stop_requested_by"] == "bob"
    assert told["stop_requested_at"] > told["submitted_at"]
    assert "by bob." in installed.fermion("job", job.id)[1]
    assert installed.fermion("stop", job.id)[1].startswith(f"{job.id} was asked to end;")


def test_waiting_for_a_stop_ends_with_the_job_or_says_that_it_goes_on(
    installed: Installation, platform: Context, job: Job
) -> None:
    code, _, said = installed.called("stop", "--wait", "--timeout", "0", job.id)
    assert (code, "Gave up watching after 0 s" in said) == (Exit.GOES_ON, True)
    with platform.store.begin() as tx:
        asked = tx.jobs.get(job.id)
        assert asked is not None
        tx.jobs.save(replace(asked, phase=Phase.FAILED, explanation=Explanation(Reason.STOPPED, "Stopped by ann.")))
    code, said = installed.fermion("stop", "--wait", job.id)
    assert (code, said) == (0, f"{job.id} has ended already: Stopped by ann.\n")
    assert installed.fermion("stop", "--timeout", "1", job.id)[0] == 2


@pytest.mark.parametrize(
    ("method", "gpus", "words"),
    [
        (Method.DECLARED, 1, "(1 declared slot)"),
        (Method.DECLARED, 2, "(2 declared slots)"),
        (Method.MEASURED, 1, "(1 GPU)"),
        (Method.MEASURED, 2, "(2 GPUs)"),
    ],
)
def test_a_declared_slot_is_never_called_a_gpu(
    installed: Installation, platform: Context, method: Method, gpus: int, words: str
) -> None:
    node = make_node(gpus=2)
    devices = tuple(replace(device, method=method) for device in node.devices)
    with platform.store.begin() as tx:
        tx.catalog.put_nodes("local", [replace(node, devices=devices)])
    job = submit(platform, {**REQUEST, "gpus": gpus}, dag_id="train_model", run_id=None, actor="ann")
    first = installed.fermion("job", job.id)[1].splitlines()[0]
    assert first.split("  ")[2:] == [f"on local/declared {words}", "submitted"]
