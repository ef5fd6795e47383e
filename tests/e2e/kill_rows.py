"""The rows of the kill matrix: each breaks one thing while a training goes on and answers the job that it broke.

What must be true afterwards of every row (0 GPUs leaked, no orphan, a restart works) is checked by ``kill_matrix.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil
from sqlalchemy import create_engine, text

from e2e.live import Live, wait_until
from e2e.object_store import ObjectStore, object_store
from e2e.outages import CodeServer, code_server, small_disk
from fermion.domain.jobs import Job
from fermion.domain.leases import HolderKind, Lease
from fermion.usecases.stop import request_stop

LONG = {"seconds": 12, "epochs": 24}
LONGER = {"seconds": 40, "epochs": 80}
MINUTE_S = 60.0


@dataclass(frozen=True)
class Row:
    """One way to die. ``reasons`` are those that are right; ``run`` breaks the thing and answers the ended job.

    ``mend`` is what has to change in the job's request so that it completes when it is restarted: where the fault lies in
    the request itself. What a row borrows is given back after the restart.
    """

    name: str
    status: str
    reasons: tuple[str, ...]
    run: Callable[[Live], Job]
    smoke: bool = False
    mend: Mapping[str, object] = field(default_factory=dict)


ROWS: list[Row] = []


def row(
    status: str, *reasons: str, smoke: bool = False, mend: Mapping[str, object] | None = None
) -> Callable[[Callable[[Live], Job]], Callable[[Live], Job]]:
    """Enter the function into the matrix under its own name."""

    def enter(function: Callable[[Live], Job]) -> Callable[[Live], Job]:
        ROWS.append(Row(function.__name__, status, reasons, function, smoke, mend or {}))
        return function

    return enter


# --- the training itself ----------------------------------------------------------------------------------------------


@row("failed", "user_code", smoke=True, mend={"hyperparameters": LONG})
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
    """``kill -9`` of the runner: its guard ends the training, the attempt is lost, a fresh one goes on."""
    job = live.submit(hyperparameters=LONG)
    job = live.wait_for_epoch(job.id, 6)
    live.keepers(job)["runner"].kill()
    ended = live.wait_for_end(job.id)
    assert ended.attempt == 2, f"attempt {ended.attempt}"
    return ended


@row("completed", "model_published")
def keepers_killed(live: Live) -> Job:
    """``kill -9`` of runner and guard at once, while a child in a session of its own lives on: the next attempt starts
    only when nothing of the first one lives any more."""
    repository = live.make_repository("daemon", Path(__file__).parent / "daemon")
    job = live.submit(repository=repository, entrypoint="python train.py", hyperparameters=LONG)
    job = live.wait_for_epoch(job.id, 6)
    first = live.training(job)
    assert len(first) >= 2, f"the training has no child: {first}"
    keepers = live.keepers(job).values()
    for each in keepers:
        each.suspend()  # so that neither sees the other die
    for each in keepers:
        each.kill()
    try:
        alive_at = _last_seen_alive(first)
        ended = live.wait_for_end(job.id)
    finally:
        for each in first:
            _kill(each)
    assert ended.attempt == 2, f"attempt {ended.attempt}"
    granted_at = max(lease.granted_at for lease in _leases_of(live, job))
    assert granted_at > alive_at, f"attempt 2 was granted at {granted_at}, the first one lived until {alive_at}"
    return ended


def _last_seen_alive(processes: list[psutil.Process], *, within_s: float = 90) -> datetime:
    """When the last of them was seen alive; now, when some are alive after ``within_s``."""
    deadline, seen_at = time.monotonic() + within_s, datetime.now(UTC)
    while time.monotonic() < deadline and any(_is_alive(each) for each in processes):
        seen_at = datetime.now(UTC)
        time.sleep(0.05)
    return seen_at


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _kill(process: psutil.Process) -> None:
    if _is_alive(process):
        process.kill()


@row("failed", "out_of_memory", smoke=True, mend={"memory_mib": 1024})
def out_of_memory(live: Live) -> Job:
    """The training eats more memory than it asked for."""
    job = live.submit(hyperparameters={**LONG, "after": 2, "eat-memory": 600}, memory_mib=128)
    return live.wait_for_end(job.id)


@row("failed", "hang", mend={"hyperparameters": LONG})
def hang(live: Live) -> Job:
    """The training lives and says nothing any more."""
    job = live.submit(hyperparameters={**LONG, "after": 4, "hang": True})
    return live.wait_for_end(job.id)


@row("failed", "max_runtime", mend={"max_runtime_s": 600})
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
    # Long enough to be there still when the other one, staged on a busy machine, comes under way.
    low = live.submit(hyperparameters={"seconds": 60, "epochs": 120}, gpus=live.slots)
    live.wait_for_epoch(low.id, 6)
    high = live.submit(priority=10, gpus=live.slots)
    ended = live.wait_for_end(high.id)
    assert ended.status == "completed", ended.explanation.message
    back = live.wait_for_end(low.id, within_s=240)
    assert back.attempt == 2, f"attempt {back.attempt}"
    return back


@row("failed", "queue_timeout", mend={"queue_timeout_s": 600})
def queue_timeout(live: Live) -> Job:
    """It waits longer than it wants to."""
    with full_pool(live):
        return live.wait_for_end(live.submit(queue_timeout="5s").id)


@contextmanager
def full_pool(live: Live) -> Iterator[None]:
    """Somebody else holds every GPU; afterwards they are free."""
    holder = live.submit(hyperparameters={"seconds": 300, "epochs": 600}, gpus=live.slots)
    live.wait_for(holder.id, "running")
    try:
        yield
    finally:
        request_stop(live.ctx, holder.id, actor="tester")
        live.wait_for_end(holder.id)


# --- a person at Airflow's pages ---------------------------------------------------------------------------------------


@row("failed", "run_ended", smoke=True)
def task_marked_failed(live: Live) -> Job:
    """Somebody marks the task ``train`` failed."""
    job = live.submit(hyperparameters=LONG)
    live.wait_for_epoch(job.id, 2)
    live.runs.fail_task("train_model", job.id, "train")
    return live.wait_for_end(job.id)


def _mark_run_failed(live: Live, job: Job, *, corrected: bool = False) -> Job:
    """Mark the job's run failed: it must end as that (``corrected``: in the end), with the job failed and told so."""
    assert job.run is not None
    dag_id, run_id = job.run
    live.call("PATCH", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}", {"state": "failed"}).raise_for_status()
    ended = live.wait_for_end(job.id, within_s=150)
    final = {"failed"} if corrected else {"failed", "success"}
    state = wait_until(
        lambda: (found := live.runs.state(dag_id, run_id).state) in final and found, within_s=150, what="the run's end"
    )
    assert state == "failed", f"the run ended as {state}"
    report = wait_until(lambda: live.ctx.reports.read(job.id), what="the report")
    assert report.outcome.status == "failed", f"the report says {report.outcome}"
    return ended


@row("failed", "run_ended")
def run_marked_failed_submitted(live: Live) -> Job:
    """Somebody marks the run failed while its request is still being checked, before its setup."""
    server = live.borrow(code_server(live))
    server.is_away = lambda: True
    job = _wait_for_job(live, live.trigger(live.spec(repository=server.repository)))
    wait_until(lambda: server.refused, what="the check at the git server")
    assert job.phase == "submitted", f"it is {job.phase}"
    ended = _mark_run_failed(live, job, corrected=True)
    server.is_away = lambda: False
    return ended


@row("failed", "run_ended")
def run_marked_failed_staging(live: Live) -> Job:
    """Somebody marks the run failed while its code is being fetched."""
    server = live.borrow(code_server(live))
    server.hangs = True
    job = _wait_without_code(live, server, live.trigger(live.spec(repository=server.repository)))
    live.wait_for(job.id, "staging")
    ended = _mark_run_failed(live, job)
    server.is_away = lambda: False
    return ended


@row("failed", "run_ended")
def run_marked_failed_waiting(live: Live) -> Job:
    """Somebody marks the run failed while its job waits for GPUs: it never gets any."""
    with full_pool(live):
        job = live.submit()
        live.wait_for(job.id, "waiting")
        ended = _mark_run_failed(live, job)
    assert not _leases_of(live, job), "it was given GPUs"
    return ended


@row("failed", "run_ended")
def run_marked_failed_running(live: Live) -> Job:
    """Somebody marks the run failed while its training goes on."""
    job = live.submit(hyperparameters=LONG)
    live.wait_for_epoch(job.id, 2)
    return _mark_run_failed(live, job)


@row("failed", "run_ended")
def run_marked_failed_saving(live: Live) -> Job:
    """Somebody marks the run failed while its model is being saved: nothing is published, then or later."""
    store = live.borrow(object_store(live))
    job, _ = _wait_for_save(live, store)
    ended = _mark_run_failed(live, job)
    store.thaw()
    assert store.published() == [], "a model was published"
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
    job = live.submit(hyperparameters={"seconds": 90, "epochs": 180})
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
    """The DAG's file is away for longer than the training takes: ``save_model`` waits for it, and no GPU does."""
    job = live.submit(hyperparameters=LONG)
    live.wait_for_epoch(job.id, 2)
    file = Path(live.environ["FERMION_ROOT"]) / "dags" / "train_model.py"
    text = file.read_text(encoding="utf-8")
    file.unlink()
    try:
        time.sleep(75)
        assert live.job(job.id).phase in {"saving", "completed"}, f"it is {live.job(job.id).phase}"
        assert not _live_leases(live), "GPUs are held while the DAG's file is away"
    finally:
        file.write_text(text, encoding="utf-8")
    ended = live.wait_for_end(job.id, within_s=200)
    assert live.wait_for_run(job) == "success"
    return ended


# --- Airflow's processes -----------------------------------------------------------------------------------------------


def _killed_while_training(live: Live, program: str) -> Job:
    job = live.submit(hyperparameters=LONG)
    live.wait_for_epoch(job.id, 2)
    live.kill(program)
    killed_at = datetime.now(UTC)
    ended = live.wait_for_end(job.id, within_s=150)
    assert ended.attempt == 1, f"attempt {ended.attempt}"
    (lease,) = _leases_of(live, job)
    assert lease.exit_at is not None
    assert lease.exit_at > killed_at, f"the training had ended at {lease.exit_at}, before the kill at {killed_at}"
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


@row("completed", "model_published")
def database_locked(live: Live) -> Job:
    """Somebody locks the platform's tables for longer than it has patience, as a repair by hand would: nothing is lost."""
    job = live.submit(hyperparameters=LONG)
    live.wait_for_epoch(job.id, 4)
    with create_engine(live.settings.database_url).begin() as somebody:
        for table in ("leases", "jobs"):
            somebody.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
        time.sleep(45)
    ended = live.wait_for_end(job.id)
    assert ended.attempt == 1, f"attempt {ended.attempt}"
    return ended


def _kill_task(live: Live, *, supervisor: bool) -> Job:
    """Kill the process of ``wait_for_gpus`` (or the supervisor above it) while the job waits for a full pool."""
    with full_pool(live):
        job = live.submit()
        process = wait_until(lambda: live.task_process(job.id, "wait_for_gpus"), what="the task's process")
        victim = process.parent() if supervisor else process
        assert victim is not None
        victim.kill()
    return live.wait_for_end(job.id, within_s=180)


@row("completed", "model_published")
def task_process_killed(live: Live) -> Job:
    """``kill -9`` of the process of a running task: Airflow tries it again, the job keeps its place."""
    return _kill_task(live, supervisor=False)


@row("completed", "model_published")
def save_task_killed(live: Live) -> Job:
    """``kill -9`` of the process of ``save_model`` at its work: Airflow tries it again, one version is published."""
    store = live.borrow(object_store(live))
    job, process = _wait_for_save(live, store)
    process.kill()
    store.thaw()
    ended = live.wait_for_end(job.id, within_s=180)
    assert store.published() == ["models/sleeper/1"], f"published: {store.published()}"
    return ended


@row("completed", "model_published")
def task_supervisor_killed(live: Live) -> Job:
    """``kill -9`` of the supervisor of a running task."""
    return _kill_task(live, supervisor=True)


# --- the outside -------------------------------------------------------------------------------------------------------


def _wait_for_job(live: Live, run_id: str) -> Job:
    """The job of a run that was triggered without one."""
    job: Job = wait_until(lambda: live.job_of_run(run_id), what="a job of the run")
    return job


def _wait_without_code(live: Live, server: CodeServer, run_id: str) -> Job:
    """The run's job, once the git server, which knew the commit, was asked for its files and is away."""

    def is_pinned() -> bool:
        job = live.job_of_run(run_id)
        return job is not None and job.pins is not None

    before = server.refused
    server.is_away = is_pinned
    wait_until(lambda: server.refused > before, within_s=150, what="a request for the code")
    return _wait_for_job(live, run_id)


def _wait_for_save(live: Live, store: ObjectStore) -> tuple[Job, psutil.Process]:
    """A job whose ``save_model`` hangs at its work, because the store of models does; and the process of that task."""
    store.start({})
    job = live.submit(hyperparameters=LONG)
    live.wait_for_epoch(job.id, 2)
    store.freeze()
    job = live.wait_for(job.id, "saving")
    process: psutil.Process = wait_until(
        lambda: (found := live.task_process(job.id, "save_model")) and store.is_asked_by(found) and found,
        what=f"save_model of {job.id} at the store",
    )
    return job, process


def _leases_of(live: Live, job: Job) -> list[Lease]:
    with live.ctx.store.read() as tx:
        return list(tx.leases.of_holder(HolderKind.JOB, job.id))


def _live_leases(live: Live) -> list[Lease]:
    with live.ctx.store.read() as tx:
        return list(tx.leases.live())


@row("failed", "save_failed")
def disk_full(live: Live) -> Job:
    """The model repository's disk is full: nothing half is published, the message says how much is missing."""
    with small_disk(live.settings.models_dir):
        job = live.submit(hyperparameters={**LONG, "output-mib": 64})
        ended = live.wait_for_end(job.id, within_s=300)
        assert not list(live.ctx.models.versions("sleeper")), "a version was published on a full disk"
    return ended


@row("completed", "model_published")
def git_server_gone(live: Live) -> Job:
    """The git server is away for a minute at the check, and for another when the code is fetched: both are tried again
    until it is back, and no GPU waits for it."""
    server = live.borrow(code_server(live))
    server.is_away = lambda: True
    run = live.trigger(live.spec(repository=server.repository))
    wait_until(lambda: server.refused, what="the check at the git server")
    time.sleep(MINUTE_S)
    job = _wait_without_code(live, server, run)
    time.sleep(MINUTE_S)
    assert live.job(job.id).phase == "staging", f"it is {live.job(job.id).phase}"
    assert not _live_leases(live), "GPUs are held while the code is fetched"
    server.is_away = lambda: False
    return live.wait_for_end(job.id, within_s=200)


@row("completed", "model_published")
def object_store_gone(live: Live) -> Job:
    """The store of data and models cannot be reached for a minute at the check, and hangs for another at the save: no GPU
    waits for it, and the model is published once."""
    store = live.borrow(object_store(live))
    run = live.trigger(live.spec(datasets=["remote"]))
    time.sleep(MINUTE_S)
    store.start({"data/one.csv": b"1,2\n", "data/more/two.csv": b"3,4\n"})
    job = live.wait_for_epoch(_wait_for_job(live, run).id, 1, within_s=200)
    store.freeze()
    live.wait_for(job.id, "saving")
    time.sleep(MINUTE_S)
    assert not _live_leases(live), "GPUs are held while the model is saved"
    store.thaw()
    ended = live.wait_for_end(job.id, within_s=200)
    assert ended.pins is not None
    assert "remote" in ended.pins.datasets, ended.pins
    assert store.published() == ["models/sleeper/1"], f"published: {store.published()}"
    return ended
