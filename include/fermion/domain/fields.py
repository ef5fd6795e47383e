"""Reading what a person wrote, field by field: each is read, or blamed and given its default, so that all problems are found.

Keys may be snake_case, camelCase or kebab-case. Pure; nothing is looked up.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final, TypeVar

from fermion.domain.durations import parse_duration
from fermion.domain.problems import Problem
from fermion.domain.spelling import did_you_mean

Word = TypeVar("Word", bound=StrEnum)

_MAX_UNKNOWN_KEYS: Final = 20
_MAX_ITEMS: Final = 200
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,15}(?:\.[0-9]{1,15})?(?:[eE][+-]?[0-9]{1,3})?")


class Fields:
    """The fields of one object; each is read, or blamed and given its default. ``names`` maps what may be written to what it is.

    ``path`` is where the object stands in the request, ``whole`` what the request is called where it stands at the top.
    """

    def __init__(
        self, path: str, raw: object, names: Mapping[str, str], problems: list[Problem], *, whole: str = "plan"
    ) -> None:
        self.path, self.problems = path, problems
        self.values: dict[str, object] = {}
        if not isinstance(raw, Mapping):
            message = f"it is {shown(raw)}."
            self._blame(path or whole, "not_an_object", message, "Write an object with named fields.")
            return
        unknown = []
        for key, value in raw.items():
            name = names.get(snake(key)) if isinstance(key, str) else None
            if name is None:
                unknown.append(str(key))
            elif value is not None and value != "":
                self._take(name, value)
        self._report(unknown, names)

    def items(self, name: str, default: list[object]) -> list[object]:
        """The items of a list."""
        value = self.values.get(name, default)
        if not isinstance(value, list | tuple):
            self.refuse(name, "not_a_list", f"{shown(value)} is not a list.", "Write a list.")
            return []
        if len(value) > _MAX_ITEMS:
            self.refuse(name, "too_many", f"there are {len(value)} of them; at most {_MAX_ITEMS}.", "Leave some out.")
        return list(value[:_MAX_ITEMS])

    def text(self, name: str, default: str) -> str:
        """A name that must be there."""
        value = self.values.get(name)
        if isinstance(value, str) and len(value) <= 100 and value.isprintable():
            return value.strip()
        code, message = ("missing", "it is missing.") if value is None else ("not_text", f"{shown(value)} is no name.")
        self.refuse(name, code, message, "Write the metric's name, as error_rate.")
        return default

    def truth(self, name: str, *, default: bool) -> bool:
        """A bool, or the words true and false."""
        value = self.values.get(name, default)
        value = {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value
        if isinstance(value, bool):
            return value
        self.refuse(name, "not_a_bool", f"{shown(value)} is neither true nor false.", "Write true or false.")
        return default

    def number(self, name: str, default: float | None) -> Any:
        """A finite number; its percent sign is dropped where the field is in percent."""
        value = self.values.get(name)
        if value is None:
            return default
        if name.endswith("_percent") and isinstance(value, str):
            value = value.removesuffix("%").strip()
        number = number_of(value)
        if number is None:
            self.refuse(name, "not_a_number", f"{shown(value)} is not a finite number.", "Write a number.")
        return default if number is None else number

    def whole(self, name: str, default: int) -> int:
        """A whole number."""
        number = self.number(name, float(default))
        if float(number).is_integer():
            return int(number)
        self.refuse(name, "fractional", f"{number:g} is a fraction; requests come whole.", "Write a whole number.")
        return default

    def amount(self, name: str) -> float:
        """A number in the metric's unit, or a duration, which is in seconds, or a percentage."""
        value = self.values[name]
        if isinstance(value, str) and value.endswith("%") and (share := number_of(value[:-1].strip())) is not None:
            return share / 100
        if isinstance(value, str) and number_of(value) is None:
            return self.duration(name, timedelta(0)).total_seconds()
        return float(self.number(name, 0.0))

    def duration(self, name: str, default: timedelta) -> timedelta:
        """A duration."""
        value = self.values.get(name)
        if value is None:
            return default
        try:
            number = number_of(value)
            if number is not None:
                return timedelta(seconds=number)
            if isinstance(value, str):
                return parse_duration(value)
            message = f"{shown(value)} is not a duration"
        except (ValueError, OverflowError) as error:
            message = str(error)
        self.refuse(name, "not_a_duration", f"{message}.", "Write 30s, 5m or 2h, or a number of seconds.")
        return default

    def word(self, name: str, words: type[Word], default: Word) -> Word:
        """One of some words."""
        value = self.values.get(name, default)
        if isinstance(value, str) and snake(value) in list(words):
            return words(snake(value))
        near = did_you_mean(value, words) if isinstance(value, str) else None
        fix = f"Did you mean {near}?" if near else f"Write one of {', '.join(words)}."
        self.refuse(name, "unknown_word", f"{shown(value)} is none of its words.", fix)
        return default

    def refuse(self, name: str, code: str, message: str, fix: str) -> None:
        """Something is wrong with that field."""
        self._blame(f"{self.path}.{name}" if self.path else name, code, message, fix)

    def _take(self, name: str, value: object) -> None:
        if name in self.values and self.values[name] != value:
            self.refuse(name, "given_twice", "it is given twice, with different values.", f"Give {name} once.")
            return
        self.values[name] = value

    def _report(self, unknown: list[str], names: Mapping[str, str]) -> None:
        for key in unknown[:_MAX_UNKNOWN_KEYS]:
            near = did_you_mean(key, names)
            fix = f"Did you mean {near}?" if near else f"Known fields: {', '.join(dict.fromkeys(names.values()))}."
            self.refuse(key[:60], "unknown_field", "no such field.", fix)

    def _blame(self, field: str, code: str, message: str, fix: str) -> None:
        self.problems.append(Problem(field=field, code=code, message=message, fix=fix))


def snake(word: str) -> str:
    """``bakeMin`` and ``bake-min`` as ``bake_min``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", word.strip()).replace("-", "_").lower()


def number_of(value: object) -> float | None:
    """The finite number that a value means, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()) is None:
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def shown(value: object) -> str:
    """A value as it may stand in a message: never long."""
    if isinstance(value, str | int | float | bool) or value is None:
        text = repr(value[:41] if isinstance(value, str) else value)
        return text if len(text) <= 44 else f"{text[:40]}…"
    return {"list": "a list", "tuple": "a list", "dict": "an object"}.get(type(value).__name__, type(value).__name__)
