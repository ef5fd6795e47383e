"""How busy the slots are when many short trainings come at once, and what the workflow engine itself costs meanwhile.

Busy is the time between exec and exit of all leases, over slots times the makespan: from the first submission to the
last exit, so that what happens before the first training counts too.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import psutil
from tests.benchmarks.lines import Line
from tests.benchmarks.platforms import platform
from tests.e2e.live import Live, wait_until

SLOTS = 8
BUSY_BAR = 0.9
QUEUED_BAR_S = 30.0
SUBMITTERS = 4
MIB = 1 << 20


@dataclass
class Cost:
    """CPU seconds and memory of the platform's own programs, sampled; trainings and their runners are not in it."""

    live: Live
    cpu: dict[tuple[int, float], float] = field(default_factory=dict)
    memory_mib: list[float] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Cost:
        self._sample()
        self._first = sum(self.cpu.values())
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    @property
    def cpu_s(self) -> float:
        """Used since the start of the measurement; a process that lived less than a sample is missed."""
        return sum(self.cpu.values()) - self._first

    def _run(self) -> None:
        while not self._stop.wait(2.0):
            self._sample()

    def _sample(self) -> None:
        memory = 0.0
        trainings = {process.pid for process in self.live.workloads()}
        for process in self.live.processes():
            if process.pid in trainings:
                continue
            try:
                times = process.cpu_times()
                self.cpu[process.pid, process.create_time()] = times.user + times.system
                memory += process.memory_full_info().pss / MIB
            except psutil.Error:
                continue
        self.memory_mib.append(memory)


def main(given: argparse.Namespace) -> Iterator[Line]:
    """The short form, or with ``--long`` the two published ones."""
    if not given.long:
        yield _measure(16, 10, is_judged=False)
        return
    yield _measure(100, 40, is_judged=True)
    yield _measure(200, 20, is_judged=False)


def _measure(trainings: int, seconds: int, *, is_judged: bool) -> Line:
    with platform(slots=SLOTS) as live, Cost(live) as cost:
        began = time.time()
        with ThreadPoolExecutor(SUBMITTERS) as pool:
            wanted = {"seconds": seconds, "epochs": 10}
            jobs = list(pool.map(lambda _: live.submit(hyperparameters=wanted, memory_mib=128), range(trainings)))
        ids = {job.id for job in jobs}
        wait_until(lambda: all(job.queued_at for job in _stored(live, ids)), within_s=300, what="all in the queue")
        queued_s = max(job.queued_at.timestamp() for job in _stored(live, ids) if job.queued_at) - began
        within_s = 4 * trainings * seconds / SLOTS + 300
        wait_until(lambda: all(job.is_final for job in _stored(live, ids)), within_s=within_s, what="the last end")
        with live.ctx.store.read() as tx:
            leases = [lease for job_id in ids for lease in tx.leases.of_holder("job", job_id)]
        failed = sum(job.is_failed for job in _stored(live, ids))
    spans = [
        (lease.exec_at.timestamp(), lease.exit_at.timestamp()) for lease in leases if lease.exec_at and lease.exit_at
    ]
    busy_s, last = sum(exit_at - exec_at for exec_at, exit_at in spans), max(exit_at for _, exit_at in spans)
    makespan_s, first_s = last - began, min(exec_at for exec_at, _ in spans) - began
    busy = busy_s / (SLOTS * makespan_s)
    holds = busy >= BUSY_BAR and queued_s <= QUEUED_BAR_S and not failed
    return Line(
        bench=f"slots_busy_{trainings}x{seconds}",
        bar=f"busy >= {BUSY_BAR}, all in the queue within {QUEUED_BAR_S:.0f} s",
        holds=holds if is_judged else None,
        value=busy,
        raw={
            "trainings": trainings,
            "seconds_each": seconds,
            "slots": SLOTS,
            "makespan_s": round(makespan_s, 1),
            "ideal_s": round(trainings * seconds / SLOTS, 1),
            "first_exec_s": round(first_s, 1),
            "busy_since_first_exec": round(busy_s / (SLOTS * (makespan_s - first_s)), 4),
            "all_queued_s": round(queued_s, 1),
            "failed": failed,
            "platform_cpu_s": round(cost.cpu_s, 1),
            "platform_cores": round(cost.cpu_s / makespan_s, 2),
            "platform_memory_mib": round(max(cost.memory_mib)),
        },
    )


def _stored(live: Live, ids: set[str]) -> list:  # type: ignore[type-arg]
    with live.ctx.store.read() as tx:
        return [job for job in tx.jobs.find() if job.id in ids]
