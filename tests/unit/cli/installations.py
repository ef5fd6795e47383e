"""An installation of its own for tests of the command: configuration, database and data, and no Airflow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fermion.adapters.sql import migrate

CONFIGURATION = """
environment: embedded
clusters:
  local: {kind: process, declared_slots: 1, measure_devices: false}
datasets: {}
data:
  roots: ["${FERMION_STATE}/data of us"]
"""


class Installation:
    """Below ``root``; its data lies in a folder whose name has a space."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "config").mkdir()
        (root / "config" / "fermion.yaml").write_text(CONFIGURATION)
        folder = root / "run" / "data of us" / "digits"
        folder.mkdir(parents=True)
        (folder / "a.csv").write_text("1,2")
        self._database = f"sqlite:///{root}/run/fermion.db"
        migrate(self._database)

    def fermion(self, *words: str) -> tuple[int, str]:
        """The exit code of the real command, run in ``run/``, and what it prints or, when that is nothing, what it complains of."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FERMION_")}
        environment = {**kept, "FERMION_ROOT": str(self.root), "FERMION_DATABASE_URL": self._database}
        command = [str(Path(sys.executable).parent / "fermion"), *words]
        ran = subprocess.run(
            command, cwd=self.root / "run", env=environment, capture_output=True, text=True, timeout=60
        )
        return ran.returncode, ran.stdout or ran.stderr
