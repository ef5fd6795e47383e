"""The process driver's workloads keep the contract that every driver keeps, on real processes."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from workloads_contract import WorkloadsContract

from fermion.adapters.process import runner
from fermion.adapters.process.nodes import ProcessNodes
from fermion.adapters.process.space import ProcessSpace
from fermion.adapters.process.workloads import ProcessWorkloads
from fermion.domain.workloads import Seen, WorkloadSpec, WorkloadState, workload_name

JOB = "job-20250101-001"
LIMIT_S = 30

PUPPET = """
    import os, signal, sys, time

    orders = os.environ["FERMION_OUTPUT_DIR"] + "/orders"
    open(orders, "a").close()
    with open(orders, encoding="utf-8") as lines:
        while True:
            line = lines.readline()
            if not line:
                time.sleep(0.01)
                continue
            verb, _, rest = line.rstrip("\\n").partition(" ")
            if verb == "say":
                os.write(1, rest.encode() + b"\\n")
            elif verb == "ignore_term":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                open(orders + ".obeyed", "w").close()
            else:
                sys.exit(int(rest))
"""
"""A training that does what is written into a file beside it, one order a line."""


class SystemClock:
    """The real present."""

    def now(self) -> datetime:
        return datetime.now(UTC)


def wait_for(is_true: Callable[[], object]) -> None:
    """Look until it is true; fails the test when it takes too long."""
    until = time.monotonic() + LIMIT_S
    while not is_true():
        assert time.monotonic() < until, f"did not come true within {LIMIT_S} s"
        time.sleep(0.01)


class ProcessBench:
    """A location root whose trainings are puppets."""

    def __init__(self, root: Path) -> None:
        clock = SystemClock()
        nodes = ProcessNodes("local", clock, declared_slots=1)
        self._root = root
        self._space = ProcessSpace(root)
        self.workloads = ProcessWorkloads(root, clock, device_use=nodes.device_use)
        (root / "code").mkdir()
        (root / "code/train.py").write_text(textwrap.dedent(PUPPET))

    def spec(self, *, attempt: int = 1) -> WorkloadSpec:
        return WorkloadSpec(
            name=workload_name(JOB, attempt),
            job_id=JOB,
            attempt=attempt,
            image=sys.prefix,
            code=str(self._root / "code"),
            entrypoint=("train.py",),
            arguments=(),
            parameters={},
            datasets={},
            output=self._space.output(JOB, attempt),
            checkpoints=self._space.checkpoints(JOB),
            log=self._space.log(JOB, attempt),
        )

    def exit(self, name: str, code: int) -> None:
        self._order(name, f"exit {code}")

    def lose(self, name: str) -> None:
        who = json.loads((self._root / "workloads" / name / runner.RUNNER).read_text())["runner"]
        os.kill(who["pid"], signal.SIGKILL)

    def say(self, name: str, text: str) -> None:
        before = self._lines(name)
        self._order(name, f"say {text}")
        wait_for(lambda: self._lines(name) > before)
        wait_for(lambda: not text.startswith("{") or text in self.workloads.progress(name).text)

    def ignore_term(self, name: str) -> None:
        self._order(name, "ignore_term")
        wait_for(self._orders(name).with_suffix(".obeyed").exists)

    def pass_grace(self, grace: timedelta) -> None:
        """Real time passes by itself; ``until`` waits for what is due."""

    def until(self, name: str, state: WorkloadState) -> Seen:
        wait_for(lambda: self.workloads.look(name).state is state)
        return self.workloads.look(name)

    def clean(self) -> None:
        """Leave no process behind."""
        for name in self.workloads.names():
            self.workloads.stop(name, grace=timedelta(0), why="the test is over")
        running = WorkloadState.RUNNING
        wait_for(lambda: all(self.workloads.look(name).state is not running for name in self.workloads.names()))
        self.workloads.end_orphans()

    def _lines(self, name: str) -> int:
        return self.workloads.log(name).text.count("\n")

    def _orders(self, name: str) -> Path:
        return Path(self._space.output(JOB, int(name.rpartition("-a")[2]))) / "orders"

    def _order(self, name: str, line: str) -> None:
        with self._orders(name).open("a", encoding="utf-8") as orders:
            orders.write(f"{line}\n")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ProcessBench]:
    made = ProcessBench(tmp_path)
    yield made
    made.clean()


class TestProcessWorkloads(WorkloadsContract):
    """The contract."""
