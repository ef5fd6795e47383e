"""An explanation in words: its sentence, then the numbers that the sentence does not hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime

from rich.console import RenderableType
from rich.text import Text

from fermion.cli.output import clock, table
from fermion.domain.jobs import FINAL

_TIMES = frozenset({"granted_at", "running_since", "expected_end", "ends_by", "reserved_from"})
_UNITS = {"_s": " s", "_mib": " MiB", "_percent": " %"}
_INTERNAL = frozenset({"why", "message"})
"""What a stop was for: the sentence of an ended job is made of it."""


def told(answer: Mapping[str, object]) -> Iterator[RenderableType]:
    """The lines of what ``usecases.explain`` answers."""
    message = str(answer["message"])
    yield Text(message)
    expected = answer["expected_start"]
    if isinstance(expected, Mapping):
        yield Text(f"Expected start: {_start(expected)}")
    numbers = answer["numbers"]
    is_over = str(answer["phase"]) in FINAL
    rows = [
        (_label(name), f"{shown}{_unit(name)[1]}")
        for name, value in (numbers.items() if isinstance(numbers, Mapping) else ())
        if name not in _INTERNAL and (shown := _shown(name, value)) and not _is_said(message, shown, value, is_over)
    ]
    if rows:
        yield table("", ("", ""), rows)


def _unit(name: str) -> tuple[str, str]:
    """The end of a number's name that says its unit, and the unit."""
    return next(((end, unit) for end, unit in _UNITS.items() if name.endswith(end)), ("", ""))


def _label(name: str) -> str:
    return name.removesuffix(_unit(name)[0]).replace("_", " ")


def _start(expected: Mapping[str, object]) -> str:
    if not expected["p50"]:
        return f"unknown, {expected['reason']}"
    half, nine = (clock(datetime.fromisoformat(str(expected[name]))) for name in ("p50", "p90"))
    return f"{half} UTC (half of the time), {nine} UTC (nine times of ten)"


def _shown(name: str, value: object) -> str:
    """The value in words; empty where there is none."""
    if value is None:
        return ""
    if name in _TIMES:
        return f"{clock(datetime.fromisoformat(str(value)))} UTC"
    if isinstance(value, list):
        return ", ".join(_entry(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _entry(each: object) -> str:
    """One of a list, such as ``job-1 (ann, 4 GPUs)`` of those who hold GPUs."""
    if not isinstance(each, Mapping):
        return str(each)
    if "holder" in each:
        return f"{each['holder']} ({each['owner']}, {each['gpus']})"
    return str(each.get("message", ", ".join(map(str, each.values()))))


def _is_said(message: str, shown: str, value: object, is_over: bool) -> bool:
    """Whether the sentence says it already: every problem in a list, and of what is over any number and word."""
    if isinstance(value, list):
        return all(_entry(each) in message for each in value)
    return is_over and re.search(rf"(?<![\w.]){re.escape(shown)}(?!\w|\.\w)", message) is not None
