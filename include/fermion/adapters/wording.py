"""Text from outside, as every store can hold it."""

from __future__ import annotations

import re

_UNHOLDABLE = re.compile("[\0\ud800-\udfff]")


def clean(value: str) -> str:
    """The text with NUL and half surrogates, which no database can hold, as U+FFFD."""
    return _UNHOLDABLE.sub("\ufffd", value)
