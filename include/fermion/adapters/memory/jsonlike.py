"""JSON-ready values as a database gives them back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import TypeVar

from fermion.domain.payloads import from_payload, to_payload

T = TypeVar("T")


def as_json(values: Mapping[str, object]) -> dict[str, object]:
    """The mapping after a way through JSON: tuples are lists, and what is not JSON is refused as a database would.

    Raises:
        ValueError: NaN or infinity.
        TypeError: not a JSON-ready value.
    """
    copy: dict[str, object] = json.loads(json.dumps(dict(values), allow_nan=False, default=_plain))
    return copy


def as_jsonb(values: Mapping[str, object]) -> dict[str, object]:
    """The mapping after a way through a workflow engine, which keeps it as PostgreSQL's ``jsonb``: its numbers are decimals,
    written out without an exponent.

    Raises:
        OverflowError: it holds a whole number that no task would be given.
    """
    copy: dict[str, object] = json.loads(json.dumps(as_json(values)), parse_float=_decimal, parse_int=_whole)
    return copy


def _decimal(number: str) -> int | float:
    written = f"{Decimal(number) + 0:f}"
    return float(written) if "." in written else _whole(written)


def _whole(number: str) -> int:
    if not -(2**63) <= int(number) < 2**64:
        raise OverflowError(number)
    return int(number)


def as_stored(value: T) -> T:
    """The dataclass after a way through its payload, as a database that keeps it whole gives it back.

    Raises:
        ValueError: NaN or infinity.
        TypeError: not a JSON-ready value.
    """
    return from_payload(type(value), as_json(to_payload(value)))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a JSON-ready value: {value!r}")
