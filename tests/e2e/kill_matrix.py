"""``make kill-matrix``: break one thing after the other on a live platform and say what became of each training.

Prints a table and writes ``run/kill-matrix.json``; leaves with 1 when a row falls short. ``--smoke`` runs five rows,
``--only NAME`` one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from e2e.kill_rows import ROWS, Row
from e2e.live import ROOT, Live, wait_until
from fermion.domain.jobs import Job
from fermion.usecases.doctor import Diagnosis, examine
from fermion.usecases.launch import launch
from fermion.usecases.stop import restart_request
from fermion.usecases.sync import sync_platform

RESULT = ROOT / "run" / "kill-matrix.json"


@dataclass
class Outcome:
    """One row of the table. ``leaked`` are GPUs held with nothing running after one sync; ``orphans`` live processes."""

    row: str
    status: str = ""
    reason: str = ""
    leaked: int = 0
    orphans: int = 0
    restarted: bool = False
    seconds: float = 0.0
    ok: bool = False
    detail: str = ""


def run_row(live: Live, row: Row) -> Outcome:
    """Run one row; an exception of any kind is an outcome that is not ok."""
    began = time.monotonic()
    outcome = Outcome(row.name)
    try:
        job = row.run(live)
        outcome.status, outcome.reason = str(job.status), str(job.explanation.reason)
        outcome.detail = job.explanation.message
        _check_nothing_left(live, outcome)
        outcome.restarted = _restart(live, job)
        outcome.ok = (
            outcome.status == row.status
            and outcome.reason in row.reasons
            and not outcome.leaked
            and not outcome.orphans
            and outcome.restarted
        )
    except Exception as error:
        outcome.detail = f"{type(error).__name__}: {error}"
        traceback.print_exc(limit=-4, chain=False, file=sys.stderr)
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def _check_nothing_left(live: Live, outcome: Outcome) -> None:
    wait_until(lambda: not live.open_jobs(), within_s=60, what="the end of every job")
    sync_platform(live.ctx)
    found: Diagnosis = examine(live.ctx)
    with live.ctx.store.read() as tx:
        outcome.leaked = sum(lease.gpus for lease in tx.leases.live())
    if found.leaked_gpu_seconds:
        outcome.leaked = max(1, outcome.leaked)
    outcome.orphans = len(live.workloads())


def _restart(live: Live, job: Job) -> bool:
    """Whether the job, started again without the fault, completes."""
    request = restart_request(live.ctx, job.id, resume=False)
    request.update(
        hyperparameters={"seconds": 1, "epochs": 2},
        queue_timeout_s=None,
        max_runtime_s=None,
        memory_mib=256,
        gpus_per_node=1,
    )
    made = launch(live.ctx, live.runs, request, actor="tester", restart_of=job.id)
    return live.wait_for_end(made.id).status == "completed"


def main() -> int:
    """Run the rows; the exit code."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--smoke", action="store_true")
    asked.add_argument("--only", action="append", default=[])
    asked.add_argument("--keep", action="store_true", help="keep the installation's folder")
    options = asked.parse_args()
    rows = [row for row in ROWS if (not options.only or row.name in options.only) and (not options.smoke or row.smoke)]
    folder = Path(tempfile.mkdtemp(prefix="fermion-kill-"))
    folder.chmod(0o755)
    live = Live(folder)
    outcomes = []
    try:
        live.up()
        for row in rows:
            live.settle()
            outcomes.append(run_row(live, row))
            print(_line(outcomes[-1]), flush=True)  # noqa: T201
    finally:
        live.down()
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n", encoding="utf-8")
    good = sum(outcome.ok for outcome in outcomes)
    print(f"{good} passed, {len(rows) - good} failed", flush=True)  # noqa: T201
    return 0 if good == len(rows) else 1


def _line(outcome: Outcome) -> str:
    mark = "ok  " if outcome.ok else "FAIL"
    return (
        f"{mark} {outcome.row:24} {outcome.status:10} {outcome.reason:16} leaked {outcome.leaked} orphans {outcome.orphans} "
        f"restarted {outcome.restarted!s:5} {outcome.seconds:6.1f} s  {outcome.detail[:100]}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
