"""A number that a person or a program is shown, together with where it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Method(StrEnum):
    """How a figure came to be."""

    MEASURED = "measured"  # read from a device, a process or an object of the cluster
    DERIVED = "derived"  # computed from other figures or rows
    DECLARED = "declared"  # somebody wrote it into a configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One value with its source. ``value`` is None only with a ``reason``.

    ``unit`` is a word such as ``gpus``, ``gpu_seconds``, ``ratio`` (0 to 1), ``mib``, ``seconds``.
    """

    value: float | int | str | None
    unit: str
    source: str
    method: Method
    observed_at: datetime
    reason: str | None = None

    def __post_init__(self) -> None:
        if self.value is None and not self.reason:
            raise ValueError(f"a figure without a value needs a reason (unit {self.unit!r}, source {self.source!r})")

    def to_payload(self) -> dict[str, object]:
        """The figure as JSON-ready values; the time as ISO 8601 with offset."""
        return {
            "value": self.value,
            "unit": self.unit,
            "source": self.source,
            "method": str(self.method),
            "observed_at": self.observed_at.isoformat(),
            "reason": self.reason,
        }
