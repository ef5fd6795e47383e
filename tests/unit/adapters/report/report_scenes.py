"""Whole runs as rows, one for each way a report has to look: built as the platform would have written them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from builders import at, make_ended_lease, make_job, make_pool, make_spec
from fermion.domain.artifacts import FileEntry, ModelVersion, tree_checksum
from fermion.domain.figures import Figure, Method
from fermion.domain.jobs import Job, Phase, Pins, Progress
from fermion.domain.leases import Lease
from fermion.domain.pools import Pool
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.records import Decision, MetricPoint, StageSpan
from fermion.domain.report import Report, build_report

PINS = Pins(
    image_digest="sha256:" + "a1" * 32, commit="c0ffee" * 6 + "beef", datasets={"digits": "sha256:" + "d5" * 32}
)
SPEC = make_spec(
    name="digits baseline",
    repository="https://git.example.org/ml/digits.git",
    entrypoint=("python", "train.py"),
    datasets=("digits",),
    hyperparameters={"lr": 0.05, "epochs": 12, "hidden": 128, "optimiser": "adam", "augment": True},
    gpus_per_node=2,
    memory_mib=2048,
    max_runtime=timedelta(hours=2),
    team="vision",
)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The rows of one run."""

    job: Job
    leases: Sequence[Lease] = ()
    spans: Sequence[StageSpan] = ()
    points: Sequence[MetricPoint] = ()
    decisions: Sequence[Decision] = ()
    model: ModelVersion | None = None
    pool: Pool | None = field(default_factory=make_pool)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    log_tail: str = ""
    now_s: float = 3600

    def report(self) -> Report:
        """The report of it."""
        return build_report(
            self.job,
            leases=self.leases,
            spans=self.spans,
            points=self.points,
            decisions=self.decisions,
            model=self.model,
            pool=self.pool,
            figures=self.figures,
            log_tail=self.log_tail,
            now=at(self.now_s),
        )


def span(
    stage: str, start: float, end: float | None, *, attempt: int = 1, outcome: str = "succeeded", detail: str = ""
) -> StageSpan:
    """A recorded stage, in seconds after ``NOW``."""
    return StageSpan(
        job_id="job-20260302-001",
        attempt=attempt,
        stage=stage,
        started_at=at(start),
        ended_at=None if end is None else at(end),
        outcome=None if end is None else outcome,
        detail=detail,
    )


def curve(
    name: str,
    values: Sequence[float],
    *,
    start: float,
    step_s: float,
    attempt: int = 1,
    kind: str = "training",
    epoch: int | None = 1,
) -> list[MetricPoint]:
    """One metric's points; ``epoch`` counts up from there, None leaves it out."""
    return [
        MetricPoint(
            job_id="job-20260302-001",
            attempt=attempt,
            number=i,
            kind=kind,
            name=name,
            value=value,
            at=at(start + i * step_s),
            epoch=None if epoch is None else epoch + i,
        )
        for i, value in enumerate(values)
    ]


def _learning(
    start: float, count: int, *, attempt: int = 1, first_epoch: int = 1, step_s: float = 3.0
) -> list[MetricPoint]:
    epochs = range(first_epoch, first_epoch + count)
    return [
        *curve(
            "loss",
            [2.3 * math.exp(-e / 4) + 0.05 + 0.04 * math.sin(e * 5) for e in epochs],
            start=start,
            step_s=step_s,
            attempt=attempt,
            epoch=first_epoch,
        ),
        *curve(
            "accuracy",
            [0.985 - 0.8 * math.exp(-e / 3) for e in epochs],
            start=start,
            step_s=step_s,
            attempt=attempt,
            epoch=first_epoch,
        ),
        *curve(
            "learning_rate",
            [0.05 * 0.9**e for e in epochs],
            start=start,
            step_s=step_s,
            attempt=attempt,
            epoch=first_epoch,
        ),
    ]


def _use(start: float, seconds: int, *, attempt: int = 1, ceiling: float = 640) -> list[MetricPoint]:
    return [
        *curve(
            "cpu_cores",
            [1.8 + 0.15 * math.sin(i) - 1.2 * math.exp(-i / 2) for i in range(seconds)],
            start=start,
            step_s=1,
            attempt=attempt,
            kind="system",
            epoch=None,
        ),
        *curve(
            "memory_mib",
            [ceiling * (1 - 0.8 * math.exp(-i / 6)) for i in range(seconds)],
            start=start,
            step_s=1,
            attempt=attempt,
            kind="system",
            epoch=None,
        ),
    ]


def _decision(number: int, kind: str, verdict: str, message: str, offset: float, **numbers: object) -> Decision:
    return Decision(
        id=f"dec-{number:06d}",
        kind=kind,
        subject="job-20260302-001",
        verdict=verdict,
        reason="granted",
        message=message,
        rule_version="3",
        decided_at=at(offset),
        inputs={"free": 4},
        numbers=numbers,
    )


def _model(job: Job) -> ModelVersion:
    files = (
        FileEntry(path="config.json", size=412, sha256="e1" * 32),
        FileEntry(path="model.npz", size=1_843_200, sha256="f2" * 32),
    )
    return ModelVersion(
        model="digits",
        number=7,
        checksum=tree_checksum(files),
        files=files,
        uri="file:///srv/models/digits/7",
        created_at=job.ended_at or at(0),
        metrics={"accuracy": 0.9722, "loss": 0.0931},
    )


def _published(run: str, **changes: Any) -> Job:
    """A job whose model is version 7 of digits."""
    defaults: dict[str, Any] = {
        "spec": SPEC,
        "phase": Phase.COMPLETED,
        "explanation": Explanation(
            Reason.MODEL_PUBLISHED, "Version 7 of digits is in the repository, 2 files with 1.8 MiB."
        ),
        "run": ("train_model", run),
        "pins": PINS,
        "submitted_at": at(0),
        "model_version": 7,
    }
    return make_job(**{**defaults, **changes})


def _of_exit(value: str | float, unit: str, at_s: float) -> Figure:
    """What the runner's exit record says."""
    source = "the runner's exit record"
    return Figure(value=value, unit=unit, source=source, method=Method.MEASURED, observed_at=at(at_s))


_FETCH = (
    span("check_quota", 0.4, 1.1),
    span("enqueue", 1.6, 1.65),
    span("pull_image", 2.3, 9.8),
    span("mount_dataset", 2.4, 5.9),
    span("clone_repository", 2.4, 3.3),
)


def completed() -> Scene:
    """All went well."""
    job = _published(
        "manual__2026-03-02T12:00:00+00:00",
        progress=Progress(percent=100, epoch=12, epochs=12, at=at(60)),
        queued_at=at(1.65),
        started_at=at(23.2),
        ended_at=at(64.1),
    )
    lease = make_ended_lease(
        "lease-000041", gpus=2, granted_at=at(23.2), ended_s=61.4, token=41, exec_at=at(23.42), exit_at=at(61.1)
    )
    return Scene(
        job=job,
        leases=[lease],
        spans=[
            *_FETCH,
            span("save_model", 62.2, 64.1),
            span("release_gpus", 64.4, 64.9),
            span("write_report", 65.2, None),
        ],
        points=[*_learning(26, 12), *_use(24, 37)],
        decisions=[
            _decision(
                118,
                "admit",
                "wait",
                "pool 'local/declared' has 7 of 8 GPUs in use; job 'job-20260302-001' asks for 2. It waits at position 1.",
                9.9,
                position=1,
                free=1,
                wanted=2,
            ),
            _decision(121, "admit", "grant", "2 of 3 free GPUs on node n0 are granted.", 23.2, free=3, wanted=2),
        ],
        model=_model(job),
        figures={"exit_code": _of_exit(0, "code", 61.1)},
        log_tail="loading 1,437 training and 360 test samples\n"
        + "\n".join(f"epoch {e}/12 loss {2.3 * math.exp(-e / 4) + 0.05:.4f}" for e in range(1, 13))
        + "\nsaved model.npz\n",
        now_s=65.3,
    )


def refused() -> Scene:
    """The check found three problems; the job never joined the line, held nothing and has no pins."""
    problems = [
        {
            "field": "image",
            "code": "unknown_image",
            "message": "there is no image 'digit:1' on this cluster.",
            "fix": "Choose one of: digits:1, torch-cpu:2.",
        },
        {
            "field": "gpus",
            "code": "over_pool",
            "message": "the job asks for 16 GPUs; pool 'local/declared' has 8 in all.",
            "fix": "Ask for at most 8.",
        },
        {
            "field": "ref",
            "code": "unknown_ref",
            "message": "the repository has no branch, tag or commit 'mian'.",
            "fix": "Did you mean main?",
        },
    ]
    job = make_job(
        spec=make_spec(
            name="digits baseline",
            image="digit:1",
            ref="mian",
            gpus_per_node=16,
            datasets=("digits",),
            hyperparameters={"epochs": 12},
        ),
        phase=Phase.FAILED,
        explanation=Explanation(
            Reason.CHECK_REFUSED, "The request has 3 problems and never joined the line.", {"problems": problems}
        ),
        run=("train_model", "ci-4711"),
        submitted_at=at(0),
        queued_at=None,
        ended_at=at(1.3),
    )
    return Scene(
        job=job, spans=[span("check_quota", 0.5, 1.3, outcome="failed", detail="the request has 3 problems")], now_s=2.5
    )


def out_of_memory() -> Scene:
    """Ended at its memory limit, halfway."""
    job = make_job(
        spec=SPEC,
        phase=Phase.FAILED,
        explanation=Explanation(
            Reason.OUT_OF_MEMORY,
            "The training took more than its 2,048 MiB of memory and was ended. Ask for more with memory_mib, or use smaller batches.",
            {"limit_mib": 2048, "peak_mib": 2063.5},
        ),
        run=("train_model", "manual__2026-03-02T12:00:00+00:00"),
        pins=PINS,
        progress=Progress(percent=41.7, epoch=5, epochs=12, at=at(40)),
        submitted_at=at(0),
        queued_at=at(1.65),
        started_at=at(10.3),
        ended_at=at(31.2),
    )
    lease = make_ended_lease(
        "lease-000042",
        gpus=2,
        granted_at=at(10.3),
        ended_s=31.2,
        token=42,
        exec_at=at(10.5),
        exit_at=at(30.8),
        cause="out_of_memory",
    )
    return Scene(
        job=job,
        leases=[lease],
        spans=[
            *_FETCH,
            span("train", 10.9, 31.2, outcome="failed", detail="out of memory"),
            span("release_gpus", 32, 32.4),
            span("write_report", 33, None),
        ],
        points=[*_learning(13, 5), *_use(11, 19, ceiling=2170)],
        decisions=[
            _decision(130, "admit", "grant", "2 of 8 free GPUs on node n0 are granted.", 10.3, free=8, wanted=2)
        ],
        figures={
            "exit_signal": _of_exit("SIGKILL", "signal", 30.8),
            "max_rss_mib": _of_exit(2063.5, "mib", 30.8),
        },
        log_tail="epoch 4/12 loss 0.9140\nepoch 5/12 loss 0.7411\nloading the whole archive into memory\nrunner: 2063.5 MiB is over the limit of 2048 MiB; ending the training\n",
        now_s=33.1,
    )


def _two_leases() -> list[Lease]:
    """The first was taken for a higher priority; the newest comes first."""
    first = make_ended_lease(
        "lease-000041",
        gpus=2,
        granted_at=at(60),
        ended_s=311,
        token=41,
        exec_at=at(60.4),
        exit_at=at(309),
        cause="preempted",
    )
    second = make_ended_lease(
        "lease-000055",
        gpus=2,
        first=4,
        granted_at=at(640),
        ended_s=962,
        token=55,
        exec_at=at(642),
        exit_at=at(961),
        attempt=2,
    )
    return [second, first]


def preempted() -> Scene:
    """Lost its GPUs after six epochs, went on from the checkpoint ten minutes later, published."""
    job = _published(
        "scheduled__2026-03-02T12:00:00+00:00",
        attempt=2,
        progress=Progress(percent=100, epoch=12, epochs=12, at=at(950)),
        queued_at=at(312),
        started_at=at(60),
        ended_at=at(968),
    )
    return Scene(
        job=job,
        leases=_two_leases(),
        spans=[
            *_FETCH,
            span("save_model", 963, 968, attempt=2),
            span("release_gpus", 968.5, 969, attempt=2),
            span("write_report", 969.4, None, attempt=2),
        ],
        points=[
            *_learning(80, 6, step_s=40),
            *_learning(690, 7, attempt=2, first_epoch=6, step_s=40),
            *_use(62, 240),
            *_use(645, 310, attempt=2),
        ],
        decisions=[
            _decision(118, "admit", "grant", "2 of 3 free GPUs on node n0 are granted.", 60, free=3, wanted=2),
            _decision(
                131,
                "preempt",
                "take",
                "job 'job-20260302-009' (priority 50) takes 2 GPUs of job 'job-20260302-001' (priority 0), the newest of the smallest set.",
                300,
                priority=50,
            ),
            _decision(150, "admit", "grant", "2 of 2 free GPUs on node n0 are granted.", 640, free=2, wanted=2),
        ],
        model=_model(job),
        now_s=969.6,
    )


HOSTILE = (
    "<script>alert('x')</script>\"'><img src=https://evil.example/x onerror=alert(1)>\x00\u202egnp.exe\ud800</style>"
)
"""What a name, a message, a metric or a log line may hold at worst."""


def _hostile_job() -> Job:
    return make_job(
        spec=make_spec(
            name=HOSTILE,
            owner=HOSTILE,
            team=HOSTILE,
            pool=HOSTILE,
            image=HOSTILE,
            repository=f"https://user:hunter2@{HOSTILE}/x.git",
            ref=HOSTILE,
            entrypoint=("python", HOSTILE),
            output_model=HOSTILE,
            datasets=(HOSTILE,),
            hyperparameters={HOSTILE: HOSTILE},
        ),
        phase=Phase.FAILED,
        explanation=Explanation(
            Reason.USER_CODE,
            HOSTILE,
            {HOSTILE: HOSTILE, "problems": [{"field": HOSTILE, "message": HOSTILE, "fix": HOSTILE}]},
        ),
        run=(HOSTILE, HOSTILE),
        submitted_at=at(0),
        queued_at=at(1.65),
        ended_at=at(70),
        stop_requested_by=HOSTILE,
    )


def hostile() -> Scene:
    """Every string that a stranger can choose is ``HOSTILE``."""
    seen = completed()
    return Scene(
        job=_hostile_job(),
        leases=[
            make_ended_lease(
                HOSTILE, granted_at=at(10), ended_s=60, node=HOSTILE, cause=HOSTILE, exec_at=at(11), exit_at=at(59)
            )
        ],
        spans=[span(HOSTILE, 1, 2, outcome=HOSTILE, detail=HOSTILE)],
        points=[
            *curve(HOSTILE, [1.0, math.nan, math.inf, 2.0], start=12, step_s=1),
            *curve(HOSTILE, [1.0], start=12, step_s=1, kind="system"),
        ],
        decisions=[_decision(1, HOSTILE, HOSTILE, HOSTILE, 5, **{HOSTILE: HOSTILE})],
        model=ModelVersion(
            model=HOSTILE,
            number=1,
            checksum=HOSTILE,
            files=(FileEntry(path=HOSTILE, size=1, sha256=HOSTILE),),
            uri=HOSTILE,
            created_at=at(1),
            metrics={HOSTILE: math.nan},
        ),
        pool=seen.pool,
        figures={
            HOSTILE: Figure(value=HOSTILE, unit=HOSTILE, source=HOSTILE, method=Method.MEASURED, observed_at=at(1))
        },
        log_tail=f"{HOSTILE}\n\x1b[31mred\x1b[0m\r10 %\r20 %\r100 %\n" * 5,
    )


SCENES = {scene.__name__: scene for scene in (completed, refused, out_of_memory, preempted)}
