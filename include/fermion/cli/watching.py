"""Watch a job in the terminal: its stages, then epochs with their metrics and a bar."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fermion.cli.output import clock, console, filled, seconds
from fermion.domain.counting import counted
from fermion.domain.figures import Method
from fermion.domain.jobs import Job, Phase
from fermion.domain.records import MetricPoint, StageSpan
from fermion.domain.watching import last_failure, with_failure
from fermion.errors import OutsideUnavailable
from fermion.usecases.context import Context
from fermion.usecases.moving import load

TICK_S = 0.25
BAR_WIDTH = 40
_DONE = {Phase.COMPLETED: "[green]✓[/]", Phase.FAILED: "[red]✗[/]"}
STAGES = ("pull_image", "mount_dataset", "clone_repository", "prepare", "wait_for_gpus", "train", "save_model")


@dataclass(slots=True)
class View:
    """What is shown of one job, as read at one moment."""

    job: Job
    spans: Sequence[StageSpan] = ()
    points: Sequence[MetricPoint] = field(default_factory=tuple)
    are_declared: bool = False

    @property
    def message(self) -> str:
        """Why the job is where it is, and whether a stage failed that is tried again."""
        return with_failure(self.job.explanation.message, last_failure(self.job, self.spans))


def _read_again(ctx: Context, job_id: str, before: View) -> View:
    """The view now; while the database does not answer, the last one: the training goes on without being watched."""
    try:
        return read_view(ctx, job_id)
    except OutsideUnavailable:
        return before


def read_view(ctx: Context, job_id: str) -> View:
    """The job with its stages and metrics."""
    with ctx.store.read() as tx:
        job = load(tx, job_id)
        pool = ctx.pools(tx).get(job.spec.pool)
        are_declared = pool is not None and pool.method is Method.DECLARED
        return View(job, tx.records.spans(job_id), tx.records.points(job_id, kind="training"), are_declared)


def wait_for_end(ctx: Context, job_id: str, *, timeout_s: float | None = None, quiet: bool = False) -> Job:
    """Show the job until it ends; the ended job (or, after ``timeout_s``, the job as it is)."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    if quiet or not console.is_terminal:
        return _wait_plainly(ctx, job_id, deadline, quiet=quiet)
    view = read_view(ctx, job_id)
    with Live(render(view), console=console, refresh_per_second=8, transient=False) as live:
        while not view.job.is_final and (deadline is None or time.monotonic() < deadline):
            time.sleep(TICK_S)
            view = _read_again(ctx, job_id, view)
            live.update(render(view))
    return view.job


def _wait_plainly(ctx: Context, job_id: str, deadline: float | None, *, quiet: bool) -> Job:
    """For logs and pipes: one line for every change, no control characters."""
    said = ""
    view = read_view(ctx, job_id)
    while True:
        line = _line(view)
        if line != said and not quiet:
            console.print(line, markup=False)
            said = line
        if view.job.is_final or (deadline is not None and time.monotonic() > deadline):
            return view.job
        time.sleep(TICK_S)
        view = _read_again(ctx, job_id, view)


def _line(view: View) -> str:
    job = view.job
    epoch = f" epoch {job.progress.epoch}/{job.progress.epochs}" if job.progress.epoch is not None else ""
    metrics = "".join(f" {name} {value:.4g}" for name, value in latest(view.points).items())
    return f"{job.id} {job.phase} {job.progress.percent:.0f} %{epoch}{metrics}: {view.message}"


def latest(points: Sequence[MetricPoint]) -> dict[str, float]:
    """The last value of each metric."""
    return {point.name: point.value for point in points}


def render(view: View) -> RenderableType:
    """The whole display."""
    job = view.job
    stages = Table.grid(padding=(0, 2))
    for mark, name, took in _stage_rows(view):
        stages.add_row(mark, name, took)
    parts: list[RenderableType] = [
        Text.from_markup(
            f"[bold]{job.id}[/]  {escape(job.spec.name)}  on {job.spec.pool} ({_devices(view)})  [dim]{job.phase}[/]"
        ),
        stages,
    ]
    if job.progress.at is not None:
        parts.extend(_progress(view))
    if job.stop_requested_at is not None and not job.is_final:
        parts.append(Text(f"Asked to end at {clock(job.stop_requested_at)} UTC by {job.stop_requested_by}."))
    parts.append(Text(view.message, style="red" if job.phase is Phase.FAILED else "dim"))
    return Group(*parts)


def _progress(view: View) -> list[RenderableType]:
    """The bar, and below it the metrics: beside it there is no room for them in 80 columns."""
    progress = view.job.progress
    bar = Table.grid(padding=(0, 2))
    epoch = f"epoch {progress.epoch}/{progress.epochs}" if progress.epoch is not None else ""
    bar.add_row(
        ProgressBar(total=100, completed=progress.percent, width=BAR_WIDTH), f"{progress.percent:3.0f} %", epoch
    )
    metrics = filled(f"{name} {value:.4f}" for name, value in latest(view.points).items())
    return [bar, Text(metrics)] if metrics else [bar]


def _devices(view: View) -> str:
    """What it asks for; a declared slot is never called a GPU."""
    return counted(view.job.spec.gpus, "declared slot" if view.are_declared else "GPU")


def _stage_rows(view: View) -> list[tuple[str, str, str]]:
    rows = []
    spans = {span.stage: span for span in view.spans}
    for stage in STAGES:
        span = spans.get(stage)
        if span is not None and span.ended_at is not None:
            mark = "[green]✓[/]" if span.outcome == "succeeded" else "[red]✗[/]"
            rows.append((mark, stage, seconds((span.ended_at - span.started_at).total_seconds())))
        elif stage in _now(view.job):
            rows.append(("[yellow]▸[/]", stage, ""))
    return rows


def _now(job: Job) -> frozenset[str]:
    """The stages that are going on in the job's phase."""
    table: dict[Phase, frozenset[str]] = {
        Phase.STAGING: frozenset({"pull_image", "mount_dataset", "clone_repository", "wait_for_gpus"}),
        Phase.WAITING: frozenset({"wait_for_gpus"}),
        Phase.STARTING: frozenset({"train"}),
        Phase.RUNNING: frozenset({"train"}),
        Phase.STOPPING: frozenset({"train"}),
        Phase.SAVING: frozenset({"save_model"}),
    }
    return table.get(job.phase, frozenset())
