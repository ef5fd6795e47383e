"""A whole platform of its own for end-to-end tests: own state folder, own configuration, own ports, started and stopped here."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from fermion.adapters.local_platform import addresses
from fermion.domain.jobs import Job
from fermion.errors import OutsideUnavailable
from fermion.ports import Runs
from fermion.settings import Settings, load
from fermion.usecases.context import Context
from fermion.usecases.launch import launch
from fermion.usecases.queries import job_by_id
from fermion.usecases.tend import OPEN

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
UP_WITHIN_S = 330
PATIENCE_S = 90.0

POLICY = """
policies:
  default:
    hang_factor: 3
    hang_floor: 5s
    start_timeout: 20s
    stop_grace: 3s
    head_grace: 30s
    max_attempts: 3
"""


def wait_until(is_true: Callable[[], Any], *, within_s: float = PATIENCE_S, what: str = "it") -> Any:
    """The first true answer; fails after ``within_s``. Something outside that does not answer is waited for too."""
    deadline = time.monotonic() + within_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            answer = is_true()
            if answer:
                return answer
        except (OutsideUnavailable, httpx.HTTPError) as error:
            last = error
        time.sleep(0.1)
    raise TimeoutError(f"{what} did not come true within {within_s:.0f} s{f' ({last})' if last else ''}")


def quiet_ports() -> addresses.Addresses:
    """Free ports far from those that an installation chooses by itself, and from those that the system gives to clients.

    While a killed program starts again its port is free, and another platform on the machine would take it.
    """
    some = (port for port in random.sample(range(20_000, 30_000), 300) if addresses.is_free(port))
    return addresses.Addresses(http=next(some), postgres=next(some), router=next(some))


@dataclass
class Live:
    """One installation below ``folder``. The checkout's code runs, with a configuration that has short patience."""

    folder: Path
    slots: int = 2
    environ: dict[str, str] = field(init=False)
    _borrowed: ExitStack = field(default_factory=ExitStack, init=False)

    def __post_init__(self) -> None:
        root = self.folder / "root"
        for name in ("include", "plugins"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).symlink_to(ROOT / name)
        shutil.copytree(ROOT / "dags", root / "dags", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "config", root / "config")
        self._configure(root / "config" / "fermion.yaml")
        state = self.folder / "state"
        state.mkdir(exist_ok=True)
        addresses.write(state / "ports.json", quiet_ports())
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("FERMION_", "AIRFLOW"))}
        self.environ = {**kept, "FERMION_ROOT": str(root), "FERMION_STATE": str(state)}

    def _configure(self, file: Path) -> None:
        text = file.read_text(encoding="utf-8").replace("declared_slots: 4", f"declared_slots: {self.slots}")
        before, _, rest = text.partition("\npolicies:\n")
        after = rest[rest.index("\n# How long things are kept") :]
        file.write_text(before + POLICY + after, encoding="utf-8")

    # --- the installation ---

    def fermion(
        self, *words: str, within_s: float = UP_WITHIN_S, check: bool = True, by: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command in this installation; ``by`` is the account that does, None this machine's own."""
        environ = self.environ if by is None else {**self.environ, "LOGNAME": by}
        command = [str(Path(sys.executable).with_name("fermion")), *words]
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=within_s, check=False, cwd=self.folder
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"fermion {' '.join(words)} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
            )
        return done

    def up(self) -> None:
        """Start it, with the examples' repositories."""
        self.fermion("up", "--json")

    def settle(self) -> None:
        """Wait until everything answers again."""
        wait_until(lambda: self.ctx.store.check(), what="the database")
        wait_until(lambda: self.call("GET", "/api/v2/dags/train_model").status_code == 200, what="the engine")

    def down(self) -> None:
        """Stop it and every process of it."""
        self.fermion("down", check=False)

    @property
    def settings(self) -> Settings:
        """Its settings as they are now."""
        return load(environ=self.environ)

    @property
    def ctx(self) -> Context:
        """Its platform, opened from this process."""
        from fermion.wiring import build

        if not hasattr(self, "_ctx"):
            self._ctx = build(self.settings)
        return self._ctx

    def reopen(self, keys: tuple[str, str] | None = None) -> None:
        """Open it from this process with its settings as they are now; ``keys`` are what its connections hold."""
        from fermion.wiring import build

        self._ctx = build(self.settings, secrets=None if keys is None else lambda name: keys)

    @property
    def runs(self) -> Runs:
        """Its engine."""
        assert self.ctx.runs is not None
        return self.ctx.runs

    def borrow(self, thing: AbstractContextManager[T]) -> T:
        """Something outside the platform, there until ``give_back``."""
        return self._borrowed.enter_context(thing)

    def give_back(self) -> None:
        """End everything that was borrowed."""
        self._borrowed.close()

    # --- jobs ---

    def spec(self, **changes: object) -> dict[str, object]:
        """A sleeper of a few seconds; ``hyperparameters`` replace its own."""
        return {
            "name": "sleeper",
            "pool": "local/declared",
            "image": "python:3",
            "repository": f"file://{self.settings.examples_dir}/sleeper.git",
            "entrypoint": "python sleep.py",
            "hyperparameters": {"seconds": 3, "epochs": 6},
            "memory_mib": 256,
            "output_model": "sleeper",
            **changes,
        }

    def submit(self, **changes: object) -> Job:
        """Start a training through the front door."""
        return launch(self.ctx, self.runs, self.spec(**changes), actor="tester")

    def job(self, job_id: str) -> Job:
        """The job as it is."""
        return job_by_id(self.ctx, job_id)

    def job_of_run(self, run_id: str) -> Job | None:
        """The job that a run of train_model carries; None while it has none."""
        with self.ctx.store.read() as tx:
            return tx.jobs.by_run("train_model", run_id)

    def wait_for(self, job_id: str, phase: str, *, within_s: float = PATIENCE_S) -> Job:
        """The job once it is in the phase; fails at once when it ended otherwise."""
        return self._wait_for_job(job_id, lambda job: job.phase == phase, within_s=within_s, what=phase)

    def wait_for_epoch(self, job_id: str, epoch: int, *, within_s: float = PATIENCE_S) -> Job:
        """The job once its training has said that the epoch is done; fails at once when it ended before that."""
        return self._wait_for_job(
            job_id, lambda job: (job.progress.epoch or 0) >= epoch, within_s=within_s, what=f"at epoch {epoch}"
        )

    def wait_for_end(self, job_id: str, *, within_s: float = PATIENCE_S) -> Job:
        """The ended job."""
        return self._wait_for_job(job_id, lambda job: job.is_final, within_s=within_s, what="ended")

    def _wait_for_job(self, job_id: str, is_there: Callable[[Job], bool], *, within_s: float, what: str) -> Job:
        last: list[Job] = []

        def look() -> Job | None:
            last[:] = [job := self.job(job_id)]
            if is_there(job):
                return job
            if job.is_final:
                raise AssertionError(f"{job_id} ended as {job.phase} and was not {what}: {job.explanation.message}")
            return None

        try:
            found: Job = wait_until(look, within_s=within_s, what=f"{job_id} {what}")
        except TimeoutError as late:
            now = f"; it is {last[0].phase}: {last[0].explanation.message}" if last else ""
            raise TimeoutError(f"{late}{now}") from None
        return found

    def wait_for_run(self, job: Job, *, within_s: float = PATIENCE_S) -> str:
        """The state in which the run of a job ended: ``success`` or ``failed``."""
        assert job.run is not None
        dag_id, run_id = job.run
        ended: str = wait_until(
            lambda: (state := self.runs.state(dag_id, run_id).state) in {"success", "failed"} and state,
            within_s=within_s,
            what=f"the end of run {run_id}",
        )
        return ended

    # --- the engine, as a person at its pages would use it ---

    def call(self, method: str, path: str, body: object = None) -> httpx.Response:
        """One call of Airflow's REST interface as its administrator; a body of bytes is sent as it is."""
        passwords = json.loads((self.settings.secrets_dir / "passwords.json").read_text(encoding="utf-8"))
        base = self.settings.airflow_url
        with httpx.Client(base_url=base, timeout=30) as client:
            token = client.post("/auth/token", json={"username": "admin", "password": passwords["admin"]}).json()[
                "access_token"
            ]
            said = {"content": body} if isinstance(body, bytes) else {"json": body}
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            return client.request(method, path, headers=headers, **said)

    def make_repository(self, name: str, source: Path) -> str:
        """The URL of a git repository with the sleeper's code and the files of ``source``."""
        examples = self.folder / "more examples"
        shutil.copytree(ROOT / "include/examples/sleeper/code", examples / name / "code", dirs_exist_ok=True)
        shutil.copytree(source, examples / name / "code", dirs_exist_ok=True)
        maker = shutil.copy(ROOT / "include/examples/make_repository.py", examples)
        command = [sys.executable, str(maker), str(self.settings.examples_dir)]
        subprocess.run(command, check=True, timeout=120, capture_output=True)
        return f"file://{self.settings.examples_dir}/{name}.git"

    def trigger(self, conf: object) -> str:
        """Start a run of train_model as the form does, without looking at its request first; the run's id."""
        body = {"logical_date": None, "dag_run_id": f"form-{time.time_ns()}", "conf": conf}
        run = self.call("POST", "/api/v2/dags/train_model/dagRuns", body)
        run.raise_for_status()
        return str(run.json()["dag_run_id"])

    # --- processes ---

    def pids(self, program: str) -> list[int]:
        """Process ids of a supervised program's own process (``scheduler``, ``triggerer``, ``postgres`` …)."""
        found = json.loads(self.fermion("ps", "--json", check=False).stdout)
        return [
            int(each["pid"]) for each in found["programs"] if each["name"].split(":")[-1] == program and each["pid"]
        ]

    def program(self, name: str, *, other_than: int | None = None) -> psutil.Process:
        """The process of a supervised program, to be killed at a moment of one's choice; ``other_than`` was killed before."""
        pids = wait_until(
            lambda: (found := self.pids(name)) and found != [other_than] and found, what=f"a process of {name}"
        )
        return psutil.Process(pids[0])

    def kill(self, program: str) -> None:
        """``kill -9`` a supervised program."""
        pids = wait_until(lambda: self.pids(program), what=f"a process of {program}")
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def workloads(self) -> list[psutil.Process]:
        """Live processes of trainings of this installation (runners and what they run)."""
        place = str(self.settings.work_dir)
        return [
            each
            for each in psutil.process_iter()
            if ("FERMION_WORKLOAD" in (found := _environ(each)) and place in found.get("FERMION_OUTPUT_DIR", ""))
            or (place in " ".join(line := _cmdline(each)) and "runner.py" in " ".join(line))
        ]

    def training(self, job: Job) -> list[psutil.Process]:
        """The training processes of a job's present attempt, without its runner."""
        name = f"{job.id}-a{job.attempt}"
        return [each for each in psutil.process_iter() if _environ(each).get("FERMION_WORKLOAD") == name]

    def keepers(self, job: Job) -> dict[str, psutil.Process]:
        """The ``guard`` and the ``runner`` of a job's present attempt."""
        file = self.settings.work_dir / "workloads" / f"{job.id}-a{job.attempt}" / "runner.json"
        found = json.loads(file.read_text(encoding="utf-8"))
        return {role: psutil.Process(found[role]["pid"]) for role in ("guard", "runner")}

    def task_process(self, run_id: str, task_id: str) -> psutil.Process | None:
        """Airflow's process that runs this task now, below its supervisor; None while there is none."""
        found = self.call("GET", f"/api/v2/dags/train_model/dagRuns/{run_id}/taskInstances/{task_id}")
        title = f"airflow worker -- {found.json().get('id')}"
        return next((each for each in self._mine() if " ".join(_cmdline(each)).strip() == title), None)

    def replicas(self) -> list[tuple[str, psutil.Process, str]]:
        """Live processes of this installation's replicas (their servers and what those started): replica, process, command."""
        place = str(self.settings.work_dir)
        found = ((each, _environ(each)) for each in psutil.process_iter())
        return [
            (marks["FERMION_REPLICA"], each, " ".join(_cmdline(each)))
            for each, marks in found
            if "FERMION_REPLICA" in marks and marks.get("FERMION_MODEL_DIR", "").startswith(place)
        ]

    def processes(self) -> list[psutil.Process]:
        """Every process of this installation, trainings included."""
        return [*self._mine(), *self.workloads()]

    def open_jobs(self) -> list[Job]:
        """Jobs that have not ended."""
        with self.ctx.store.read() as tx:
            return list(tx.jobs.find(phases=OPEN))

    def _mine(self) -> list[psutil.Process]:
        state = self.environ["FERMION_STATE"]
        return [each for each in psutil.process_iter() if _environ(each).get("FERMION_STATE") == state]


def _environ(process: psutil.Process) -> Mapping[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.Error, OSError):
        return []
