"""A second Airflow at its stock settings, with its own database in the platform's Postgres server: the baseline.

Only what a second Airflow on one machine needs is set (ports, keys, its database); how it schedules is its default.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median

import httpx
import psutil
import psycopg
from psycopg import sql
from tests.benchmarks.lines import Line
from tests.e2e.live import Live, wait_until

from fermion.adapters.local_platform.addresses import is_free, read
from fermion.adapters.local_platform.health import AirflowApi, problems
from fermion.adapters.local_platform.keys import keep_keys
from fermion.adapters.local_platform.layout import Layout
from fermion.adapters.local_platform.processes import end

AIRFLOW = str(Path(sys.executable).with_name("airflow"))
PROGRAMS = ("api-server", "scheduler", "dag-processor", "triggerer")
DATABASE = "airflow_stock"
ROUNDS = 5
BAR = 0.4
"""Of what the platform adds, against the chain."""

DAG_ID = "trivial_tasks"
DAG = """
from airflow.sdk import chain, dag, task

@dag(schedule=None, catchup=False, is_paused_upon_creation=False)
def trivial_tasks():
    @task
    def nothing():
        return None
    chain(*(nothing.override(task_id=f"task_{number}")() for number in range(TASKS)))

trivial_tasks()
"""


@dataclass(frozen=True)
class StockAirflow:
    """A running one."""

    client: httpx.Client

    def run_chain(self, run_id: str, *, within_s: float = 180) -> float:
        """Seconds from the trigger to the end of one run of the chain."""
        began = time.time()
        path = f"/api/v2/dags/{DAG_ID}/dagRuns"
        self.client.post(path, json={"dag_run_id": run_id, "logical_date": None}).raise_for_status()

        def ended() -> datetime | None:
            run = self.client.get(f"{path}/{run_id}").json()
            if run["state"] == "failed":
                raise RuntimeError(f"the baseline's run {run_id} failed")
            return datetime.fromisoformat(run["end_date"]) if run["state"] == "success" else None

        return wait_until(ended, within_s=within_s, what=f"the baseline's run {run_id}").timestamp() - began


@dataclass(frozen=True)
class Compared:
    """Runs of ours, whole and the part of it that is not the platform's, and the baseline's, in seconds."""

    ours: Sequence[tuple[float, float]]
    theirs: Sequence[float]
    is_judged: bool

    def line(self, bench: str, *, part: str, **more: object) -> Line:
        """The ratio of the medians of what the platform adds and of the baseline; ``part`` names what is taken off."""
        overhead = [whole - taken for whole, taken in self.ours]
        ratio = median(overhead) / median(self.theirs)
        return Line(
            bench=bench,
            bar=f"ratio <= {BAR}",
            holds=ratio <= BAR if self.is_judged else None,
            ratio=ratio,
            raw={
                "overhead_s": [round(each, 2) for each in overhead],
                "whole_s": [round(whole, 2) for whole, _ in self.ours],
                part: [round(taken, 2) for _, taken in self.ours],
                "baseline_s": [round(each, 2) for each in self.theirs],
                "rounds": len(self.theirs),
                **more,
            },
        )


def take_turns(run: Callable[[str], tuple[float, float]], stock: StockAirflow, *, short: bool) -> Compared:
    """Ours and the baseline's chain by turns, after one of each that stages, forks and compiles for all.

    ``run`` is given a name, and answers with the seconds of the whole and of the part that is not the platform's.
    """
    run("warm")
    stock.run_chain("warm")
    ours: list[tuple[float, float]] = []
    theirs: list[float] = []
    for number in range(2 if short else ROUNDS):
        ours.append(run(f"round-{number}"))
        theirs.append(stock.run_chain(f"round-{number}"))
    return Compared(ours, theirs, is_judged=not short)


@contextmanager
def stock_airflow(live: Live, folder: Path, *, tasks: int = 10) -> Iterator[StockAirflow]:
    """Up beside the platform, with a chain of so many trivial tasks; ended afterwards."""
    folder.mkdir()
    (folder / "dags").mkdir()
    (folder / "dags" / f"{DAG_ID}.py").write_text(DAG.replace("TASKS", str(tasks)))
    password = secrets.token_urlsafe(16)
    (folder / "passwords.json").write_text(json.dumps({"admin": password}))
    port, logs_port, trigger_logs_port = _free_ports(3, first=28480)
    url = f"http://127.0.0.1:{port}"
    env = _environment(folder, database=_make_database(live), url=url, port=port)
    env |= {"AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(logs_port)}
    env |= {"AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(trigger_logs_port)}
    subprocess.run([AIRFLOW, "db", "migrate"], env=env, check=True, capture_output=True, timeout=300)
    with ExitStack() as stack:
        for name in PROGRAMS:
            _start(stack, name, env=env, folder=folder)
        api = AirflowApi(url, user="admin", password=password)
        wait_until(lambda: not problems(api.health(), started={}) and api.dags(), within_s=240, what="the baseline")
        client = stack.enter_context(httpx.Client(base_url=url, timeout=60, trust_env=False))
        token = client.post("/auth/token", json={"username": "admin", "password": password}).json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        yield StockAirflow(client)


def _environment(folder: Path, *, database: str, url: str, port: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "FERMION_"))}
    return {
        **kept,
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(folder / "passwords.json"),
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
        "no_proxy": "127.0.0.1,localhost",
        "NO_PROXY": "127.0.0.1,localhost",
    }


def _make_database(live: Live) -> str:
    """A database beside the platform's own two."""
    layout = Layout(root=live.settings.root, state=live.settings.state)
    addresses = read(layout.ports_file)
    if addresses is None:
        raise RuntimeError("the platform is not up")
    keys = keep_keys(layout.secrets)
    port = addresses.postgres
    with psycopg.connect(
        host="127.0.0.1", port=port, user="postgres", password=keys.postgres, dbname="postgres", autocommit=True
    ) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER airflow").format(sql.Identifier(DATABASE)))
    return f"postgresql+psycopg2://airflow:{keys.airflow_db}@127.0.0.1:{port}/{DATABASE}"


def _free_ports(count: int, *, first: int) -> list[int]:
    return [port for port in range(first, first + 200) if is_free(port)][:count]


def _start(stack: ExitStack, name: str, *, env: dict[str, str], folder: Path) -> None:
    file = stack.enter_context((folder / f"{name}.log").open("w"))
    process = subprocess.Popen([AIRFLOW, name], env=env, stdout=file, stderr=subprocess.STDOUT)

    def stop() -> None:
        here = psutil.Process(process.pid)
        end([here, *here.children(recursive=True)], grace_s=5)
        process.wait(10)

    stack.callback(stop)
