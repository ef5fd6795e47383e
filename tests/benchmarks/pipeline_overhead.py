"""What the pipeline adds to a training: trigger to end of a run, less the training itself, against stock Airflow.

The baseline is a chain of ten trivial tasks, as many as ``train_model`` has, on an Airflow at its stock settings with
its own database in the same server. Both stand beside each other and take turns; the medians are compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from datetime import datetime

from tests.benchmarks.lines import Line
from tests.benchmarks.platforms import DAG, lease_of, platform, run_end
from tests.benchmarks.stock_airflow import stock_airflow, take_turns
from tests.e2e.live import Live

TRAINS_S = 2


def main(given: argparse.Namespace) -> Iterator[Line]:
    """One line."""
    with platform(slots=2) as live, stock_airflow(live, live.folder / "stock") as stock:
        compared = take_turns(lambda _: _run_pipeline(live), stock, short=given.short)
        tasks = _tasks(live)
    yield compared.line("pipeline_overhead", part="training_s", tasks_of_last_run=tasks)


def _run_pipeline(live: Live) -> tuple[float, float]:
    """Seconds from the submission to the end of the run, and of the training process."""
    began = time.time()
    job = live.submit(hyperparameters={"seconds": TRAINS_S, "epochs": 4})
    ended = run_end(live, DAG, job.id)
    lease = lease_of(live, live.job(job.id))
    if lease.exec_at is None or lease.exit_at is None:
        raise RuntimeError(f"the training of {job.id} left no exit record")
    return ended.timestamp() - began, (lease.exit_at - lease.exec_at).total_seconds()


def _tasks(live: Live) -> dict[str, dict[str, float]]:
    """Of the newest run: when each task began, in seconds after the run's first, and how long it lasted."""
    with live.ctx.store.read() as tx:
        (job,) = tx.jobs.find(limit=1)
    rows = live.call("GET", f"/api/v2/dags/{DAG}/dagRuns/{job.id}/taskInstances").json()["task_instances"]
    begun = {row["task_id"]: datetime.fromisoformat(row["start_date"]) for row in rows}
    first = min(begun.values())
    return {
        row["task_id"]: {
            "begins_s": round((begun[row["task_id"]] - first).total_seconds(), 2),
            "lasts_s": round(row["duration"] or 0.0, 2),
        }
        for row in sorted(rows, key=lambda row: begun[row["task_id"]])
    }
