"""Durations as people write them: ``90s``, ``15m``, ``2h``, ``7d``, ``1h30m``. A bare number has no unit and is refused."""

from __future__ import annotations

import re
from datetime import timedelta

_UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds", "ms": "milliseconds"}
_PART = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*(ms|[wdhms])")
_WHOLE = re.compile(rf"(?:{_PART.pattern}\s*)+")


def parse_duration(text: str) -> timedelta:
    """The duration that ``text`` says; parts add up.

    Raises:
        ValueError: it is not a duration, or longer than a timedelta can hold; the message says how to write one.
    """
    if _WHOLE.fullmatch(text.strip()) is None:
        raise ValueError(f"{text[:40]!r} is not a duration; write a number and a unit: 90s, 15m, 2h, 7d or 1h30m")
    try:
        return sum((timedelta(**{_UNITS[unit]: float(number)}) for number, unit in _PART.findall(text)), timedelta())
    except OverflowError as error:
        raise ValueError(f"{text[:40]!r} is longer than any duration that can be kept") from error
