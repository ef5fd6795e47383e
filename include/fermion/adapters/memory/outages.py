"""What does not answer: the lever by which tests take a cluster or the workflow engine away for a while."""

from __future__ import annotations

from fermion.errors import OutsideUnavailable


class Line:
    """The line to something outside. While it is cut every call raises; what runs there goes on."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._why: str | None = None

    def cut(self, why: str = "connection refused") -> None:
        """A lever: from now on it does not answer."""
        self._why = why

    def mend(self) -> None:
        """A lever: it answers again."""
        self._why = None

    def answer(self) -> None:
        """Raises OutsideUnavailable while the line is cut."""
        if self._why is not None:
            raise OutsideUnavailable(f"{self._name} does not answer: {self._why}", what=self._name)
