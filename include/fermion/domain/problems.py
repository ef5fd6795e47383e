"""What is wrong with a request, field by field. A request is answered with all of its problems at once."""

from __future__ import annotations

from dataclasses import dataclass


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
