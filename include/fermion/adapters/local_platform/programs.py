"""Which programs the supervisor keeps alive, in which order, with which environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fermion.adapters.envoy import bootstrap
from fermion.adapters.local_platform.addresses import Addresses
from fermion.adapters.local_platform.keys import Keys
from fermion.adapters.local_platform.layout import PROGRAM_MARK, STATE_MARK, WORKLOAD_MARK, Layout
from fermion.adapters.local_platform.postgres import Account, EmbeddedPostgres

POSTGRES = "postgres"
ROUTER = "router"
SUCCESSION = "fermion.adapters.local_platform.succession"
AIRFLOW = ("api-server", "scheduler", "dag-processor", "triggerer")


@dataclass(frozen=True, slots=True)
class Program:
    """One supervised program. ``order`` decides the stop too: the highest stops first."""

    name: str
    command: Sequence[str]
    folder: Path
    order: int
    stop_signal: str = "TERM"
    stop_wait_s: int = 10
    account: str | None = None
    start_s: int = 10
    """It has started when it lived that long; before that an end counts as a failed start and the next try waits longer."""

    with_supervisor: bool = False
    """Started together with the supervisor; the others are started when the database is ready."""


def programs(layout: Layout, postgres: EmbeddedPostgres, account: Account | None) -> list[Program]:
    """All programs of the installation."""
    airflow = str(Path(sys.executable).parent / "airflow")
    arguments = {
        # Also how long the server waits for open connections (live pages) when it stops; there is no setting for it.
        "api-server": ["--worker-timeout", "5"],
        # Every component is on this machine and writes below one folder: the API server reads logs from the files.
        "scheduler": ["--skip-serve-logs"],
        "triggerer": ["--skip-serve-logs"],
    }
    database = Program(
        name=POSTGRES,
        command=postgres.command(account),
        folder=postgres.data.resolve(),
        order=1,
        # INT is Postgres' fast shutdown; TERM would wait for every client to leave.
        stop_signal="INT",
        stop_wait_s=30,
        account=account.name if account else None,
        start_s=1,
        with_supervisor=True,
    )
    router = Program(
        name=ROUTER,
        command=bootstrap.command(layout.router),
        folder=layout.root,
        order=2,
        start_s=1,
        with_supervisor=True,
    )
    return [
        database,
        router,
        *(
            Program(
                name=name,
                # It ends what a killed one left behind, then becomes the program.
                command=[sys.executable, "-m", SUCCESSION, name, "--", airflow, name, *arguments.get(name, [])],
                folder=layout.root,
                order=3 + place,
            )
            for place, name in enumerate(AIRFLOW)
        ),
    ]


def environment(
    layout: Layout, keys: Keys, addresses: Addresses, postgres: EmbeddedPostgres, *, caller: Mapping[str, str]
) -> dict[str, str]:
    """What every program sees. The caller's Airflow and Python variables are left out: settings have one source."""
    passed = {name: value for name, value in caller.items() if not _is_ours(name)}
    local = "127.0.0.1,localhost"
    no_proxy = ",".join(part for part in (passed.get("no_proxy") or passed.get("NO_PROXY"), local) if part)
    return {
        **passed,
        **airflow_environment(layout, keys, addresses, postgres),
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), passed.get("PATH", os.defpath))),
        "no_proxy": no_proxy,
        "NO_PROXY": no_proxy,
        "PYTHONUNBUFFERED": "1",
        # Said by Airflow about its own dependencies, by every component and every task.
        "PYTHONWARNINGS": "ignore::DeprecationWarning,ignore:Using `httpx` with",
        # Keeps the marks readable: programs that set their title would write over them.
        "SPT_NOENV": "1",
        "FERMION_ROOT": str(layout.root),
        STATE_MARK: str(layout.state),
        PROGRAM_MARK: "supervisor",
    }


def airflow_environment(layout: Layout, keys: Keys, addresses: Addresses, postgres: EmbeddedPostgres) -> dict[str, str]:
    """What is generated for this installation and therefore not in ``config/airflow.cfg``."""
    return {
        "AIRFLOW_HOME": str(layout.airflow_home),
        "AIRFLOW_CONFIG": str(layout.airflow_cfg),
        "AIRFLOW__API__PORT": str(addresses.http),
        "AIRFLOW__API__BASE_URL": addresses.url,
        "AIRFLOW__API__SECRET_KEY": keys.api,
        "AIRFLOW__API_AUTH__JWT_SECRET": keys.jwt,
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{addresses.url}/execution/",
        "AIRFLOW__CORE__FERNET_KEY": keys.fernet,
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": postgres.url("airflow", scheme="postgresql+psycopg2"),
        "AIRFLOW_CONN_FERMION_DB": postgres.url("fermion"),
    }


def render(layout: Layout, programs: Sequence[Program], *, socket: Path) -> str:
    """The supervisor's configuration. It holds no secret: those come with the supervisor's own environment."""
    folder = layout.supervisor
    sections = [
        f"[unix_http_server]\nfile={_escape(str(socket))}\nchmod=0700",
        f"[supervisord]\npidfile={_escape(str(folder / 'supervisord.pid'))}\nnodaemon=false\n"
        f"logfile={_escape(str(layout.logs / 'supervisord.log'))}\nlogfile_maxbytes=5MB\nlogfile_backups=1\n"
        f"identifier={_escape(str(layout.state))}\ndirectory={_escape(str(layout.root))}\nminfds=1024\n"
        "loglevel=info" + ("\nuser=root" if os.geteuid() == 0 else ""),
        "[rpcinterface:supervisor]\nsupervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
        *(_section(layout, program) for program in programs),
    ]
    return "\n\n".join(sections) + "\n"


def _section(layout: Layout, program: Program) -> str:
    lines = [
        f"[program:{program.name}]",
        f"command={_escape(' '.join(_quote(part) for part in program.command))}",
        f"directory={_escape(str(program.folder))}",
        f"priority={program.order}",
        f"autostart={str(program.with_supervisor).lower()}",
        "autorestart=true",
        f"startsecs={program.start_s}",
        # An outage of the database must not end in a program that is never started again.
        "startretries=1000000",
        f"stopsignal={program.stop_signal}",
        f"stopwaitsecs={program.stop_wait_s}",
        "killasgroup=true",
        f"stdout_logfile={_escape(str(layout.logs / program.name))}.log",
        "stdout_logfile_maxbytes=10MB",
        "stdout_logfile_backups=2",
        "redirect_stderr=true",
        f'environment={PROGRAM_MARK}="{program.name}"',
    ]
    if program.account:
        lines.append(f"user={program.account}")
    return "\n".join(lines)


def _is_ours(name: str) -> bool:
    if name.startswith(("AIRFLOW_CONN_", "AIRFLOW_VAR_")):
        return False
    return name.startswith(("AIRFLOW_", "PYTHON", "SUPERVISOR_")) or name in {"VIRTUAL_ENV", WORKLOAD_MARK}


def _quote(argument: str) -> str:
    return '"' + argument.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _escape(text: str) -> str:
    return text.replace("%", "%%")
