"""Judging stored looks again: the same plan and the same counts must give the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Final

from fermion.domain.rollout.judging import judge
from fermion.domain.rollout.looks import RULE_VERSION, Look
from fermion.domain.rollout.plan import Plan

SAME: Final = 1e-9
"""Numbers that differ relatively by less are the same: another machine's logarithm may end in another digit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where a stored look is not what judging it again gives. ``field`` is a dotted path into the look."""

    look: int
    field: str
    stored: str
    replayed: str

    def __str__(self) -> str:
        return f"look {self.look}, {self.field}: stored {self.stored}, replayed {self.replayed}"


def replay(plan: Plan, looks: Sequence[Look]) -> list[Difference]:
    """All differences; none means that every verdict follows from what was measured.

    ``looks`` are all of one rollout, in their order. Each is judged after the stored one before it, so that a difference
    stands where it arose. A look that is missing is one; so are other rules than those of today.
    """
    found: list[Difference] = []
    previous: Look | None = None
    for stored in looks:
        expected = 1 if previous is None else previous.number + 1
        if stored.number != expected:
            found.append(
                Difference(look=stored.number, field="number", stored=str(stored.number), replayed=str(expected))
            )
        if stored.rule_version != RULE_VERSION:
            version = Difference(
                look=stored.number, field="rule_version", stored=stored.rule_version, replayed=RULE_VERSION
            )
            found.append(version)
        again = judge(plan, stored.measured, previous)
        found += [
            Difference(look=stored.number, field=field, stored=str(old)[:200], replayed=str(new)[:200])
            for field, old, new in _differences("", stored, again)
            if field not in ("number", "rule_version")
        ]
        previous = stored
    return found


def _differences(path: str, stored: object, again: object) -> Iterator[tuple[str, object, object]]:
    if is_dataclass(stored) and type(stored) is type(again):
        for field in fields(stored):
            inner = f"{path}.{field.name}".lstrip(".")
            yield from _differences(inner, getattr(stored, field.name), getattr(again, field.name))
    elif isinstance(stored, tuple) and isinstance(again, tuple) and len(stored) == len(again):
        for number, (old, new) in enumerate(zip(stored, again, strict=True)):
            name = getattr(old, "metric", getattr(old, "check", number))
            yield from _differences(f"{path}.{name}", old, new)
    elif isinstance(stored, float) and isinstance(again, float):
        if not math.isclose(stored, again, rel_tol=SAME, abs_tol=SAME):
            yield path, stored, again
    elif stored != again:
        yield path, stored, again
