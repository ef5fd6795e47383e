"""What is wrong with a request, field by field. A request is answered with all of its problems at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LONG = 80
"""Advice of more characters than this is not told twice in one answer, as a list of all that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing wrong.

    ``field`` is a dotted path into the request (``hyperparameters.lr``), ``code`` a stable snake_case word for programs,
    ``message`` says what is wrong with the numbers, ``fix`` what to do.
    """

    field: str
    code: str
    message: str
    fix: str

    def to_payload(self) -> dict[str, str]:
        """The problem as JSON-ready values."""
        return {"field": self.field, "code": self.code, "message": self.message, "fix": self.fix}

    def __str__(self) -> str:
        return f"{self.field}: {self.message} {self.fix}".strip()


def lines_of(problems: Sequence[Problem]) -> list[str]:
    """A line for each problem. Long advice that several problems share stands with the first of them only."""
    given: set[str] = set()
    lines = []
    for problem in problems:
        is_again = len(problem.fix) > LONG and problem.fix in given
        lines.append(f"{problem.field}: {problem.message}" if is_again else str(problem))
        given.add(problem.fix)
    return lines
