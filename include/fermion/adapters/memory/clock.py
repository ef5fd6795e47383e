"""A clock that moves only when it is told to. Keeps ``ports.Clock``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class MemoryClock:
    """Stands at ``start`` until ``advance``."""

    def __init__(self, start: datetime = datetime(2026, 3, 2, 12, tzinfo=UTC)) -> None:
        if start.tzinfo is None:
            raise ValueError(f"the time {start.isoformat()} has no time zone; times are aware UTC")
        self._now = start.astimezone(UTC)

    def now(self) -> datetime:
        """The present."""
        return self._now

    def advance(self, by: timedelta) -> datetime:
        """A lever: let time pass; the new present."""
        if by < timedelta(0):
            raise ValueError(f"time does not go back ({by})")
        self._now += by
        return self._now
