"""Airflow's metadata and task logs, forgotten by Airflow's own command in a process of its own.

A task may not touch the metadata database, and its environment does not say where it is: who builds this says.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from fermion.errors import OutsideBroken, OutsideUnavailable

TABLES = (
    "asset_event",
    "callback",
    "dag_run",
    "dag_version",
    "import_error",
    "job",
    "log",
    "partitioned_asset_key_log",
    "revoked_token",
    "task_instance",
    "task_instance_history",
    "task_reschedule",
    "task_state_store",
    "trigger",
    "xcom",
)
"""All that grows with time; ``dag`` itself stays: a paused DAG is not an old one."""
OF_RUNS = ("dag_run", "log", "task_instance", "task_instance_history", "xcom")
LEFT_BY_DAG = frozenset({"deadline"})
"""Cleaned along with ``dag_run``, but Airflow 3.3.2 cannot limit it to DAGs (it has no such column); it holds nothing of ours."""
BATCH = 5000
WITHIN_S = 1800.0
_LAST_LINES = 15


class AirflowUpkeep:
    """Keeps ``ports.EngineUpkeep``. ``environment`` gives the command its variables, the database's address among them."""

    def __init__(self, environment: Callable[[], Mapping[str, str]], logs: Path) -> None:
        self._environment = environment
        self._logs = logs

    def forget(self, before: datetime, *, dags: Sequence[str] = ()) -> str:
        """See ``ports.EngineUpkeep``."""
        tables = OF_RUNS if dags else TABLES
        words = ["--clean-before-timestamp", before.isoformat(), "--tables", ",".join(tables), "--yes"]
        words += ["--skip-archive", "--error-on-cleanup-failure", "--batch-size", str(BATCH)]
        self._run([*words, *(["--dag-ids", ",".join(dags)] if dags else [])])
        count = sum(self._forget_logs(folder, before) for folder in self._log_folders(dags))
        what = f"runs of {', '.join(dags)}" if dags else "runs"
        return f"{what} from before {before:%Y-%m-%d %H:%M} UTC in Airflow, and {count} log files"

    def _run(self, words: Sequence[str]) -> None:
        command = [str(Path(sys.executable).with_name("airflow")), "db", "clean", *words]
        try:
            done = subprocess.run(
                command,
                env=dict(self._environment()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=WITHIN_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise OutsideUnavailable(f"`airflow db clean` did not come to its end: {error}.", what="airflow") from error
        if done.returncode != 0 and not ("--dag-ids" in words and _left_out(done.stdout) <= LEFT_BY_DAG):
            last = "\n".join(done.stdout.strip().splitlines()[-_LAST_LINES:])
            raise OutsideBroken(f"`airflow db clean` failed with exit code {done.returncode}:\n{last}", what="airflow")

    def _log_folders(self, dags: Sequence[str]) -> list[Path]:
        return [self._logs / f"dag_id={dag}" for dag in dags] if dags else [self._logs]

    def _forget_logs(self, folder: Path, before: datetime) -> int:
        """Delete files last written before then, and the folders that this empties; how many files."""
        count = 0
        for place, _, files in os.walk(folder, topdown=False):
            for name in files:
                path = Path(place, name)
                if not path.is_symlink() and path.stat().st_mtime < before.timestamp():
                    path.unlink(missing_ok=True)
                    count += 1
            if Path(place) != folder and not any(Path(place).iterdir()):
                Path(place).rmdir()
        return count


def _left_out(output: str) -> set[str]:
    """The tables that the command says it did not clean; one that fails otherwise names itself."""
    found = re.findall(r"did not clean them: \[([^\]]*)\]", output)
    return set(re.findall(r"'([a-z_]+)'", found[-1])) if found else {"all"}
