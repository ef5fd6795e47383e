"""An installation of its own for tests of the command: configuration, database and data, and no Airflow."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from typer.testing import CliRunner

from fermion.adapters.sql import migrate
from fermion.cli.main import app

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
        """The command's exit code, called in ``run/``, and what it prints or, when that is nothing, what it complains of."""
        ours = {"FERMION_ROOT": str(self.root), "FERMION_DATABASE_URL": self._database}
        foreign = dict.fromkeys(name for name in os.environ if name.startswith("FERMION_"))
        with contextlib.chdir(self.root / "run"):
            done = CliRunner().invoke(app, list(words), env={**foreign, **ours}, catch_exceptions=False)
        return done.exit_code, done.stdout or done.stderr
