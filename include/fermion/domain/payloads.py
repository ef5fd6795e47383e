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

_PLAIN = frozenset({str, int, float, bool, types.NoneType})
"""What stands in JSON as it is. Not their subclasses: an enum of text is one."""

_MICROSECOND = timedelta(microseconds=1)


def to_payload(value: object) -> Any:
    """The value as JSON-ready data; fields that hold their default are kept, so a payload needs no code to be read."""
    kind: Any = type(value)
    return _writer(kind)(value)


def from_payload(kind: type[T], payload: Mapping[str, Any]) -> T:
    """The dataclass ``kind`` made of its payload; fields that the payload lacks take their default."""
    fields: Any = kind
    found = {name: payload[name] for name in _names(fields) if name in payload}
    for name, read in _readers(fields):
        if name in found:
            found[name] = read(found[name])
    return kind(**found)


@cache
def _writer(kind: type) -> Callable[[Any], Any]:
    """How a value of exactly that type is written; looked up once per type, because rows are many."""
    if issubclass(kind, Enum):
        return lambda value: value.value
    for base, write in _PLAIN_WRITERS:
        if issubclass(kind, base):
            return write
    if dataclasses.is_dataclass(kind):
        names = _names(kind)
        return lambda value: {
            name: item if (item := getattr(value, name)).__class__ in _PLAIN else to_payload(item) for name in names
        }
    raise TypeError(f"no payload is known for {kind.__name__}")


def _as_is(value: Any) -> Any:
    return value


_PLAIN_WRITERS: tuple[tuple[tuple[type, ...], Callable[[Any], Any]], ...] = (
    ((str, int, float, types.NoneType), _as_is),
    ((datetime,), lambda value: value.isoformat()),
    ((timedelta,), lambda value: value // _MICROSECOND),
    ((Mapping,), lambda value: {str(key): to_payload(item) for key, item in value.items()}),
    ((tuple, list, frozenset), lambda value: [to_payload(item) for item in value]),
)


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind) if field.compare)


@cache
def _readers(kind: Any) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    """The fields whose payload is not the value itself."""
    hints = get_type_hints(kind)
    readings = ((name, _reading(hints[name])) for name in _names(kind))
    return tuple((name, read) for name, read in readings if read is not _as_is)


@cache
def _reading(hint: Any) -> Callable[[Any], Any]:
    """How a payload of that type hint is read."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        inner = next(_reading(part) for part in get_args(hint) if part is not types.NoneType)
        return inner if inner is _as_is else lambda data: None if data is None else inner(data)
    if origin is tuple:
        item = _reading(get_args(hint)[0])
        return tuple if item is _as_is else lambda data: tuple(item(part) for part in data)
    if origin is not None and issubclass(origin, Mapping):
        item = _reading(get_args(hint)[1])
        return dict if item is _as_is else lambda data: {key: item(part) for key, part in data.items()}
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
    return _as_is
