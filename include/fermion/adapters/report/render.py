"""A report as one HTML page that needs nothing but itself: no script, no font, no image and no request to anywhere.

Everything in a report may come from strangers (names, logs, metrics, messages): the template escapes all of it, what
cannot be seen is made visible, and a content security policy in the page forbids the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fermion.adapters.report import charts, wording
from fermion.domain.accounting import Waste
from fermion.domain.figures import Figure
from fermion.domain.report import Report
from fermion.domain.series import Series
from fermion.domain.timeline import Activity

if TYPE_CHECKING:
    from jinja2 import Template

ACTIVITY_WORDS: dict[Activity, str] = {
    Activity.TRAINING: "training",
    Activity.HOLDING: "GPUs held, no process",
    Activity.SAVING: "saving the model",
    Activity.STAGING: "fetching image, data, code",
    Activity.WAITING: "in line, all fetched",
    Activity.CHECKING: "checking the request",
    Activity.CLOSING: "closing",
    Activity.BETWEEN: "between two stages",
}

WASTE_WORDS: dict[str, str] = {
    Waste.STARTING: "from the grant to the start of the process",
    Waste.ENDING: "from the end of the process to the end of the lease",
    Waste.NEVER_STARTED: "no process was ever seen",
    Waste.LOST: "after the process vanished without a record",
}


def render_html(report: Report) -> str:
    """The whole page."""
    return _template().render(
        report=report,
        timeline=timeline(report),
        keys=key_figures(report),
        metrics=[_drawn(series) for series in report.metrics],
        system=[_drawn(series) for series in report.system],
        attempts=sorted({point.attempt for series in report.metrics for point in series.points}),
        numbers={
            k: v for k, v in report.outcome.numbers.items() if isinstance(v, int | float) and not isinstance(v, bool)
        },
        activity_words=ACTIVITY_WORDS,
        waste_words=WASTE_WORDS,
    )


# --- what the page shows --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFigure:
    """One of the numbers at the top; ``note`` says more than the number in a few words."""

    title: str
    figure: Figure
    note: str = ""


def key_figures(report: Report) -> list[KeyFigure]:
    """The numbers that answer most questions; GPU figures only where a GPU was held."""
    figures, job = report.figures, report.job
    whole = figures["wall_seconds"]
    span = f"{job.submitted_at:%H:%M:%S} to {job.ended_at:%H:%M:%S} UTC" if job.ended_at else "it has not ended"
    keys = [
        KeyFigure(title="From submission to end", figure=whole, note=span),
        KeyFigure(title="In line", figure=figures["in_line_seconds"], note="from joining it to the grant"),
    ]
    if not report.leases:
        return keys
    keys.append(KeyFigure(title="Trained", figure=figures["training_seconds"], note=_of_whole(report)))
    used, held = figures["used_ratio"], job.devices or ""
    keys.append(KeyFigure(title="GPU-seconds held", figure=figures["gpu_seconds_held"], note=held))
    share = f"{wording.amount(used)} of what was held was used" if used.value is not None else ""
    keys.append(KeyFigure(title="GPU-seconds wasted", figure=figures["gpu_seconds_wasted"], note=share))
    if report.metrics:
        series = _telling(report.metrics)
        note = f"lowest {wording.amount(series.lowest)}, highest {wording.amount(series.highest)}"
        keys.append(KeyFigure(title=f"Last {wording.label(series.name)}", figure=series.last, note=note))
    else:
        keys.append(KeyFigure(title="Progress", figure=figures["progress_percent"]))
    return keys


def _of_whole(report: Report) -> str:
    ratio = next((share.ratio for share in report.shares if share.activity is Activity.TRAINING), 0.0)
    attempts = f", in {report.job.attempts} attempts" if report.job.attempts > 1 else ""
    return f"{wording.percent(ratio)} of the whole time{attempts}"


_TELLING = ("acc", "f1", "auc", "bleu", "score", "loss", "perplexity", "error")


def _telling(metrics: Sequence[Series]) -> Series:
    """The metric that most people look at first: by its name, one that was validated before one that was trained on."""

    def rank(series: Series) -> tuple[int, bool]:
        name = series.name.lower()
        known = [i for i, word in enumerate(_TELLING) if word in name]
        return min(known, default=len(_TELLING)), not name.startswith(("val", "test", "eval"))

    return min(metrics, key=rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A piece of a timeline row; ``left`` and ``width`` in percent of the row."""

    kind: str
    left: float
    width: float
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the timeline."""

    label: str
    note: str
    seconds: float
    bars: tuple[Bar, ...]
    is_bad: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Rows over one scale of time; ``marks`` are (left in percent, words)."""

    rows: tuple[Row, ...]
    band: tuple[Bar, ...]
    marks: tuple[tuple[float, str], ...]


def timeline(report: Report) -> Timeline:
    """Stages, then leases, placed between the submission and the end of the last of them."""
    start = report.job.submitted_at
    ends = [stage.ended_at for stage in report.stages]
    ends += [piece.started_at + timedelta(seconds=piece.seconds) for piece in report.band]
    total = max([(end - start).total_seconds() for end in ends], default=0.0) or 1.0

    def bar(kind: str, began: datetime, seconds: float, title: str) -> Bar:
        return _bar(kind, (began - start).total_seconds() / total, seconds / total, title)

    marks = tuple((round(mark / total * 100, 3), wording.tick(mark, "seconds")) for mark in charts.time_ticks(total))
    return Timeline(rows=(*_stage_rows(report, bar), *_lease_rows(report, bar)), band=_band(report), marks=marks)


_MakeBar = Callable[[str, datetime, float, str], Bar]


def _bar(kind: str, left: float, width: float, title: str) -> Bar:
    left = min(max(left, 0.0), 1.0)
    width = min(max(width, 0.0), 1.0 - left)
    return Bar(kind=kind, left=round(left * 100, 3), width=round(width * 100, 3), title=title)


def _band(report: Report) -> tuple[Bar, ...]:
    """The job's life from edge to edge; on a scale of its own, because what ran after the job's end is not part of it."""
    whole = sum(piece.seconds for piece in report.band) or 1.0
    bars, passed = [], 0.0
    for piece in report.band:
        title = f"{ACTIVITY_WORDS[piece.activity]}: {wording.duration(piece.seconds)}"
        bars.append(_bar(str(piece.activity), passed / whole, piece.seconds / whole, title))
        passed += piece.seconds
    return tuple(bars)


def _attempt(report: Report, attempt: int) -> str:
    return f"attempt {attempt}" if report.job.attempts > 1 else ""


def _stage_rows(report: Report, bar: _MakeBar) -> list[Row]:
    rows = []
    for stage in report.stages:
        title = f"{wording.label(stage.name)}: {wording.duration(stage.seconds)}, from {wording.when(stage.started_at)}"
        bad = stage.outcome not in (None, "succeeded")
        rows.append(
            Row(
                label=wording.label(stage.name),
                note=", ".join(filter(None, [_attempt(report, stage.attempt), "under way" if stage.is_open else ""])),
                seconds=stage.seconds,
                bars=(bar(str(stage.activity), stage.started_at, stage.seconds, title),),
                is_bad=bad,
            )
        )
    return rows


def _lease_rows(report: Report, bar: _MakeBar) -> list[Row]:
    """GPUs held, with the life of the process drawn over it: what shows beside it was wasted."""
    rows = []
    for lease in report.leases:
        end = lease.ended_at or report.generated_at
        held = (end - lease.granted_at).total_seconds()
        bars = [bar("holding", lease.granted_at, held, f"GPUs held: {wording.duration(held)}")]
        if lease.exec_at is not None:
            alive = ((lease.exit_at or end) - lease.exec_at).total_seconds()
            bars.append(bar("training", lease.exec_at, alive, f"process alive: {wording.duration(alive)}"))
        note = ", ".join(filter(None, [_attempt(report, lease.attempt), "" if lease.ended_at else "still held"]))
        rows.append(Row(label="GPUs held", note=note, seconds=held, bars=tuple(bars)))
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A series with its picture; ``caption`` tells what the picture leaves out."""

    title: str
    series: Series
    svg: str | None
    caption: str


def _title(series: Series) -> str:
    # The unit stands beside the value already.
    return series.name if series.kind == "training" else wording.label(series.name.removesuffix(f"_{series.unit}"))


def _drawn(series: Series) -> Drawn:
    if series.reason is not None:
        return Drawn(title=_title(series), series=series, svg=None, caption=series.reason)
    axis, _ = charts.x_axis(series.points)
    caption = [f"by {axis}" if axis != "after" else "by time"]
    if series.is_thinned:
        caption.append(
            f"{len(series.points):,} of {series.count:,} points drawn: the lowest and highest of each stretch, nothing averaged"
        )
    if series.not_finite:
        verb = "was" if series.not_finite == 1 else "were"
        caption.append(f"{series.not_finite:,} of {series.count:,} values {verb} no finite number (gaps)")
    words = f"{wording.visible(series.name)}: from {wording.amount(series.first)} to {wording.amount(series.last)}"
    return Drawn(title=_title(series), series=series, svg=charts.chart(series, label=words), caption="; ".join(caption))


# --- jinja ----------------------------------------------------------------------------------------------------------


@cache
def _template() -> Template:
    # Imported when first needed, as pygal is.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "amount": wording.amount,
        "duration": wording.duration,
        "number": wording.number,
        "percent": wording.percent,
        "size": wording.size,
        "gpu_seconds": wording.gpu_seconds,
        "when": wording.when,
        "label": wording.label,
        "literal": wording.literal,
        "told": told,
    }
    return environment.get_template("template.html.j2")


def _finalize(value: Any) -> Any:
    # Markup is a str too, and has to stay Markup; only this module's own SVG and the style sheet are.
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return wording.visible(value)
    return wording.NOTHING if value is None else value


def told(value: object) -> str:
    """A JSON-ready value in one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return wording.number(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {told(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(told(item) for item in value)
    return wording.NOTHING if value is None else str(value)
