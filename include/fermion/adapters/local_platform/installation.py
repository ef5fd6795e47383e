"""Bring the embedded installation up, take it down, forget it, say how it is.

``up`` may be called at any time, from several terminals at once, and after a kill of anything: it looks at what is
there and adds what is missing. Trainings are not its business; they outlive every program and are found again by the sync.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path

from fermion.adapters.envoy import bootstrap
from fermion.adapters.envoy import readiness as routing
from fermion.adapters.local_platform import addresses as ports
from fermion.adapters.local_platform import health, processes
from fermion.adapters.local_platform.addresses import Addresses
from fermion.adapters.local_platform.claims import Claims
from fermion.adapters.local_platform.keys import Keys, keep_keys
from fermion.adapters.local_platform.layout import PROGRAM_MARK, Layout
from fermion.adapters.local_platform.locking import exclusive
from fermion.adapters.local_platform.postgres import EmbeddedPostgres, forget_elsewhere
from fermion.adapters.local_platform.programs import AIRFLOW, POSTGRES, ROUTER, environment, programs, render
from fermion.adapters.local_platform.readiness import FAILED_STARTS, Readiness, started_components
from fermion.adapters.local_platform.supervision import ProgramState, Supervisor
from fermion.domain.counting import counted
from fermion.domain.serving.replicas import is_replica
from fermion.errors import Conflict, FermionError, NotFound, OutsideUnavailable

Say = Callable[[str], None]
"""Told what is going on, one short sentence at a time."""

UP_WITHIN = timedelta(seconds=300)
"""For a machine that is busy with other things; a program that cannot run is told at once."""
DATABASE_WITHIN = timedelta(seconds=30)
STOP_WITHIN = timedelta(seconds=20)
WORKLOAD_GRACE_S = 10.0
SETTLE_S = 3.0
STATUS_ANSWER_S = 15.0
"""Patience of ``ps``: the API server of a busy machine is slow, not away."""

LOG_LINES = 25

_AIRFLOW_COMMAND = str(Path(sys.executable).parent / "airflow")


@dataclass(frozen=True, slots=True)
class UpResult:
    """How ``up`` ended. ``import_errors``: DAG file to the last line of its traceback; read only after a start."""

    url: str
    user: str
    password_file: Path
    started: bool
    seconds: float
    notes: Sequence[str]
    import_errors: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DownResult:
    """What ``down`` found and ended; ``workloads`` are trainings."""

    was_up: bool
    workloads: int
    replicas: int
    leftovers: int


@dataclass(frozen=True, slots=True)
class Status:
    """How the installation is. ``programs`` is empty when no supervisor runs; ``problems`` is empty when all is well."""

    url: str | None
    programs: Sequence[ProgramState]
    problems: Sequence[str]
    workloads: Sequence[str]


class LocalPlatform:
    """The embedded installation under one state folder.

    ``caller`` is the environment of whoever asks. ``migrate`` brings the platform's own database (a URL) up to date.
    ``scrape_port`` says at which port the router's statistics are wanted, if at any.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        caller: Mapping[str, str],
        migrate: Callable[[str], object],
        scrape_port: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._layout = layout
        self._caller = caller
        self._migrate = migrate
        self._scrape_port = scrape_port
        self._supervisor = Supervisor(layout)
        self._claims = Claims(layout.state)

    def up(self, *, port: int | None = None, say: Say = lambda _: None) -> UpResult:
        """Start what does not run and return once all is healthy.

        Raises:
            Conflict: ``port`` is taken, or the database is not ours.
            OutsideUnavailable: something did not come up in time; the message ends with that program's last log lines.
        """
        began = time.monotonic()
        self._layout.state.mkdir(parents=True, exist_ok=True)
        with exclusive(self._layout.lock, timeout=UP_WITHIN + STOP_WITHIN):
            self._layout.make_folders()
            keys = keep_keys(self._layout.secrets)
            notes: list[str] = []
            here = self._running()
            started = here is None
            if here is None:
                here = self._bring_up(keys, port=port, say=say, notes=notes)
            elif port is not None and port != here.http:
                notes.append(f"it is up on port {here.http}; to change it: FERMION_PORT={port} after `fermion down`")
            errors = self._wait_until_ready(here, keys)
        return UpResult(
            url=here.url,
            user="admin",
            password_file=self._layout.secrets / "passwords.json",
            started=started,
            seconds=time.monotonic() - began,
            notes=notes,
            import_errors=errors,
        )

    def down(self, *, say: Say = lambda _: None) -> DownResult:
        """Stop every process of the installation, running trainings included. Fine when nothing runs."""
        if not self._layout.mark.exists():
            return DownResult(was_up=False, workloads=0, replicas=0, leftovers=0)
        with exclusive(self._layout.lock, timeout=UP_WITHIN + STOP_WITHIN):
            return self._take_down(say)

    def clean(self, *, say: Say = lambda _: None) -> bool:
        """Stop everything and delete the state folder; False when there was none.

        Raises:
            Conflict: the folder was not made by ``up``.
        """
        state = self._layout.state
        if not state.exists():
            return False
        if not self._layout.mark.exists() and any(state.iterdir()):
            raise Conflict(
                f"{state} was not made by `fermion up`; delete it yourself if that is right", what="state folder"
            )
        with exclusive(self._layout.lock, timeout=UP_WITHIN + STOP_WITHIN):
            self._take_down(say)
            forget_elsewhere(self._layout.postgres)
            _delete(state)
        return True

    def status(self) -> Status:
        """How everything is now. Starts and stops nothing."""
        states = self._supervisor.states() or ()
        found = processes.find(self._layout)
        if not states:
            left = (
                [f"{counted(len(found.programs), 'process', 'processes')} without a supervisor; `fermion up`"]
                if found.programs
                else []
            )
            return Status(url=None, programs=(), problems=left, workloads=sorted(found.workload_names))
        addresses = ports.read(self._layout.ports_file)
        problems = [f"{state.name} is {state.state}" for state in states if not state.lives]
        if addresses:
            api = health.AirflowApi(addresses.url, user="", password="", answer_s=STATUS_ANSWER_S)
            problems += health.problems(api.health(), started=started_components(states))
        problems += self._router_problems(states)
        return Status(
            url=addresses.url if addresses else None,
            programs=states,
            problems=problems,
            workloads=sorted(found.workload_names),
        )

    def airflow(self, arguments: Sequence[str]) -> tuple[Sequence[str], Mapping[str, str]]:
        """Airflow's own command with these arguments, and the environment in which it means this installation.

        Raises:
            NotFound: the platform was never up here.
        """
        # No program of ours: neither `up` nor `down` ends it.
        environment = {name: value for name, value in self.airflow_environment().items() if name != PROGRAM_MARK}
        return [_AIRFLOW_COMMAND, *arguments], environment

    def airflow_environment(self) -> Mapping[str, str]:
        """What Airflow's programs see.

        Raises:
            NotFound: the platform was never up here.
        """
        addresses = ports.read(self._layout.ports_file)
        if addresses is None:
            raise NotFound(
                f"{self._layout.ports_file} does not exist: the platform was never up here. `fermion up` starts it.",
                what="airflow",
            )
        keys = keep_keys(self._layout.secrets)
        # A task's own environment says that the database is not its business; what runs here is no task.
        caller = {name: value for name, value in self._caller.items() if not name.startswith("_AIRFLOW")}
        return environment(self._layout, keys, addresses, self._postgres(keys, addresses), caller=caller)

    def _router_problems(self, states: Sequence[ProgramState]) -> list[str]:
        """A supervisor from before there was a router has none: then it is not missed."""
        if not any(state.name == ROUTER for state in states):
            return []
        return routing.problems(self._layout.router)

    def _running(self) -> Addresses | None:
        """Where it is, when every program runs already."""
        states = self._supervisor.states()
        if not states or not all(state.lives for state in states):
            return None
        return ports.read(self._layout.ports_file)

    def _bring_up(self, keys: Keys, *, port: int | None, say: Say, notes: list[str]) -> Addresses:
        addresses = ports.read(self._layout.ports_file) if self._supervisor.states() is not None else None
        if addresses is None:
            addresses = self._start_supervisor(keys, port=port, say=say, notes=notes)
        postgres = self._postgres(keys, addresses)
        self._supervisor.start_program(POSTGRES)
        if not postgres.wait(DATABASE_WITHIN):
            raise self._failure(POSTGRES, f"does not take connections on port {addresses.postgres}")
        postgres.make_databases()
        self._migrate_both(keys, addresses, postgres, say)
        for name in AIRFLOW:
            self._supervisor.start_program(name)
        say("waiting for Airflow")
        return addresses

    def _start_supervisor(self, keys: Keys, *, port: int | None, say: Say, notes: list[str]) -> Addresses:
        layout = self._layout
        left = processes.find(layout).programs
        if left:
            say(f"ending {counted(len(left), 'process', 'processes')} of a run that did not end well")
            processes.end(left, grace_s=2)
        addresses = self._choose_ports(port=port, notes=notes)
        postgres = self._postgres(keys, addresses)
        if not layout.postgres.exists():
            say("making the database")
        account = postgres.prepare()
        _write_private(layout.database_url_file, postgres.url("fermion", scheme="postgresql+psycopg"))
        layout.airflow_url_file.write_text(addresses.url + "\n")
        bootstrap.prepare(
            layout.router,
            port=addresses.router,
            log=layout.logs / f"{ROUTER}.log",
            scrape_port=ports.scrape_port(
                self._scrape_port(), addresses, is_free=ports.is_free, holder=self._holder_of
            ),
        )
        configuration = render(layout, programs(layout, postgres, account), socket=self._supervisor.socket)
        say("starting the supervisor")
        self._supervisor.start(configuration, environment(layout, keys, addresses, postgres, caller=self._caller))
        return addresses

    def _choose_ports(self, *, port: int | None, notes: list[str]) -> Addresses:
        file = self._layout.ports_file
        with self._claims.choosing():
            addresses, note = ports.choose(
                wanted_http=port,
                kept=ports.read(file),
                is_free=lambda each: self._claims.holder(each) is None and ports.is_free(each),
                holder=self._holder_of,
            )
            self._claims.claim(
                (addresses.http, addresses.postgres, addresses.router), supervisor=self._supervisor.socket
            )
        if note:
            notes.append(note)
        ports.write(file, addresses)
        return addresses

    def _holder_of(self, port: int) -> str | None:
        return self._claims.holder(port) or ports.holder_of(port)

    def _migrate_both(self, keys: Keys, addresses: Addresses, postgres: EmbeddedPostgres, say: Say) -> None:
        """Airflow's database and our own, side by side; Airflow's only when its programs have changed since."""
        failed: list[FermionError] = []
        own = threading.Thread(target=self._migrate_own, args=(postgres, failed))
        own.start()
        try:
            wanted = airflow_fingerprint()
            if postgres.mark_of("airflow") != wanted:
                say("migrating Airflow's database")
                self._migrate_airflow(keys, addresses, postgres)
                postgres.set_mark("airflow", wanted)
        finally:
            own.join()
        if failed:
            raise failed[0]

    def _migrate_own(self, postgres: EmbeddedPostgres, failed: list[FermionError]) -> None:
        try:
            self._migrate(postgres.url("fermion", scheme="postgresql+psycopg"))
        except FermionError as error:
            failed.append(error)

    def _migrate_airflow(self, keys: Keys, addresses: Addresses, postgres: EmbeddedPostgres) -> None:
        done = subprocess.run(
            [_AIRFLOW_COMMAND, "db", "migrate"],
            env=environment(self._layout, keys, addresses, postgres, caller=self._caller),
            cwd=self._layout.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=UP_WITHIN.total_seconds(),
            check=False,
        )
        (self._layout.logs / "migrate.log").write_text(done.stdout)
        if done.returncode:
            last = "\n".join(done.stdout.strip().splitlines()[-LOG_LINES:])
            raise OutsideUnavailable(
                f"`airflow db migrate` failed with exit code {done.returncode}:\n{last}", what="airflow"
            )

    def _wait_until_ready(self, addresses: Addresses, keys: Keys) -> Mapping[str, str]:
        """Import errors by DAG file, once all is healthy and every file was read."""
        api = health.AirflowApi(addresses.url, user="admin", password=keys.passwords["admin"])
        files = {path.name for path in self._layout.dags.glob("*.py")}
        readiness = Readiness(api, self._supervisor, files=files, router=self._router_problems)
        deadline = time.monotonic() + UP_WITHIN.total_seconds()
        while missing := readiness.look():
            if program := readiness.failing():
                raise self._failure(program, f"ended {FAILED_STARTS} times in a row")
            if time.monotonic() > deadline:
                what = f"is not ready after {UP_WITHIN.seconds} s: {'; '.join(missing)}"
                raise self._failure(readiness.culprit(missing), what + busy(os.getloadavg()[0], os.cpu_count() or 1))
            time.sleep(0.25)
        return readiness.import_errors

    def _take_down(self, say: Say) -> DownResult:
        states = self._supervisor.states()
        if states is not None:
            say("stopping the programs")
            self._stop_airflow()
        found = processes.find(self._layout)
        if found.workload_names:
            say(f"ending {_told(found.workload_names)}")
            processes.end(found.workloads, grace_s=WORKLOAD_GRACE_S)
        if states is not None:
            self._supervisor.shutdown(STOP_WITHIN + timedelta(seconds=20))
            # It takes its socket away before it has ended: what is on its way out is not left over.
            processes.still_alive(found.programs, SETTLE_S)
        left = processes.find(self._layout)
        processes.end([*left.programs, *left.workloads], grace_s=3)
        self._supervisor.forget()
        self._claims.withdraw()
        replicas = sum(map(is_replica, found.workload_names))
        return DownResult(
            was_up=states is not None,
            workloads=len(found.workload_names) - replicas,
            replicas=replicas,
            leftovers=len(left.programs),
        )

    def _stop_airflow(self) -> None:
        """All at the same time; the supervisor by itself would stop one after the other."""
        for name in AIRFLOW:
            self._supervisor.stop_program(name)
        deadline = time.monotonic() + STOP_WITHIN.total_seconds()
        while time.monotonic() < deadline:
            states = self._supervisor.states() or ()
            if not any(state.pid for state in states if state.name in AIRFLOW):
                return
            time.sleep(0.1)

    def _postgres(self, keys: Keys, addresses: Addresses) -> EmbeddedPostgres:
        return EmbeddedPostgres(data=self._layout.postgres, keys=keys, port=addresses.postgres)

    def _failure(self, program: str, what: str) -> OutsideUnavailable:
        log = self._layout.logs / f"{program}.log"
        lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:] if log.exists() else ["(it wrote nothing)"]
        text = "\n".join(f"    {line}" for line in lines)
        return OutsideUnavailable(
            f"{program} {what}\n  last lines of {log}:\n{text}\n"
            "  `fermion ps` shows the programs; `fermion down` stops them all",
            what=program,
        )


def busy(load: float, cores: int) -> str:
    """What to do about a start that only came too late: the machine had more to do than it can; empty where it had not."""
    if load <= 2 * cores:
        return ""
    return f". The machine is busy (load {load:.0f} on {counted(cores, 'core')}) and it goes on starting: run the same again"


def airflow_fingerprint() -> str:
    """Changes whenever another version of Airflow or of a package that adds to its database is installed."""
    names = ("apache-airflow", "apache-airflow-core", "apache-airflow-providers-standard")
    versions = " ".join(f"{name}=={metadata.version(name)}" for name in names)
    return f"migrated for {versions} ({hashlib.sha256(versions.encode()).hexdigest()[:8]})"


def _write_private(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(text + "\n")


def _delete(folder: Path) -> None:
    """Also what was staged read-only."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder)


def _told(names: Collection[str]) -> str:
    """How many trainings and replicas these workloads are."""
    replicas = sum(map(is_replica, names))
    trainings = len(names) - replicas
    parts = [counted(trainings, "running training")] if trainings else []
    return " and ".join([*parts, counted(replicas, "replica")] if replicas else parts)
