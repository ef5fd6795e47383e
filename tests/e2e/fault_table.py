"""``make fault-table``: break one thing after the other while a service is asked and a canary is tried, and say what became of it.

Prints a table and writes ``run/fault-table.json``; leaves with 1 when a row falls short. ``--smoke`` runs five rows,
``--only NAME`` one. What this machine does not allow a test to do is skipped with the reason; with ``CI`` in the environment
that is a failure too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from e2e import tables
from e2e.fault_rows import ROWS, Row, Shown
from e2e.live import ROOT, Live, wait_until
from e2e.served import Served
from fermion.cli.load import UNSERVED
from fermion.domain.rollout.replay import replay
from fermion.usecases.doctor import examine
from fermion.usecases.serving.queries import ServiceState
from fermion.usecases.sync import sync_platform

RESULT = ROOT / "run" / "fault-table.json"
SLOTS = 4
ENDED = frozenset({"success", "failed", "absent"})


@dataclass
class Outcome(tables.Outcome):
    """One row of the table: what became of the rollout, and what the clients saw.

    ``failed_requests`` were refused, reset or timed out, or got 502, 503 or 504 from the router. ``bad_answers`` are those that
    the new version gave, bad in the row's own sense. ``unserved_s`` is from the first failed request to the last.
    """

    failed_requests: int = 0
    requests: int = 0
    seconds_to_safe: float | None = None
    bad_answers: int = 0
    unserved_s: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)
    run_state: str = ""
    serves: bool = False


def run_row(served: Served, row: Row) -> Outcome:
    """Run one row; an exception of any kind is an outcome that is not ok, and what it left behind is ended."""
    return tables.attempt(served.live, Outcome(row.name), lambda outcome: _run(served, row, outcome), served.clear)


def _run(served: Served, row: Row, outcome: Outcome) -> None:
    shown = row.run(served)
    note(outcome, shown)
    outcome.run_state = wait_until(
        lambda: (state := served.run_state(shown.found)) in ENDED and state, within_s=120, what="the run's end"
    )
    _check_nothing_left(served, outcome)
    _check_looks(served, shown)
    problems = shortfalls(row, outcome)
    outcome.ok = not problems
    outcome.detail = "; ".join([*problems, outcome.detail])


def note(outcome: Outcome, shown: Shown) -> None:
    """Write down what a row showed."""
    rollout, revision, seen = shown.found.rollout, shown.found.revision, shown.seen
    outcome.status = str(revision.phase if rollout is None else rollout.phase)
    outcome.reason = str(revision.explanation.reason if rollout is None else rollout.explanation.reason)
    outcome.detail = revision.explanation.message if rollout is None else rollout.explanation.message
    outcome.requests, outcome.failed_requests, outcome.bad_answers = seen.requests, seen.unserved, len(seen.bad_at)
    outcome.failures = {
        **seen.failed,
        **{str(status): seen.statuses[status] for status in UNSERVED & set(seen.statuses)},
    }
    outcome.unserved_s = round(max(seen.unserved_at) - min(seen.unserved_at), 2) if seen.unserved_at else 0.0
    outcome.seconds_to_safe = None if shown.seconds_to_safe is None else round(shown.seconds_to_safe, 2)


def shortfalls(row: Row, outcome: Outcome) -> list[str]:
    """What is not as it has to be, a few words each."""
    failed, most = outcome.failed_requests, row.unserved_s
    found = {
        f"ended as {outcome.status}, not {row.status}": outcome.status != row.status,
        f"reason {outcome.reason}, not {' or '.join(row.reasons)}": outcome.reason not in row.reasons,
        f"its run is {outcome.run_state}, not {row.run_state}": outcome.run_state != row.run_state,
        f"{failed} requests failed ({outcome.failures})": failed > 0 and most == 0,
        f"requests failed for {outcome.unserved_s} s, at most {most:g} s may be": 0 < most < outcome.unserved_s,
        "there were no requests": outcome.requests == 0,
        f"{outcome.leaked} GPUs leaked": outcome.leaked > 0,
        f"{outcome.orphans} orphans": outcome.orphans > 0,
        "the service does not serve": not outcome.serves,
    }
    return [words for words, is_so in found.items() if is_so]


def _check_nothing_left(served: Served, outcome: Outcome) -> None:
    """After one sync nothing is held and nothing runs but the replicas of the revision that serves, and they answer."""
    sync_platform(served.live.ctx)
    state = served.state()
    assert state is not None
    outcome.leaked, outcome.orphans = leaks(served, state), orphans(served)
    outcome.serves = state.status == "ready" and state.service.candidate is None
    if outcome.serves:
        with served.clients() as load:
            wait_until(lambda: load.seen.requests >= 5, within_s=20, what="answers of the service")
        outcome.serves = not load.seen.unserved


def leaks(served: Served, state: ServiceState) -> int:
    """GPUs held for anything but the replicas that are wished, and a leak by the doctor's own sums."""
    stable = next((each.id for each in state.revisions if each.number == state.service.stable), None)
    with served.live.ctx.store.read() as tx:
        live = tx.leases.live()
    rightly = sum(lease.gpus for lease in live if lease.holder_id == stable)
    wished = state.service.replicas  # each has one GPU
    leaked = sum(lease.gpus for lease in live) - min(rightly, wished)
    diagnosis = examine(served.live.ctx)
    return leaked if diagnosis.leaked_gpu_seconds == 0 else max(1, leaked)


def orphans(served: Served) -> int:
    """Live processes of replicas that no row has, and those without a runner."""
    known = {row.name for row in served.rows()}
    strays = {name for name, _, _ in served.live.replicas()} - known
    return len(strays) + len(served.live.ctx.driver_of("local/declared").replicas.orphans())


def _check_looks(served: Served, shown: Shown) -> None:
    """The stored looks, judged again, give the same verdicts."""
    rollout = shown.found.rollout
    if rollout is None:
        return
    with served.live.ctx.store.read() as tx:
        looks = tx.rollouts.looks(rollout.id)
    differs = replay(rollout.plan, looks)
    assert not differs, f"judged again, the looks of {rollout.id} differ: {differs}"


def main() -> int:
    """Run the rows; the exit code."""
    stage: list[Served] = []

    def run(live: Live, row: Row) -> Outcome:
        if not stage:
            stage.append(Served(live))
        return run_row(stage[0], row)

    return tables.run_table(ROWS, run, line, about=__doc__, result=RESULT, slots=SLOTS)


def line(outcome: Outcome) -> str:
    """A row of the table for people."""
    begin = f"{outcome.verdict:4} {outcome.row:27}"
    if outcome.skipped:
        return f"{begin} {outcome.skipped}"
    safe = "–" if outcome.seconds_to_safe is None else f"{outcome.seconds_to_safe:.1f}"
    return (
        f"{begin} {outcome.status:11} {outcome.reason:15} failed {outcome.failed_requests:3} of {outcome.requests:5}"
        f"  bad {outcome.bad_answers:3}  safe after {safe:>5} s  leaked {outcome.leaked} orphans {outcome.orphans}"
        f" {outcome.seconds:6.1f} s  {outcome.detail[:120]}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
