"""How a step splits requests, from what a person wrote: ``{header, value}``, ``{cookie, value}``, ``{cookie}`` or ``{fixed, for}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fermion.domain.fields import Fields, shown
from fermion.domain.rollout.plan import SplitRule

MAX_LENGTH: Final = 100
_NAMES: Final = {name: name for name in ("header", "cookie", "value", "fixed", "for")}
_WAYS: Final = "Write {header, value}, {cookie, value}, {cookie} or {fixed, for}."


def read_split(step: Fields) -> SplitRule | None:
    """The step's split; None where each request is drawn by itself.

    ``{fixed: 30, for: 1h}`` is a weight that is kept so long: it is written into the step's ``weight_percent`` and
    ``bake_min``.
    """
    raw = step.values.get("split")
    if raw is None:
        return None
    given = Fields(f"{step.path}.split", raw, _NAMES, step.problems)
    if not isinstance(raw, Mapping):
        return None
    ways = [name for name in ("header", "cookie", "fixed") if name in given.values]
    if len(ways) != 1:
        told = f"it names {' and '.join(ways)}." if ways else "it names neither header nor cookie nor fixed."
        step.refuse("split", "one_way", told, _WAYS)
        return None
    if ways == ["fixed"]:
        _take_fixed(step, given)
        return None
    return _rule(given, ways[0])


def _rule(given: Fields, way: str) -> SplitRule | None:
    before = len(given.problems)
    if "for" in given.values:
        given.refuse("for", "misplaced", f"how long a split by {way} lasts is the step's bake_min.", "Write bake_min.")
    name, value = _text(given, way), _text(given, "value")
    if way == "header" and "value" not in given.values:
        given.refuse("value", "missing", "it is missing.", "Write the value that the canary's requests bring.")
    if len(given.problems) > before:
        return None
    return (
        SplitRule(header=name.lower(), value=value) if way == "header" and name else SplitRule(cookie=name, value=value)
    )


def _text(given: Fields, name: str) -> str | None:
    """A short text, or a number as one."""
    value = given.values.get(name)
    if value is None:
        return None
    if isinstance(value, str | int) and not isinstance(value, bool) and 0 < len(str(value).strip()) <= MAX_LENGTH:
        return str(value).strip()
    fix = f"Write a text of at most {MAX_LENGTH} characters."
    given.refuse(name, "not_text", f"{shown(value)} is no such text.", fix)
    return None


def _take_fixed(step: Fields, given: Fields) -> None:
    if "value" in given.values:
        given.refuse("value", "misplaced", "a fixed split draws each request.", "Leave it out.")
    if "for" not in given.values:
        given.refuse("for", "missing", "it is missing.", "Write how long the split is kept, as 1h.")
    taken = {"weight_percent": given.values["fixed"], "bake_min": given.values.get("for")}
    for name, value in taken.items():
        if name in step.values and step.values[name] != value:
            step.refuse(name, "given_twice", "the fixed split says it, too.", "Give it once.")
        elif value is not None:
            step.values[name] = value
