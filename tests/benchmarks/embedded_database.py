"""SQLite or a Postgres from a wheel for the embedded installation: 50 runs at once of a chain of ten trivial tasks.

Airflow's metadata and the platform's own store lie on the same kind of database; every task writes one event to the own
store. Nothing is retried, so a task that a database lock costs is a failed task. Prints one JSON object a line.
``python -m tests.benchmarks.embedded_database [--runs 50] [--parallelism 8] [--engines sqlite postgres]``
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil

from fermion.adapters.local_platform.addresses import Addresses, choose, is_free
from fermion.adapters.local_platform.health import AirflowApi, problems
from fermion.adapters.local_platform.keys import keep_keys
from fermion.adapters.local_platform.layout import Layout
from fermion.adapters.local_platform.postgres import EmbeddedPostgres
from fermion.adapters.local_platform.processes import end
from fermion.adapters.local_platform.programs import AIRFLOW, environment
from fermion.adapters.sql import migrate

ROOT = Path(__file__).resolve().parents[2]
AIRFLOW_COMMAND = str(Path(sys.executable).with_name("airflow"))
TASKS = 10
START_WITHIN_S = 180
LOCKED = ("database is locked", "database table is locked")

DAG = """
import os
from airflow.sdk import chain, dag, task

@dag(schedule=None, catchup=False, max_active_runs=1000)
def ten_tasks():
    @task(retries=0)
    def write(run_id=None, ti=None):
        from datetime import UTC, datetime
        from fermion.adapters.sql import open_store
        from fermion.domain.records import Event
        with open_store(os.environ["FERMION_DATABASE_URL"]).begin() as transaction:
            transaction.records.add_event(
                Event(actor="bench", verb="task.ran", target=run_id, at=datetime.now(UTC), message=ti.task_id)
            )
    chain(*(write.override(task_id=f"write_{number}")() for number in range(10)))

ten_tasks()
"""


@dataclass(frozen=True)
class Side:
    """One engine with its running Airflow."""

    url: str
    password: str
    logs: Path
    store: str
    components: Sequence[Component]


@contextmanager
def running(engine: str, parallelism: int, folder: Path) -> Iterator[Side]:
    """Airflow's four components on that kind of database; all ended afterwards."""
    layout = Layout(root=folder / "root", state=folder / "state")
    (layout.root / "dags").mkdir(parents=True)
    (layout.root / "dags" / "ten_tasks.py").write_text(DAG)
    (layout.root / "config").symlink_to(ROOT / "config")
    (layout.root / "plugins").mkdir()
    layout.state.mkdir()
    layout.make_folders()
    keys = keep_keys(layout.secrets)
    addresses, _ = choose(wanted_http=None, kept=Addresses(http=28080, postgres=28432), is_free=is_free)
    postgres = EmbeddedPostgres(data=layout.postgres, keys=keys, port=addresses.postgres)
    with ExitStack() as stack:
        env = environment(layout, keys, addresses, postgres, caller=os.environ)
        if engine == "postgres":
            start_postgres(stack, postgres, layout.logs)
            store = postgres.url("fermion", scheme="postgresql+psycopg")
        else:
            env["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = f"sqlite:///{layout.state / 'airflow.db'}"
            store = f"sqlite:///{layout.state / 'fermion.db'}"
        env |= {"AIRFLOW__CORE__PARALLELISM": str(parallelism), "FERMION_DATABASE_URL": store}
        migrate(store)
        subprocess.run([AIRFLOW_COMMAND, "db", "migrate"], env=env, check=True, capture_output=True, timeout=300)
        components = [Component([AIRFLOW_COMMAND, name], env=env, log=layout.logs / f"{name}.log") for name in AIRFLOW]
        for component in components:
            stack.callback(component.stop)
        password = keys.passwords["admin"]
        wait_until_healthy(AirflowApi(addresses.url, user="admin", password=password))
        yield Side(url=addresses.url, password=password, logs=layout.state, store=store, components=components)


def start_postgres(stack: ExitStack, postgres: EmbeddedPostgres, logs: Path) -> None:
    """Run the server as the installation does, until the stack closes."""
    account = postgres.prepare()
    as_whom = {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}
    log = logs / "postgres.log"
    server = Component(postgres.command(account), env=dict(os.environ), log=log, cwd=postgres.data, **as_whom)
    stack.callback(server.stop)
    if not postgres.wait(timedelta(seconds=60)):
        raise TimeoutError("Postgres does not answer")
    postgres.make_databases()


class Component:
    """A process that is started again when it ends, as the supervisor does, and counted."""

    def __init__(self, command: list[str], *, env: dict[str, str], log: Path, **options: Any) -> None:
        self._command = command
        self._options = {"env": env, "stderr": subprocess.STDOUT, **options}
        self._log = log
        self.restarts = 0
        self._process = self._spawn()

    def revive(self) -> None:
        """Start it again if it has ended."""
        if self._process.poll() is not None:
            self.restarts += 1
            self._process = self._spawn()

    def stop(self) -> None:
        """End it and all its children."""
        if self._process.poll() is None:
            here = psutil.Process(self._process.pid)
            end([here, *here.children(recursive=True)], grace_s=5)
        self._process.wait(10)

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as file:
            return subprocess.Popen(self._command, stdout=file, **self._options)


def wait_until_healthy(api: AirflowApi) -> None:
    """Return once all components are healthy and the DAG was read."""
    deadline = time.monotonic() + START_WITHIN_S
    while problems(api.health(), started={}) or not api.dags():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Airflow is not healthy after {START_WITHIN_S} s: {problems(api.health(), started={})}")
        time.sleep(0.5)


def measure(side: Side, runs: int, within_s: float) -> dict[str, object]:
    """Start all runs at once, wait for their end, count what was lost."""
    with httpx.Client(base_url=side.url, timeout=60, trust_env=False) as client:
        token = client.post("/auth/token", json={"username": "admin", "password": side.password}).json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        refused = 0
        began = time.monotonic()
        for number in range(runs):
            answer = client.post(
                "/api/v2/dags/ten_tasks/dagRuns", json={"dag_run_id": f"r{number}", "logical_date": None}
            )
            refused += answer.status_code != 200
        while (states := states_of(client, "dagRuns", "dag_runs")).get("running", 0) + states.get("queued", 0):
            if time.monotonic() - began > within_s:
                break
            for component in side.components:
                component.revive()
            time.sleep(1)
        seconds = time.monotonic() - began
        tasks = states_of(client, "dagRuns/~/taskInstances", "task_instances")
    return {
        "seconds": round(seconds, 1),
        "tasks_per_s": round(tasks.get("success", 0) / seconds, 2),
        "starts_refused": refused,
        "runs": states,
        "tasks": tasks,
        "tasks_lost": runs * TASKS - tasks.get("success", 0),
        "events_written": written_events(side.store),
        "lock_errors_logged": lock_errors(side.logs),
        "components_that_ended": sum(component.restarts for component in side.components),
    }


def states_of(client: httpx.Client, path: str, key: str) -> dict[str, int]:
    """How many rows are in which state."""
    counts: dict[str, int] = {}
    offset = 0
    while True:
        answer = client.get(f"/api/v2/dags/ten_tasks/{path}", params={"limit": 100, "offset": offset})
        rows = answer.json().get(key, []) if answer.status_code == 200 else []
        for row in rows:
            counts[str(row["state"])] = counts.get(str(row["state"]), 0) + 1
        offset += len(rows)
        if len(rows) < 100:
            return counts


def written_events(url: str) -> int:
    """Events in the own store."""
    from fermion.adapters.sql import open_store

    with open_store(url).read() as transaction:
        return len(transaction.records.events(limit=100_000))


def lock_errors(folder: Path) -> int:
    """Lines of any log that tell of a locked database."""
    count = 0
    for path in folder.rglob("*.log"):
        text = path.read_text(errors="replace")
        count += sum(text.count(words) for words in LOCKED)
    return count


def main() -> int:
    """Measure the engines one after the other, on the same machine."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--runs", type=int, default=50)
    asked.add_argument("--parallelism", type=int, default=8)
    asked.add_argument("--within", type=float, default=900, help="seconds for all runs of one engine")
    asked.add_argument("--engines", nargs="+", default=["sqlite", "postgres"], choices=["sqlite", "postgres"])
    given = asked.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is ended then too
    for engine in given.engines:
        # Below a folder that the account of Postgres can enter.
        with tempfile.TemporaryDirectory(prefix="fermion-bench-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            folder.chmod(0o711)
            with running(engine, given.parallelism, folder) as side:
                found = measure(side, given.runs, given.within)
        line = {"bench": "embedded_database", "engine": engine, "parallelism": given.parallelism, **found}
        line["load_1m"] = round(os.getloadavg()[0], 1)
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
