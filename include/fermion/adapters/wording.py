"""Text from outside, as every store can hold it."""

from __future__ import annotations

from fermion.domain.unstorable import NOT_TEXT


def clean(value: str) -> str:
    """The text with NUL and half surrogates, which no database can hold, as U+FFFD."""
    return NOT_TEXT.sub("\ufffd", value)
