"""How long GPUs are held while no training runs: from the grant to the exec, and from the exit to their being free.

The times are rows: ``granted_at`` (taken before the granting transaction commits) and ``ended_at`` of the lease, and
``exec_at`` and ``exit_at`` as the runner's exit record has them. Two runs are in flight on one slot, so that each but
the first waits, staged, until the one before it ends. The dataset is staged once, by the first run, and shared.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from datetime import datetime

from tests.benchmarks.lines import Line, percentile
from tests.benchmarks.platforms import lease_of, platform
from tests.e2e.live import Live

from fermion.domain.leases import Lease

RUNS = 20
P50_BAR_S, P95_BAR_S = 0.5, 1.5
TRAINS_S = 3


def main(given: argparse.Namespace) -> Iterator[Line]:
    """Two lines: before the training and after it."""
    runs, mib = (4, 64) if given.short else (RUNS, 1024)
    with platform(slots=1, dataset_mib=mib) as live:
        leases, cold_s = _train(live, runs)
    before = [_seconds(lease.granted_at, lease.exec_at) for lease in leases]
    after = [_seconds(lease.exit_at, lease.ended_at) for lease in leases]
    about: dict[str, object] = {"runs": runs, "dataset_mib": mib, "cold_staging_s": round(cold_s, 2), "cold_runs": 1}
    yield _line("hold_overhead_before", before, about, is_judged=not given.short)
    yield _line("hold_overhead_after", after, about, is_judged=not given.short)


def _train(live: Live, runs: int) -> tuple[list[Lease], float]:
    jobs = []
    for number in range(runs):
        wanted = {"seconds": TRAINS_S, "epochs": TRAINS_S}
        jobs.append(live.submit(datasets=["big"], hyperparameters=wanted, memory_mib=256))
        if number > 0:
            live.wait_for(jobs[number - 1].id, "completed", within_s=240)
    live.wait_for(jobs[-1].id, "completed", within_s=240)
    with live.ctx.store.read() as tx:
        (cold,) = [span for span in tx.records.spans(jobs[0].id) if span.stage == "mount_dataset"]
    return [lease_of(live, job) for job in jobs], _seconds(cold.started_at, cold.ended_at)


def _seconds(since: datetime | None, until: datetime | None) -> float:
    if since is None or until is None:
        raise RuntimeError("a training left no exit record or its lease was never ended")
    return (until - since).total_seconds()


def _line(bench: str, values: list[float], about: dict[str, object], *, is_judged: bool) -> Line:
    p50, p95 = percentile(values, 0.5), percentile(values, 0.95)
    return Line(
        bench=bench,
        bar=f"p50 <= {P50_BAR_S} s, p95 <= {P95_BAR_S} s",
        holds=(p50 <= P50_BAR_S and p95 <= P95_BAR_S) if is_judged else None,
        value=p50,
        raw={"p50_s": round(p50, 3), "p95_s": round(p95, 3), "seconds": [round(each, 3) for each in values], **about},
    )
