"""Numbers and times as a person reads them. A number is never shown without its unit."""

from __future__ import annotations

import math
from datetime import datetime

from fermion.domain.figures import Figure

NOTHING = "–"

_BYTES = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def duration(seconds: float) -> str:
    """``0.4 s``, ``41.2 s``, ``3 m 05 s``, ``2 h 14 m``, ``3 d 04 h``: two units at most."""
    if seconds < 10:
        return f"{seconds:.2g} s" if 0 < seconds < 0.95 else f"{seconds:.1f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} m"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def tick(value: float, unit: str) -> str:
    """A round value beside an axis: the same words, without decimals and zeros that say nothing."""
    if unit == "seconds" and value < 60:
        return f"{value:g} s"
    return in_unit(value, unit).removesuffix(" 00 s").removesuffix(" 00 m").removesuffix(" 00 h")


def number(value: float | None) -> str:
    """Four significant digits, thousands apart: ``0.9722``, ``12,480``, ``3.1e-07``."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.3e}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(ratio: float) -> str:
    """``98.1 %``; what is not quite nothing or not quite all never reads as 0 or 100."""
    value = ratio * 100
    if 0 < value < 0.1:
        return "< 0.1 %"
    if 99.9 < value < 100:
        return "> 99.9 %"
    return f"{value:.1f} %" if value % 1 else f"{value:.0f} %"


def size(count: float) -> str:
    """Bytes in binary units."""
    power = 0
    while count >= 1024 and power < len(_BYTES) - 1:
        count, power = count / 1024, power + 1
    return f"{count:,.0f} bytes" if power == 0 else f"{count:,.1f}".removesuffix(".0") + f" {_BYTES[power]}"


def gpu_seconds(value: float) -> str:
    """``81.4 GPU-s``, from 10,000 on in GPU-hours as well."""
    if value >= 10_000:
        return f"{value:,.0f} GPU-s ({value / 3600:,.1f} GPU-h)"
    return f"{value:,.1f} GPU-s" if value >= 0.1 or value == 0 else f"{value:.2g} GPU-s"


def in_unit(value: float | int | str | None, unit: str) -> str:
    """A value in its unit's own words."""
    if value is None or isinstance(value, str):
        return value or NOTHING
    if unit == "seconds":
        return duration(value)
    if unit == "gpu_seconds":
        return gpu_seconds(value)
    if unit == "ratio":
        return percent(value)
    if unit == "percent":
        return percent(value / 100)
    if unit in ("mib", "bytes"):
        return size(value * 1024**2 if unit == "mib" else value)
    return f"{number(value)} {unit}" if unit == "cores" else number(value)


def amount(figure: Figure) -> str:
    """A figure's value in its unit, a dash where there is none."""
    return in_unit(figure.value, figure.unit)


def when(moment: datetime | None) -> str:
    """``2026-11-24 01:24:17 UTC``."""
    return NOTHING if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} {moment.tzname() or ''}".strip()


_SPELLED = {"gpu": "GPU", "gpus": "GPUs", "cpu": "CPU", "mib": "MiB"}


def label(name: str) -> str:
    """A field's or stage's name as words."""
    return " ".join(_SPELLED.get(word, word) for word in name.split("_"))


def literal(value: object) -> str:
    """A parameter as it is written in a specification."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def visible(text: str) -> str:
    """The text with what a reader could not see (controls, direction marks, broken halves) made visible as ``�``."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)
