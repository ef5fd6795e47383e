"""Small things of the machine the platform runs on: its clock, and the file that the form reads its choices from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from fermion.adapters.files.placing import write_durably


class SystemClock:
    """Keeps ``ports.Clock`` with the machine's own time."""

    def now(self) -> datetime:
        """The present, in UTC."""
        return datetime.now(UTC)


class ChoicesFile:
    """Keeps ``ports.FormChoices`` in one JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, *, pools: Sequence[str], images: Sequence[str], datasets: Sequence[str]) -> None:
        """Replaced atomically; left alone when nothing changed, so that no DAG is parsed for it."""
        text = json.dumps({"pools": list(pools), "images": list(images), "datasets": list(datasets)}, indent=1) + "\n"
        if self._path.exists() and self._path.read_text(encoding="utf-8") == text:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(self._path, text.encode())
