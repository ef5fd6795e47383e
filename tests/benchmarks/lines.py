"""What every benchmark prints: one JSON object a line, with its bar and whether it holds."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Line:
    """One answer. Exactly one of ``ratio`` and ``value`` is given; ``holds`` is None where only a number is reported."""

    bench: str
    bar: str
    holds: bool | None
    ratio: float | None = None
    value: float | None = None
    raw: dict[str, object] = field(default_factory=dict)

    def show(self) -> None:
        """Print it now."""
        shown: dict[str, object] = {"bench": self.bench}
        shown |= {"value": _rounded(self.value)} if self.ratio is None else {"ratio": _rounded(self.ratio)}
        shown |= {"bar": self.bar, "holds": self.holds, **self.raw, "load_1m": round(os.getloadavg()[0], 1)}
        sys.stdout.write(json.dumps(shown) + "\n")
        sys.stdout.flush()


def skipped(bench: str, bar: str, why: str) -> Line:
    """A benchmark that this machine cannot run; it never counts as held."""
    return Line(bench=bench, bar=bar, holds=False, raw={"skipped": why})


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; ``share`` is 0 to 1."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 4)
