"""Line charts of one metric as inline SVG: by pygal, without its scripts and with the page's own colours.

pygal draws on a scale of 0 to 1 that is computed here, so that no value a training can print upsets it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from fermion.adapters.report.wording import in_unit, tick
from fermion.domain.series import Series, SeriesPoint

WIDTH, HEIGHT = 520, 210
DOTS = 60
"""Up to so many points are drawn as dots as well, each with its value to hover over."""

LINES = 6
"""Colours there are; a job's seventh attempt has the first one's again."""


def chart(series: Series, *, label: str) -> str:
    """The series as ``<svg>``: one line an attempt, a gap where a value is no number; ``label`` is for who cannot see it."""
    axis, positions = x_axis(series.points)
    xs, x_ticks = _along(positions, axis)
    drawn = [point.value for point in series.points]
    ys, y_ticks = _scaled([v for v in drawn if v is not None], _bounds(series))
    heights = iter(ys)
    lines: dict[int, list[dict[str, Any]]] = {}
    for point, x, position in zip(series.points, xs, positions, strict=True):
        y = None if point.value is None else next(heights)
        text = f"{axis} {_position(position, axis)}: {in_unit(point.value, series.unit)}"
        lines.setdefault(point.attempt, []).append({"value": (x, y), "label": text})
    return _svg(
        lines,
        x_labels=[{"value": at, "label": _mark(value, axis)} for at, value in x_ticks],
        y_labels=[{"value": at, "label": tick(value, series.unit)} for at, value in y_ticks],
        dots=len(series.points) <= DOTS,
        label=label,
    )


def x_axis(points: Sequence[SeriesPoint]) -> tuple[str, list[float]]:
    """What to draw along, and each point's place: the epoch or step where these tell the points apart, else the time."""
    for axis in ("epoch", "step"):
        places = [getattr(point, axis) for point in points]
        apart = {(point.attempt, place) for point, place in zip(points, places, strict=True)}
        if None not in places and len(apart) == len(points) and len(points) > 1:
            return axis, [float(place) for place in places]
    start: datetime | None = min((point.at for point in points), default=None)
    return "after", [(point.at - start).total_seconds() if start else 0.0 for point in points]


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, about so many; empty where there is no room between the two."""
    span = high - low
    if not (math.isfinite(span) and span > 1e-290):
        return []
    magnitude = math.pow(10.0, math.floor(math.log10(span / about)))
    step = min((factor * magnitude for factor in (1, 2, 2.5, 5, 10)), key=lambda s: abs(span / s - about))
    first = math.ceil(low / step - 1e-9)
    return [
        round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, math.floor(high / step + 1e-9) + 1)
    ]


_TIME_STEPS = [60 * m for m in (1, 2, 5, 10, 15, 30)] + [3600 * h for h in (1, 2, 3, 6, 12)]


def time_ticks(high: float, *, about: int = 6) -> list[float]:
    """Seconds from 0 to ``high`` at which a clock has a round number."""
    if high < 60 * (about - 1):
        return ticks(0.0, high, about=about)
    days = ticks(0.0, high / 86400, about=about)
    step = min(_TIME_STEPS, key=lambda s: abs(high / s - about))
    if high / step > 2 * about:
        return [day * 86400 for day in days]
    return [float(i * step) for i in range(int(high / step) + 1)]


def _bounds(series: Series) -> tuple[float, float] | None:
    """Use is read against nothing, a share against the whole; a metric of the training has no natural bounds."""
    if series.unit == "ratio":
        return 0.0, 1.0
    return (0.0, 0.0) if series.kind == "system" else None


_Marks = list[tuple[float, float]]


def _scaled(values: Sequence[float], bounds: tuple[float, float] | None) -> tuple[list[float], _Marks]:
    """Heights on a scale of 0 to 1 that ends at round numbers, and where on it which of them stand."""
    spread: list[float] = [*values, *(bounds or ())] or [0.0, 1.0]
    low, high = min(spread), max(spread)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(low) * 0.05 or 1.0
        low, high = low - room, high + room
    marks = ticks(low, high)
    if len(marks) > 1:
        step = marks[1] - marks[0]
        marks = [marks[0] - step] * (marks[0] > low) + marks + [marks[-1] + step] * (marks[-1] < high)
        marks = [mark for mark in marks if math.isfinite(mark)]
        low, high = min(low, marks[0]), max(high, marks[-1])
    marks = marks or [low, high]
    return _placed(values, low, high), list(zip(_placed(marks, low, high), marks, strict=True))


def _along(places: Sequence[float], axis: str) -> tuple[list[float], _Marks]:
    """Places on a scale of 0 to 1 from the first to the last, and where on it which round numbers stand."""
    low, high = min(places, default=0.0), max(places, default=1.0)
    if low == high:
        low, high = low - 1, high + 1
        marks = [low + 1]
    elif axis == "after":
        marks = time_ticks(high)
    else:
        marks = [mark for mark in ticks(low, high, about=6) if mark == int(mark)]
    return _placed(places, low, high), list(zip(_placed(marks, low, high), marks, strict=True))


def _placed(values: Sequence[float], low: float, high: float) -> list[float]:
    # Divided first: the distance between two floats can be more than a float holds.
    reach = max(abs(low), abs(high), 1e-300)
    return [(value / reach - low / reach) / (high / reach - low / reach) for value in values]


def _position(value: float, axis: str) -> str:
    return in_unit(value, "seconds") if axis == "after" else f"{value:,.15g}"


def _mark(value: float, axis: str) -> str:
    return tick(value, "seconds") if axis == "after" else f"{value:,.6g}"


def _svg(
    lines: dict[int, list[dict[str, Any]]],
    *,
    x_labels: list[dict[str, Any]],
    y_labels: list[dict[str, Any]],
    dots: bool,
    label: str,
) -> str:
    # Imported when first needed: most processes of the platform never draw.
    import pygal
    from pygal.etree import etree
    from pygal.style import Style

    graph = pygal.XY(
        js=[],
        css=[],
        style=Style(font_family="sans-serif", label_font_size=11, major_label_font_size=11),
        width=WIDTH,
        height=HEIGHT,
        margin=6,
        show_legend=False,
        show_dots=dots,
        dots_size=2.5,
        allow_interruptions=True,
        xrange=(0, 1),
        range=(0, 1),
        x_labels=x_labels,
        y_labels=y_labels,
    )
    for attempt, values in lines.items():
        graph.add(f"attempt {attempt}", values, show_dots=dots or len(values) == 1)
    root = graph.render_tree()
    for node in list(root.iter()):
        if node.get("class") == "dots":
            _title(node, etree)
    return str(etree.tostring(_bare(root, label), encoding="unicode"))


def _bare(root: Any, label: str) -> Any:
    """pygal's tree without scripts, styles, comments and what only its scripts would use; hover texts as SVG titles."""
    root.attrib.pop("id", None)
    root.set("role", "img")
    root.set("aria-label", label)
    root.set("class", "chart")
    for parent in list(root.iter()):
        for child in list(parent):
            if _is_unwanted(child, parent):
                parent.remove(child)
    return root


def _is_unwanted(node: Any, parent: Any) -> bool:
    is_comment = not isinstance(node.tag, str)
    if is_comment or node.tag in ("defs", "script", "style", "desc"):
        return True
    if node.tag == "title":  # of the whole chart "Pygal", of a guide its place on the scale of 0 to 1
        return bool(parent.get("class") != "dots")
    return str(node.get("class")) in ("plot text-overlay", "plot tooltip-overlay")


def _title(dots: Any, etree: Any) -> None:
    text = next((child.text for child in dots if child.get("class") == "label"), None)
    etree.SubElement(dots, "title").text = text
