"""What JSON can hold and a workflow engine cannot keep: NaN and infinity, NUL and half characters in text, huge numbers.

Python reads all of these out of a request. Of the first ones an engine says that its database rejected something, neither
where nor what to do. A number of more than 64 bits (``1e20`` too: ``jsonb`` makes a whole number of it) is stored, and then no
task of the run can be started, nor told why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from fermion.domain.problems import Problem

MAX_NUMBER = 2**63 - 1
"""The most that a number may be, and its negative the least. Of whole numbers this holds for every request. Of floats it holds
where an engine's database reads them (``problems_of``): what the platform itself keeps of a spec, it writes as text."""

TOO_LARGE = "a number of more than 18 digits"

MOST_NAMED = 20
"""How many places of one request are named."""

NOT_TEXT = re.compile("[\x00\ud800-\udfff]")
"""NUL and half surrogates: characters that no database holds as text."""
_FIELD_CHARACTERS = 80


def flaw_of(value: str | float) -> tuple[str, str, str] | None:
    """(code, message, fix) of text or a float that cannot be kept, or None."""
    if isinstance(value, str):
        fix = "Leave that character out."
        return ("control_character", "it holds NUL or half a character.", fix) if NOT_TEXT.search(value) else None
    fix = "Write a finite number, or leave it out."
    return None if math.isfinite(value) else ("not_finite", f"{value} is not a finite number.", fix)


def is_too_large(value: float) -> bool:
    """Whether a number is outside the limits; a whole number of any length is compared exactly."""
    return abs(value) > MAX_NUMBER


def problems_of(value: object) -> list[Problem]:
    """The first places in a value that could not be kept; empty when all of it can be."""
    found: list[Problem] = []
    for problem in _found(value, ""):
        found.append(problem)
        if len(found) == MOST_NAMED:
            break
    return found


def _found(value: object, path: str) -> Iterator[Problem]:
    if isinstance(value, str | float) and (flaw := flaw_of(value)) is not None:
        yield _problem(path, *flaw)
    elif isinstance(value, int | float) and is_too_large(value):
        yield _problem(path, "too_large", f"it is {TOO_LARGE}.", "Write it as a string.")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _found(item, f"{path}.{index}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _found(key, path)
            yield from _found(item, f"{path}.{key}")


def _problem(path: str, code: str, message: str, fix: str) -> Problem:
    field = NOT_TEXT.sub("\ufffd", path.removeprefix("."))[:_FIELD_CHARACTERS] or "request"
    return Problem(field=field, code=code, message=message, fix=fix)
