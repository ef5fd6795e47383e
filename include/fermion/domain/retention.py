"""How long things are kept after they ended."""

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
