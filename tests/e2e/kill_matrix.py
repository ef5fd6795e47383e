"""``make kill-matrix``: break one thing after the other on a live platform and say what became of each training.

Prints a table and writes ``run/kill-matrix.json``; leaves with 1 when a row falls short. ``--smoke`` runs five rows,
``--only NAME`` one. What this machine does not allow a test to do is skipped with the reason; with ``CI`` in the environment
that is a failure too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from e2e import tables
from e2e.kill_rows import ROWS, Row
from e2e.live import PATIENCE_S, ROOT, Live, wait_until
from fermion.domain.jobs import Job
from fermion.usecases.doctor import Diagnosis, examine
from fermion.usecases.launch import launch
from fermion.usecases.stop import request_stop, restart_request
from fermion.usecases.sync import sync_platform

RESULT = ROOT / "run" / "kill-matrix.json"


@dataclass
class Outcome(tables.Outcome):
    """One row of the table. ``restarted``: the job completes when it is restarted with its fault mended."""

    restarted: bool = False


def run_row(live: Live, row: Row) -> Outcome:
    """Run one row; an exception of any kind is an outcome that is not ok, and what it left behind is ended."""
    return tables.attempt(live, Outcome(row.name), lambda outcome: _run(live, row, outcome), lambda: _clear(live))


def _run(live: Live, row: Row, outcome: Outcome) -> None:
    job = row.run(live)
    outcome.status, outcome.reason = str(job.status), str(job.explanation.reason)
    outcome.detail = job.explanation.message
    _check_nothing_left(live, outcome)
    outcome.restarted = _restart(live, row, job)
    outcome.ok = (
        outcome.status == row.status
        and outcome.reason in row.reasons
        and not outcome.leaked
        and not outcome.orphans
        and outcome.restarted
    )


def _check_nothing_left(live: Live, outcome: Outcome) -> None:
    wait_until(lambda: not live.open_jobs(), within_s=60, what="the end of every job")
    sync_platform(live.ctx)
    found: Diagnosis = examine(live.ctx)
    with live.ctx.store.read() as tx:
        outcome.leaked = sum(lease.gpus for lease in tx.leases.live())
    if found.leaked_gpu_seconds != 0:  # also when nobody can tell
        outcome.leaked = max(1, outcome.leaked)
    outcome.orphans = len(live.workloads())


def _restart(live: Live, row: Row, job: Job) -> bool:
    """Whether the job completes when it is restarted as ``fermion restart`` does, with what the row's fault requires mended."""
    request = {**restart_request(live.ctx, job.id, resume=False), **row.mend}
    made = launch(live.ctx, live.runs, request, actor="tester", restart_of=job.id)
    ended = live.wait_for_end(made.id, within_s=PATIENCE_S + float(str(made.spec.hyperparameters["seconds"])))
    if ended.status != "completed":
        print(f"{job.id}, restarted as {made.id}: {ended.explanation.message}", file=sys.stderr)  # noqa: T201
    same_code = job.pins is None or (ended.pins is not None and ended.pins.commit == job.pins.commit)
    return ended.status == "completed" and ended.restart_of == job.id and same_code


def _clear(live: Live) -> None:
    for job in live.open_jobs():
        request_stop(live.ctx, job.id, actor="tester")
    wait_until(lambda: not live.open_jobs(), what="the end of every job")


def main() -> int:
    """Run the rows; the exit code."""
    return tables.run_table(ROWS, run_row, line, about=__doc__, result=RESULT)


def line(outcome: Outcome) -> str:
    """A row of the table for people."""
    begin = f"{outcome.verdict:4} {outcome.row:27}"
    if outcome.skipped:
        return f"{begin} {outcome.skipped}"
    return (
        f"{begin} {outcome.status:10} {outcome.reason:16} leaked {outcome.leaked} orphans {outcome.orphans} "
        f"restarted {outcome.restarted!s:5} {outcome.seconds:6.1f} s  {outcome.detail[:100]}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
