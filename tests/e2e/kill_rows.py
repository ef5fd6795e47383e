"""The rows of the kill matrix: each breaks one thing while a training goes on and answers the job that it broke.

What must be true afterwards of every row (0 GPUs leaked, no orphan, a restart works) is checked by ``kill_matrix.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from components.git_http_backend import GitServer
from e2e.live import Live, wait_until
from fermion.domain.jobs import Job
from fermion.usecases.stop import request_stop

LONG = {"seconds": 12, "epochs": 24}


@dataclass(frozen=True)
class Row:
    """One way to die. ``reasons`` are those that are right; ``run`` breaks the thing and answers the ended job."""

    name: str
    status: str
    reasons: tuple[str, ...]
    run: Callable[[Live], Job]
    smoke: bool = False


ROWS: list[Row] = []


def row(status: str, *reasons: str, smoke: bool = False) -> Callable[[Callable[[Live], Job]], Callable[[Live], Job]]:
    """Enter the function into the matrix under its own name."""

    def enter(function: Callable[[Live], Job]) -> Callable[[Live], Job]:
        ROWS.append(Row(function.__name__, status, reasons, function, smoke))
        return function

    return enter


# --- the training itself ----------------------------------------------------------------------------------------------


@row("failed", "user_code", smoke=True)
def task_raises(live: Live) -> Job:
    """The training code exits with an error."""
    job = live.submit(hyperparameters={**LONG, "after": 2, "fail": True})
    return live.wait_for_end(job.id)


@row("completed", "model_published", smoke=True)
def training_killed(live: Live) -> Job:
    """``kill -9`` of the training process: a fresh attempt goes on from the checkpoint."""
    job = live.submit(hyperparameters=LONG)
    job = live.wait_for_epoch(job.id, 6)
    victim = next(each for each in live.training(job) if "sleep.py" in " ".join(each.cmdline()))
    victim.kill()
    ended = live.wait_for_end(job.id)
    assert ended.attempt == 2, f"attempt {ended.attempt}"
    return ended


@row("completed", "model_published")
def runner_killed(live: Live) -> Job:
    """``kill -9`` of the runner: its training dies with it, the attempt is lost, a fresh one goes on."""
    job = live.submit(hyperparameters=LONG)
    job = live.wait_for_epoch(job.id, 6)
    name = f"{job.id}-a{job.attempt}"
    for each in wait_until(
        lambda: [p for p in live.processes() if name in " ".join(p.cmdline()) and "runner.py" in " ".join(p.cmdline())]
    ):
        each.kill()
    ended = live.wait_for_end(job.id)
    assert ended.attempt == 2, f"attempt {ended.attempt}"
    return ended


@row("failed", "out_of_memory", smoke=True)
def out_of_memory(live: Live) -> Job:
    """The training eats more memory than it asked for."""
    job = live.submit(hyperparameters={**LONG, "after": 2, "eat-memory": 600}, memory_mib=128)
    return live.wait_for_end(job.id)


@row("failed", "hang")
def hang(live: Live) -> Job:
    """The training lives and says nothing any more."""
    job = live.submit(hyperparameters={**LONG, "after": 4, "hang": True})
    return live.wait_for_end(job.id)


@row("failed", "max_runtime")
def max_runtime(live: Live) -> Job:
    """The training runs longer than it asked for."""
    job = live.submit(hyperparameters=LONG, max_runtime="4s")
    return live.wait_for_end(job.id)


@row("failed", "stopped")
def stopped(live: Live) -> Job:
    """Somebody stops it."""
    job = live.submit(hyperparameters=LONG)
    live.wait_for_epoch(job.id, 2)
    request_stop(live.ctx, job.id, actor="tester")
    return live.wait_for_end(job.id)


# --- the line ---------------------------------------------------------------------------------------------------------


@row("completed", "model_published")
def preempted(live: Live) -> Job:
    """A higher priority takes its GPUs; it goes on from its checkpoint afterwards."""
    low = live.submit(hyperparameters=LONG, gpus=live.slots)
    live.wait_for_epoch(low.id, 6)
    high = live.submit(priority=10, gpus=live.slots)
    ended = live.wait_for_end(high.id)
    assert ended.status == "completed", ended.explanation.message
    back = live.wait_for_end(low.id)
    assert back.attempt == 2, f"attempt {back.attempt}"
    return back


@row("failed", "queue_timeout")
def queue_timeout(live: Live) -> Job:
    """It waits longer than it wants to."""
    holder = live.submit(hyperparameters=LONG, gpus=live.slots)
    live.wait_for(holder.id, "running")
    job = live.submit(queue_timeout="5s")
    ended = live.wait_for_end(job.id)
    live.wait_for_end(holder.id)
    return ended


# --- a person at Airflow's pages ---------------------------------------------------------------------------------------


@row("failed", "run_ended", smoke=True)
def task_marked_failed(live: Live) -> Job:
    """Somebody marks the task ``train`` failed."""
    job = live.submit(hyperparameters=LONG)
    live.wait_for_epoch(job.id, 2)
    live.runs.fail_task("train_model", job.id, "train")
    return live.wait_for_end(job.id)


@row("failed", "run_ended")
def run_marked_failed(live: Live) -> Job:
    """Somebody marks the run failed; it must end failed, not as a success of its teardown."""
    job = live.submit(hyperparameters=LONG)
    live.wait_for_epoch(job.id, 2)
    live.call("PATCH", f"/api/v2/dags/train_model/dagRuns/{job.id}", {"state": "failed"}).raise_for_status()
    ended = live.wait_for_end(job.id)
    state = wait_until(
        lambda: (found := live.runs.state("train_model", job.id).state) in {"failed", "success"} and found
    )
    assert state == "failed", f"the run ended as {state}"
    return ended


@row("completed", "model_published")
def task_cleared(live: Live) -> Job:
    """Somebody clears the running task ``train``: the training is found again and goes on."""
    job = live.submit(hyperparameters=LONG)
    live.wait_for_epoch(job.id, 2)
    body = {"dry_run": False, "dag_run_id": job.id, "task_ids": ["train"], "only_failed": False, "only_running": False}
    live.call("POST", "/api/v2/dags/train_model/clearTaskInstances", body).raise_for_status()
    ended = live.wait_for_end(job.id)
    assert ended.attempt == 1, f"attempt {ended.attempt}"
    return ended


@row("failed", "run_ended")
def dag_deleted(live: Live) -> Job:
    """Somebody deletes the DAG by REST while ``train`` is deferred: its runs are gone, the sync ends the job."""
    job = live.submit(hyperparameters={"seconds": 120, "epochs": 240})
    live.wait_for_epoch(job.id, 4)
    live.call("DELETE", "/api/v2/dags/train_model").raise_for_status()
    ended = live.wait_for_end(job.id, within_s=120)
    wait_until(
        lambda: live.call("GET", "/api/v2/dags/train_model").status_code == 200,
        within_s=120,
        what="the DAG parsed again",
    )
    return ended


@row("completed", "model_published")
def dag_file_removed(live: Live) -> Job:
    """The DAG's file is removed and put back while the training goes on."""
    job = live.submit(hyperparameters=LONG)
    live.wait_for_epoch(job.id, 2)
    file = Path(live.environ["FERMION_ROOT"]) / "dags" / "train_model.py"
    text = file.read_text(encoding="utf-8")
    file.unlink()
    time.sleep(8)
    file.write_text(text, encoding="utf-8")
    return live.wait_for_end(job.id, within_s=150)


# --- Airflow's processes -----------------------------------------------------------------------------------------------


def _killed_while_training(live: Live, program: str) -> Job:
    job = live.submit(hyperparameters=LONG)
    live.wait_for_epoch(job.id, 2)
    live.kill(program)
    ended = live.wait_for_end(job.id, within_s=150)
    assert ended.attempt == 1, f"attempt {ended.attempt}"
    return ended


@row("completed", "model_published", smoke=True)
def triggerer_killed(live: Live) -> Job:
    """``kill -9`` of the triggerer."""
    return _killed_while_training(live, "triggerer")


@row("completed", "model_published")
def scheduler_killed(live: Live) -> Job:
    """``kill -9`` of the scheduler."""
    return _killed_while_training(live, "scheduler")


@row("completed", "model_published")
def api_server_killed(live: Live) -> Job:
    """``kill -9`` of the API server."""
    return _killed_while_training(live, "api-server")


@row("completed", "model_published")
def database_killed(live: Live) -> Job:
    """``kill -9`` of the database server: it recovers, nothing that was committed is lost."""
    return _killed_while_training(live, "postgres")


def _kill_task(live: Live, *, supervisor: bool) -> Job:
    """Kill the process of ``wait_for_gpus`` (or the supervisor above it) while the job waits for a full pool."""
    holder = live.submit(hyperparameters=LONG, gpus=live.slots)
    live.wait_for(holder.id, "running")
    job = live.submit()
    process = wait_until(lambda: live.task_process(job.id, "wait_for_gpus"), what="the task's process")
    victim = process.parent() if supervisor else process
    assert victim is not None
    victim.kill()
    ended = live.wait_for_end(job.id, within_s=180)
    live.wait_for_end(holder.id)
    return ended


@row("completed", "model_published")
def task_process_killed(live: Live) -> Job:
    """``kill -9`` of the process of a running task: Airflow tries it again, the job keeps its place."""
    return _kill_task(live, supervisor=False)


@row("completed", "model_published")
def task_supervisor_killed(live: Live) -> Job:
    """``kill -9`` of the supervisor of a running task."""
    return _kill_task(live, supervisor=True)


# --- the outside -------------------------------------------------------------------------------------------------------


@row("failed", "save_failed")
def disk_full(live: Live) -> Job:
    """The model repository's disk is full: nothing half is published, the message says how much is missing."""
    job = live.submit(hyperparameters={**LONG, "output-mib": 64})
    live.wait_for_epoch(job.id, 2)
    with small_disk(live.settings.models_dir):
        ended = live.wait_for_end(job.id, within_s=260)
        assert not list(live.ctx.models.versions("sleeper")), "a version was published on a full disk"
    return ended


@contextmanager
def small_disk(folder: Path, mib: int = 8):  # type: ignore[no-untyped-def]
    """A tmpfs of a few MiB over the folder."""
    import subprocess

    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)


@row("completed", "model_published")
def git_server_gone(live: Live) -> Job:
    """The git server answers nothing useful for half a minute, from the check on: the task tries again until it is back."""
    with GitServer(live.settings.examples_dir) as server:
        server.behave = _unavailable
        conf = live.spec(repository=f"{server.url}/sleeper.git")
        body = {"logical_date": None, "dag_run_id": f"git-{time.time_ns()}", "conf": conf}
        run = live.call("POST", "/api/v2/dags/train_model/dagRuns", body)
        run.raise_for_status()
        time.sleep(30)
        server.behave = lambda request: False
        job = wait_until(lambda: live.job_of_run(run.json()["dag_run_id"]), what="a job of the run")
        return live.wait_for_end(job.id, within_s=150)


def _unavailable(request: BaseHTTPRequestHandler) -> bool:
    request.send_error(503)
    return True
