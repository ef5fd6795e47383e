"""The nearest known word to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The known word that ``word`` was most likely meant to be, or None when nothing is near."""
    folded = {name.replace("_", "").replace("-", "").lower(): name for name in known}
    near = difflib.get_close_matches(word[:80].replace("_", "").replace("-", "").lower(), folded, n=1, cutoff=0.7)
    return folded[near[0]] if near else None
