"""Values to JSON-ready payloads and back, by their type hints, so that a decision's inputs can be stored and replayed.

Knows dataclasses, enums, aware times (ISO 8601), durations (microseconds), tuples, mappings with text keys and
``None``. It checks nothing else: a payload comes from our own store.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_MICROSECOND = timedelta(microseconds=1)


def to_payload(value: object) -> Any:
    """The value as JSON-ready data; fields that hold their default are kept, so a payload needs no code to be read."""
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value // _MICROSECOND
    if isinstance(value, Mapping):
        return {str(key): to_payload(item) for key, item in value.items()}
    if isinstance(value, tuple | list | frozenset):
        return [to_payload(item) for item in value]
    if dataclasses.is_dataclass(value):
        kind: Any = type(value)
        return {name: to_payload(getattr(value, name)) for name, _ in _reader(kind)}
    raise TypeError(f"no payload is known for {type(value).__name__}")


def from_payload(kind: type[T], payload: Mapping[str, Any]) -> T:
    """The dataclass ``kind`` made of its payload; fields that the payload lacks take their default."""
    fields: Any = kind
    return kind(**{name: read(payload[name]) for name, read in _reader(fields) if name in payload})


@cache
def _reader(kind: Any) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    hints = get_type_hints(kind)
    return tuple((f.name, _reading(hints[f.name])) for f in dataclasses.fields(kind) if f.compare)


@cache
def _reading(hint: Any) -> Callable[[Any], Any]:
    """How a payload of that type hint is read."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        inner = [_reading(part) for part in get_args(hint) if part is not type(None)]
        return lambda data: None if data is None else inner[0](data)
    if origin is tuple:
        item = _reading(get_args(hint)[0])
        return lambda data: tuple(item(part) for part in data)
    if origin is not None and issubclass(origin, Mapping):
        item = _reading(get_args(hint)[1])
        return lambda data: {key: item(part) for key, part in data.items()}
    return _reading_plain(hint)


def _reading_plain(hint: Any) -> Callable[[Any], Any]:
    if hint is datetime:
        return datetime.fromisoformat
    if hint is timedelta:
        return lambda data: timedelta(microseconds=data)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return lambda data: from_payload(hint, data)
    return lambda data: data
