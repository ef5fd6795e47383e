"""A program that is started in the place of a killed one first ends what that one left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from fermion.adapters.local_platform.layout import PROGRAM_MARK, STATE_MARK

MODULE = "fermion.adapters.local_platform.succession"
SLEEP = "import sys, time; time.sleep(120)"


def until(is_true: Callable[[], bool], *, within_s: float = 20) -> bool:
    deadline = time.monotonic() + within_s
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_true()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., psutil.Process]]:
    processes: list[subprocess.Popen[bytes]] = []

    def start(*words: str, program: str = "scheduler", state: Path = tmp_path) -> psutil.Process:
        environment = {**os.environ, PROGRAM_MARK: program, STATE_MARK: str(state)}
        processes.append(subprocess.Popen([sys.executable, *words], env=environment))
        return psutil.Process(processes[-1].pid)

    yield start
    for process in processes:
        process.kill()
        process.wait(timeout=10)


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_an_idle_worker_of_the_dead_program_is_ended_and_the_program_takes_its_place(started, tmp_path: Path) -> None:
    idle = started("-c", SLEEP, "airflow worker -- LocalExecutor: <idle>")
    written = tmp_path / "became"
    successor = started(
        "-m", MODULE, "scheduler", "--", sys.executable, "-c", f"open({str(written)!r}, 'w').write('x'); {SLEEP}"
    )
    assert until(lambda: is_gone(idle))
    assert until(written.exists)
    assert MODULE not in " ".join(successor.cmdline()), "the supervisor must watch the program itself"


def test_a_busy_worker_may_finish_its_task_and_is_ended_when_it_is_idle(started, tmp_path: Path) -> None:
    go_idle = (
        "import os, signal, sys, time;"
        f"again = [sys.executable, '-c', {SLEEP!r}, '<' + 'idle>'];"
        "signal.signal(signal.SIGUSR1, lambda *_: os.execv(sys.executable, again));"
        "time.sleep(120)"
    )
    busy = started("-c", go_idle, "airflow worker -- LocalExecutor: train_model.save_model")
    written = tmp_path / "became"
    started("-m", MODULE, "scheduler", "--", sys.executable, "-c", f"open({str(written)!r}, 'w').write('x'); {SLEEP}")
    assert until(written.exists), "the program starts without waiting for the task"
    assert not is_gone(busy)
    busy.send_signal(signal.SIGUSR1)
    assert until(lambda: is_gone(busy))


def test_other_programs_and_other_installations_are_left_alone(started, tmp_path: Path) -> None:
    other_program = started("-c", SLEEP, "<idle>", program="triggerer")
    other_place = started("-c", SLEEP, "<idle>", state=tmp_path / "elsewhere")
    written = tmp_path / "became"
    started("-m", MODULE, "scheduler", "--", sys.executable, "-c", f"open({str(written)!r}, 'w').write('x'); {SLEEP}")
    assert until(written.exists)
    assert not is_gone(other_program)
    assert not is_gone(other_place)
