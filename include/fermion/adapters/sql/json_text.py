"""JSON in and out of columns. msgspec does what it can, at a tenth of the time; the standard library does the rest.

What is left to the standard library: whatever might be NaN or infinity (msgspec would write them as null), lone
surrogates, numbers past 64 bits, keys that are not text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec


def to_json(value: object) -> str:
    """Compact JSON.

    Raises:
        ValueError: NaN or infinity, for which Postgres has no JSON.
        TypeError: not a JSON-ready value.
    """
    try:
        written = _ENCODER.encode(value).decode()
    except (TypeError, ValueError, OverflowError):
        written = "null"
    if "null" in written:
        return json.dumps(value, allow_nan=False, separators=(",", ":"), default=_plain)
    return written


def of_texts(rows: Sequence[Mapping[str, str | int | bool | datetime | None]]) -> str:
    """JSON of rows without a single float, which needs no look for NaN. A lone surrogate is left to the standard library."""
    try:
        return _ENCODER.encode(rows).decode()
    except ValueError:
        return json.dumps(rows, separators=(",", ":"), default=str)


def from_json(written: str | bytes) -> Any:
    """The value of JSON that a column holds."""
    try:
        return _DECODER.decode(written)
    except ValueError:
        return json.loads(written)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a JSON-ready value: {value!r}")


_ENCODER = msgspec.json.Encoder(enc_hook=_plain)
_DECODER = msgspec.json.Decoder()
