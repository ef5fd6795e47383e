"""An installation of its own for tests of the command: configuration, database and data, and no Airflow."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from typer.testing import CliRunner

from builders import make_node
from fermion.adapters.models.local import LocalModels
from fermion.adapters.sql import migrate, open_store
from fermion.cli.main import app
from fermion.cli.output import console, errors
from fermion.domain.artifacts import ModelDraft, ModelVersion
from fermion.domain.jobs import Job
from fermion.domain.leases import Lease
from fermion.domain.pools import Node
from fermion.ports import Store, Transaction

CONFIGURATION = """
environment: embedded
clusters:
  local: {kind: process, declared_slots: 1, measure_devices: false}
images:
  plain:1: {lock: plain.lock}
datasets: {}
data:
  roots: ["${FERMION_STATE}/data of us"]
code:
  file_roots: ["${FERMION_STATE}/examples"]
"""


class Answer(NamedTuple):
    """What one call of the command did: its exit code, its standard output and its standard error."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document that it printed, and nothing else; values that JSON does not have are refused."""
        return json.loads(self.out, parse_constant=_refuse)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


@cache
def _empty_database() -> bytes:
    """The schema without rows, made once: making it takes longer than most tests."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fermion.db"
        migrate(f"sqlite:///{file}")
        with contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return file.read_bytes()


class Installation:
    """Below ``root``; its data lies in a folder whose name has a space."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "config").mkdir()
        (root / "config" / "fermion.yaml").write_text(CONFIGURATION)
        (root / "plain.lock").write_text("")
        folder = root / "run" / "data of us" / "digits"
        folder.mkdir(parents=True)
        (folder / "a.csv").write_text("1,2")
        self.database = f"sqlite:///{root}/run/fermion.db"
        (root / "run" / "fermion.db").write_bytes(_empty_database())

    def fermion(self, *words: str) -> tuple[int, str]:
        """The command's exit code and what it prints or, when that is nothing, what it complains of."""
        code, out, err = self.called(*words)
        return code, out or err

    def called(self, *words: str, columns: int = 80) -> Answer:
        """Call the command in ``run/``, on a terminal of so many columns."""
        ours = {"FERMION_ROOT": str(self.root), "FERMION_DATABASE_URL": self.database, "COLUMNS": str(columns)}
        foreign = dict.fromkeys(name for name in os.environ if name.startswith("FERMION_"))
        console.width = errors.width = columns  # they read COLUMNS when they are made
        with contextlib.chdir(self.root / "run"):
            done = CliRunner().invoke(app, list(words), env={**foreign, **ours}, catch_exceptions=False)
        return Answer(done.exit_code, done.stdout, done.stderr)

    # --- what lies in it ---

    @cached_property
    def store(self) -> Store:
        """Its database, opened from the test."""
        return open_store(self.database)

    @contextlib.contextmanager
    def rows(self) -> Iterator[Transaction]:
        """Write rows."""
        with self.store.begin() as tx:
            yield tx

    def put(self, *jobs: Job, nodes: Sequence[Node] = (), leases: Sequence[Lease] = ()) -> None:
        """Jobs, nodes of the cluster ``local`` (one with eight slots by default) and live leases."""
        with self.rows() as tx:
            tx.catalog.put_nodes("local", tuple(nodes) or (make_node(),))
            for job in jobs:
                assert tx.jobs.add(job)
            for lease in leases:
                tx.leases.add(lease)

    def job(self, job_id: str) -> Job:
        """A job as it is stored."""
        with self.store.read() as tx:
            found = tx.jobs.get(job_id)
        assert found is not None
        return found

    def publish(self, draft: ModelDraft, files: dict[str, bytes]) -> ModelVersion:
        """A model version in its repository."""
        folder = self.root / "output" / f"{draft.model}-{len(files)}"
        folder.mkdir(parents=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return LocalModels(self.root / "run" / "models").publish(draft, folder, key=str(folder))

    def repository(self) -> tuple[str, str]:
        """The URL of a git repository with a ``train.py``, and its only commit."""
        folder = self.root / "run" / "examples" / "digits"
        folder.mkdir(parents=True)
        (folder / "train.py").write_text("print(1)\n")
        who = ["-c", "user.name=ann", "-c", "user.email=ann@example.invalid"]
        for words in (["init", "-q", "-b", "main"], ["add", "."], [*who, "commit", "-q", "-m", "Add it"]):
            subprocess.run(["git", "-C", str(folder), *words], check=True, timeout=30)
        asked = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        commit = subprocess.run(asked, check=True, timeout=30, capture_output=True, text=True).stdout.strip()
        return folder.as_uri(), commit
