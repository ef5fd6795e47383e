"""``--wait``: what ends with the watching, and what does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import StringIO

import pytest
from installations import Installation
from rich.console import Console

from builders import NOW, make_job
from fermion.cli import output, watching
from fermion.domain.jobs import Job, Progress
from fermion.domain.records import MetricPoint
from fermion.ports import Runs
from fermion.usecases import launch
from fermion.usecases.context import Context
from fermion.usecases.submit import submit

SPEC = """
name: digits
pool: local/declared
image: digits:1
repository: https://git.example/x.git
entrypoint: python train.py
output_model: digits
"""


@pytest.fixture
def asked(installed: Installation, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """With a spec in ``run/`` whose job is recorded and goes no further."""

    def record(ctx: Context, runs: Runs, raw: Mapping[str, object], *, actor: str) -> Job:
        return submit(ctx, raw, dag_id="train_model", run_id=None, actor=actor)

    monkeypatch.setattr(launch, "launch", record)
    (installed.root / "run" / "job.yaml").write_text(SPEC)
    return installed


def how_to_go_on(job_id: str) -> str:
    return (
        f"{job_id} goes on. Watch it: fermion job {job_id}   its log: fermion logs -f {job_id}"
        f"   end it: fermion stop {job_id}\n"
    )


def test_giving_up_after_the_timeout_is_told_and_has_a_code_of_its_own(asked: Installation) -> None:
    code, printed, complained = asked.called("train", "--spec", "job.yaml", "--wait", "--timeout", "0")
    (job,) = json.loads(asked.fermion("jobs", "--json")[1])
    assert (code, complained) == (7, f"Gave up watching after 0 s; {how_to_go_on(job['id'])}")
    assert printed.startswith(f"{job['id']} submitted 0 %")


def test_for_programs_the_code_says_it_and_the_job_is_printed(asked: Installation) -> None:
    code, printed, complained = asked.called("train", "--spec", "job.yaml", "--wait", "--timeout", "0", "--json")
    assert (code, json.loads(printed)["status"], complained) == (7, "pending", "")


def test_ctrl_c_ends_the_watching_only(asked: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watching.time, "sleep", interrupted)
    code, _, complained = asked.called("train", "--spec", "job.yaml", "--wait")
    (job,) = json.loads(asked.fermion("jobs", "--json")[1])
    assert (code, complained) == (130, f"Stopped watching; {how_to_go_on(job['id'])}")
    assert (job["status"], job["phase"]) == ("pending", "submitted")


def test_the_metrics_stand_below_the_bar_and_none_apart_from_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "console", Console(width=60))
    names = ("accuracy", "loss", "validation_loss", "learning_rate")
    points = [
        MetricPoint(job_id="job-1", attempt=1, number=2, kind="training", name=name, value=0.25, at=NOW)
        for name in names
    ]
    job = make_job(progress=Progress(percent=5.0, epoch=2, epochs=40, at=NOW))
    shown = Console(width=60, record=True, file=StringIO())
    shown.print(watching.render(watching.View(job, points=points)))
    lines = [line.rstrip() for line in shown.export_text().splitlines()]
    place = next(number for number, line in enumerate(lines) if "epoch 2/40" in line)
    assert lines[place].endswith("5 %  epoch 2/40")
    assert lines[place + 1 : place + 3] == [
        "accuracy 0.2500  loss 0.2500  validation_loss 0.2500", "learning_rate 0.2500"
    ]  # fmt: skip
