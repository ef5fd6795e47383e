"""How fast the line is served: Kueue's published load, and lines of 1,000 to 50,000 waiting jobs, in simulated time.

The clock and the workloads are simulated; the use case, the decision code and the store are the real ones. A decision is
one job granted or refused and stored with its reason; looking at a job again does not count. A decision's latency is
the time from its cohort's round asking for its lock to the commit that holds the decision; ``call_latency`` counts from
the call of ``admit``, which serves the cohorts one after the other. Both are weighted by decisions, not by rounds.
"""

from __future__ import annotations

import argparse
import heapq
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import psutil
from sqlalchemy import text
from tests.benchmarks import kueue_load, stores
from tests.benchmarks.lines import Line, percentile

from fermion.adapters.machine import ChoicesFile
from fermion.adapters.memory.clock import MemoryClock
from fermion.adapters.memory.driver import MemoryDatasetSource, MemoryDriver
from fermion.adapters.models.local import LocalModels
from fermion.adapters.report.folder import FolderReports
from fermion.adapters.sql.store import SqlStore, SqlTransaction
from fermion.domain.jobs import Job, Move, Phase
from fermion.domain.leases import HolderKind
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.records import Decision
from fermion.domain.workloads import workload_name
from fermion.usecases.admit import Granted, admit
from fermion.usecases.context import Context, Rules
from fermion.usecases.moving import load, write_move
from fermion.usecases.tend import end_lease

MAKESPAN_BAR_S = 1.05 * kueue_load.CAPACITY_BOUND_S
RATE_BAR = 1000.0
LATENCY_BAR_S = 0.050
MEMORY_BAR_MB = 500.0
GRACE_MS = 100
"""How long a preempted job of the simulation takes to end."""


@dataclass(frozen=True, slots=True)
class Committed:
    """One exclusive transaction, which is one cohort's round: when it was asked for and committed, and its decisions."""

    begun: float
    ended: float
    decisions: int


class CommitsNoted:
    """The real store; notes each exclusive transaction."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self.rounds: list[Committed] = []

    @contextmanager
    def begin(self, *, exclusive: str | None = None) -> Iterator[SqlTransaction]:
        """As the store's."""
        begun, count = time.perf_counter(), 0
        with self._store.begin(exclusive=exclusive) as transaction:
            write = transaction.records.add_decision

            def counted(decision: Decision) -> None:
                nonlocal count
                count += decision.kind != "round"
                write(decision)

            transaction.records.add_decision = counted  # type: ignore[method-assign]
            yield transaction
        if exclusive is not None:
            self.rounds.append(Committed(begun, time.perf_counter(), count))

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


@dataclass
class Bench:
    """One platform on one store, in simulated time."""

    store: SqlStore
    folder: Path
    cohorts: int
    preemption: bool
    clock: MemoryClock = field(default_factory=MemoryClock)
    spent_s: float = 0.0
    cpu_s: float = 0.0
    latencies: list[float] = field(default_factory=list)
    call_latencies: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)
    granted: int = 0

    def __post_init__(self) -> None:
        self.noted = CommitsNoted(self.store)
        self.driver = MemoryDriver(self.clock)
        self.ctx = Context(
            store=self.noted,  # type: ignore[arg-type]  # it answers the rest by __getattr__
            clock=self.clock,
            drivers={kueue_load.CLUSTER: self.driver},
            dataset_source=MemoryDatasetSource(),
            models=LocalModels(self.folder / "models"),
            reports=FolderReports(self.folder / "reports"),
            choices=ChoicesFile(self.folder / "choices.json"),
            rules=Rules(policies=kueue_load.policies(self.cohorts, preemption=self.preemption)),
        )
        with self.store.begin() as tx:
            tx.catalog.put_nodes(kueue_load.CLUSTER, kueue_load.nodes(self.cohorts, self.clock))
            self.ctx.pools(tx)

    def arrive(self, coming: Sequence[kueue_load.Coming]) -> None:
        """Jobs join the line, staged and with their workload prepared."""
        told = Explanation(Reason.WAITING_FOR_QUOTA, "Everything is fetched; it waits for GPUs.")
        with self.store.begin() as tx:
            for job in kueue_load.staged(coming, self.clock):
                self.driver.workloads.prepare(kueue_load.workload_of(job))
                tx.jobs.add(job)
                write_move(self.ctx, tx, job, Move(to=Phase.WAITING, explanation=told))

    def admit(self) -> Sequence[Granted]:
        """One call of the use case, measured."""
        first = len(self.noted.rounds)
        begin, cpu = time.perf_counter(), time.process_time()
        granted = admit(self.ctx)
        took = time.perf_counter() - begin
        self.spent_s += took
        self.cpu_s += time.process_time() - cpu
        self.calls.append(took)
        for each in self.noted.rounds[first:]:
            self.latencies += [each.ended - each.begun] * each.decisions
            self.call_latencies += [each.ended - begin] * each.decisions
        self.granted += len(granted)
        return granted

    def end(self, jobs: Sequence[Job]) -> None:
        """Workloads that ran their time end by themselves; their leases are closed as whoever tends them closes them."""
        for job in jobs:
            self.driver.workloads.exit(workload_name(job.id, job.attempt))
        with self.store.begin() as tx:
            for job in jobs:
                self._end_one(tx, job)
        for job in jobs:
            self.driver.workloads.remove(workload_name(job.id, job.attempt))

    def _end_one(self, tx: SqlTransaction, job: Job) -> None:
        seen = self.driver.workloads.look(workload_name(job.id, job.attempt))
        (lease,) = tx.leases.of_holder(HolderKind.JOB, job.id, live_only=True)
        move = Move(to=Phase.SAVING, explanation=Explanation(Reason.SAVING, "The training ended."))
        write_move(self.ctx, tx, load(tx, job.id), move)
        end_lease(self.ctx, tx, lease, seen, cause=str(Reason.SAVING))

    def preempted(self) -> list[Job]:
        """Jobs that were asked to end."""
        with self.store.read() as tx:
            return [job for job in tx.jobs.find(phases=[Phase.STARTING]) if job.preempted_for is not None]

    def requeue(self, job: Job) -> None:
        """A preempted workload has ended; its next attempt joins the line at the job's old place, with all its work left."""
        name = workload_name(job.id, job.attempt)
        self.driver.workloads.stop(name, grace=timedelta(0), why="preempted")
        with self.store.begin() as tx:
            (lease,) = tx.leases.of_holder(HolderKind.JOB, job.id, live_only=True)
            told = Explanation(Reason.PREEMPTED, "A job of higher priority has its GPUs.")
            moved = write_move(
                self.ctx, tx, load(tx, job.id), Move(to=Phase.STAGING, explanation=told, fresh_attempt=True)
            )
            end_lease(self.ctx, tx, lease, self.driver.workloads.look(name), cause=str(Reason.PREEMPTED))
            if moved is not None:
                self.driver.workloads.prepare(kueue_load.workload_of(moved))
                write_move(self.ctx, tx, moved, Move(to=Phase.WAITING, explanation=told))
        self.driver.workloads.remove(name)

    def stored(self) -> int:
        """Decisions about jobs that are in the store."""
        with self.store.linked(read_only=True) as link:
            return int(link.scalar(text("SELECT count(*) FROM decisions WHERE kind <> 'round'")))


def play(bench: Bench, coming: Sequence[kueue_load.Coming]) -> float:
    """Let all of them come, run and end; the makespan in simulated seconds."""
    lasts = {each.job_id: each.runs_ms for each in coming}
    ends: list[tuple[int, str]] = []
    running: dict[str, tuple[int, Job]] = {}
    now_ms, index = 0, 0
    while index < len(coming) or ends:
        times = ([coming[index].at_ms] if index < len(coming) else []) + ([ends[0][0]] if ends else [])
        bench.clock.advance(timedelta(milliseconds=min(times) - now_ms))
        now_ms = min(times)
        due = _due(ends, running, now_ms)
        for job in [job for job in due if job.preempted_for is not None]:
            bench.requeue(job)
        if ended := [job for job in due if job.preempted_for is None]:
            bench.end(ended)
        first = index
        while index < len(coming) and coming[index].at_ms == now_ms:
            index += 1
        if index > first:
            bench.arrive(coming[first:index])
        for each in bench.admit():
            ends_ms = now_ms + lasts[each.job.id]
            running[each.job.id] = ends_ms, each.job
            heapq.heappush(ends, (ends_ms, each.job.id))
        if bench.preemption:
            for job in bench.preempted():
                asked = now_ms + GRACE_MS
                if asked < running[job.id][0]:
                    running[job.id] = asked, job
                    heapq.heappush(ends, (asked, job.id))
    return now_ms / 1000


def _due(ends: list[tuple[int, str]], running: dict[str, tuple[int, Job]], now_ms: int) -> list[Job]:
    due = []
    while ends and ends[0][0] <= now_ms:
        at, job_id = heapq.heappop(ends)
        if job_id in running and running[job_id][0] == at:
            due.append(running.pop(job_id)[1])
    return due


def kueue_line(engine: str, *, preemption: bool, share: float = 1.0, cohorts: int = 5) -> Line:
    """The whole load on one kind of database."""
    began = time.perf_counter()
    with stores.open_empty(engine) as store, stores.fresh_folder() as folder:
        bench = Bench(store=store, folder=folder, cohorts=cohorts, preemption=preemption)
        coming = kueue_load.arrivals(cohorts, share)
        makespan_s = play(bench, coming)
        leaked, decided = len(_live(store)), bench.stored()
    rate = decided / bench.spent_s
    p95_s = percentile(bench.latencies, 0.95)
    memory_mb = psutil.Process().memory_info().rss / 1e6
    holds = rate >= RATE_BAR and p95_s < LATENCY_BAR_S and memory_mb < MEMORY_BAR_MB and leaked == 0
    if not preemption:
        holds = holds and makespan_s <= MAKESPAN_BAR_S
    return Line(
        bench=f"admission_{engine}" + ("_preemption" if preemption else ""),
        bar=f"makespan <= {MAKESPAN_BAR_S:.1f} s (without preemption), >= 1000 decisions/s, p95 < 50 ms, memory < 500 MB",
        holds=holds if share == 1 else None,
        ratio=makespan_s / kueue_load.CAPACITY_BOUND_S,
        raw={
            "makespan_s": makespan_s,
            "capacity_bound_s": kueue_load.CAPACITY_BOUND_S,
            "kueue_s": kueue_load.KUEUE_S,
            "jobs": len(coming),
            "granted": bench.granted,
            "decisions": decided,
            "decisions_per_s": round(rate),
            "latency_p50_ms": round(1000 * percentile(bench.latencies, 0.5), 1),
            "latency_p95_ms": round(1000 * p95_s, 1),
            "call_latency_p95_ms": round(1000 * percentile(bench.call_latencies, 0.95), 1),
            "latency_max_ms": round(1000 * max(bench.latencies), 1),
            "rounds": len(bench.noted.rounds),
            "admit_s": round(bench.spent_s, 1),
            "admit_cpu_s": round(bench.cpu_s, 1),
            "wall_s": round(time.perf_counter() - began, 1),
            "memory_mb": round(memory_mb),
            "leases_left": leaked,
        },
    )


def _live(store: SqlStore) -> Sequence[object]:
    with store.read() as tx:
        return tx.leases.live()


def queue_line(engine: str, lengths: Sequence[int], *, rounds: int = 20) -> Line:
    """How a round's cost grows with the line: each round one job ends and one arrives, the pool stays full."""
    found: dict[str, dict[str, float]] = {}
    for length in lengths:
        with stores.open_empty(engine) as store, stores.fresh_folder() as folder:
            bench = Bench(store=store, folder=folder, cohorts=1, preemption=False)
            found[str(length)] = _serve_long_line(bench, length, rounds)
    per_job = [found[str(length)]["first_round_ms"] / length for length in lengths]
    growth = per_job[-1] / per_job[0]
    return Line(
        bench=f"admission_queue_{engine}",
        bar="cost per waiting job at the longest line <= 2 x that at the shortest",
        holds=growth <= 2,
        ratio=growth,
        raw={"lengths": found},
    )


def _serve_long_line(bench: Bench, length: int, rounds: int) -> dict[str, float]:
    template = [each for each in kueue_load.arrivals(1, 0.1) if each.spec.name == "small"]
    line = [
        kueue_load.Coming(0, 0, f"job-{number:06d}", template[number % len(template)].spec)
        for number in range(length + rounds)
    ]
    for first in range(0, length, 5000):
        bench.arrive(line[first : min(first + 5000, length)])
    running = [each.job for each in bench.admit()]
    first_ms = 1000 * bench.calls[-1]
    for number in range(rounds):
        bench.clock.advance(timedelta(milliseconds=100))
        bench.end([running.pop(0)])
        bench.arrive([line[length + number]])
        running += [each.job for each in bench.admit()]
    later = bench.calls[-rounds:]
    return {
        "first_round_ms": round(first_ms, 1),
        "later_round_p50_ms": round(1000 * percentile(later, 0.5), 1),
        "later_round_p95_ms": round(1000 * percentile(later, 0.95), 1),
    }


def main(given: argparse.Namespace) -> Iterator[Line]:
    """The lines, as they come."""
    share = 0.1 if given.short else 1.0
    for engine in stores.ENGINES:
        yield kueue_line(engine, preemption=False, share=share)
    yield kueue_line("postgres", preemption=True, share=share)
    lengths = [1000, 5000] if given.short else [1000, 10_000, 50_000]
    for engine in stores.ENGINES:
        yield queue_line(engine, lengths)
