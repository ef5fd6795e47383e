"""How long things are kept after they ended, and what a clean-up freed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Ages beyond which things are forgotten; None: never. What each covers stands in ``settings.RetentionSettings``."""

    runs: timedelta | None = None
    workloads: timedelta | None = None
    events: timedelta | None = None
    decisions: timedelta | None = None
    points: timedelta | None = None
    reports: timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Freed:
    """What a clean-up deleted: how many things, and their bytes."""

    items: int = 0
    size_bytes: int = 0

    def __add__(self, other: Freed) -> Freed:
        return Freed(items=self.items + other.items, size_bytes=self.size_bytes + other.size_bytes)
