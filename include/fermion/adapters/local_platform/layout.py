"""Where everything of the embedded installation lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROGRAM_MARK = "FERMION_PROGRAM"
"""In the environment of every supervised program and its children, with the state folder in ``STATE_MARK``."""

WORKLOAD_MARK = "FERMION_WORKLOAD"
"""In the environment of everything that belongs to a training, which outlives the programs."""

LOCATION_MARK = "FERMION_LOCATION_ID"
"""Beside ``WORKLOAD_MARK``: the content of the location root's file ``id``, so whose training it is."""

STATE_MARK = "FERMION_STATE"


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of one installation. ``root`` is the checkout, ``state`` the folder that ``clean`` deletes; both absolute."""

    root: Path
    state: Path

    @property
    def airflow_home(self) -> Path:
        """Airflow's home: logs and generated files."""
        return self.state / "airflow"

    @property
    def airflow_cfg(self) -> Path:
        """The settings that are under version control."""
        return self.root / "config" / "airflow.cfg"

    @property
    def dags(self) -> Path:
        """The DAG folder."""
        return self.root / "dags"

    @property
    def postgres(self) -> Path:
        """The database's files, or a link to them where its account cannot reach the state folder."""
        return self.state / "postgres"

    @property
    def secrets(self) -> Path:
        """Generated passwords and keys, mode 0600 in a folder of mode 0700."""
        return self.state / "secrets"

    @property
    def supervisor(self) -> Path:
        """The supervisor's configuration, socket and process id."""
        return self.state / "supervisor"

    @property
    def logs(self) -> Path:
        """One log file per supervised program."""
        return self.state / "logs"

    @property
    def router(self) -> Path:
        """The router's configuration and its admin socket."""
        return self.state / "router"

    @property
    def database_url_file(self) -> Path:
        """The URL of the platform's own database, for the command line."""
        return self.secrets / "database_url"

    @property
    def airflow_url_file(self) -> Path:
        """The URL of Airflow's API server, for the command line."""
        return self.airflow_home / "url"

    @property
    def location_id(self) -> str | None:
        """What marks the trainings of the process driver; None while it made none."""
        try:
            return (self.state / "work" / "id").read_text().strip() or None
        except OSError:
            return None

    @property
    def ports_file(self) -> Path:
        """The TCP ports of this installation, kept over restarts."""
        return self.state / "ports.json"

    @property
    def mark(self) -> Path:
        """Tells that the state folder is ours, so that ``clean`` never deletes anything else."""
        return self.state / ".fermion-state"

    @property
    def lock(self) -> Path:
        """Taken by ``up``, ``down`` and ``clean``."""
        return self.state / ".lock"

    def make_folders(self) -> None:
        """Create what must be there before the first program starts."""
        for folder in (self.airflow_home / "logs", self.supervisor, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        self.secrets.mkdir(mode=0o700, exist_ok=True)
        self.secrets.chmod(0o700)
        self.mark.touch()
