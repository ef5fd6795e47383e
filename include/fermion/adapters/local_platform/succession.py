"""Start a program in the place of one that was killed: first end what the dead one left behind.

    python -m fermion.adapters.local_platform.succession scheduler -- airflow scheduler

The scheduler's executor forks its workers. Killed with ``kill -9``, it leaves them alive, and each holds a copy of its
connection to the database: a transaction that was open at that moment stays open, and the rows it had locked are skipped
by every scheduler after it. So idle workers are ended at once; one that still runs a task may finish it, and is ended then.
This process then becomes the program, so that the supervisor watches the program itself.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence

import psutil

from fermion.adapters.local_platform.layout import PROGRAM_MARK, STATE_MARK

IDLE = "<idle>"
"""What Airflow's local executor writes into the title of a worker that has no task."""

PATIENCE_S = 1800.0
"""A task of a dead scheduler that still runs after this is ended with its worker; Airflow has given it up long before."""


def main(arguments: Sequence[str]) -> None:
    """End what is left of the program, then become it. Never returns."""
    name, separator, *command = arguments
    if separator != "--" or not command:
        raise SystemExit("usage: succession NAME -- COMMAND [ARGUMENT ...]")
    busy = end_idle(left_behind(name, os.environ[STATE_MARK]))
    if busy:
        _watch_over(busy)
    os.execvp(command[0], command)


def left_behind(program: str, state: str) -> list[psutil.Process]:
    """Live processes of an earlier start of the program, in the installation of that state folder."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            mine = environment.get(PROGRAM_MARK) == program and environment.get(STATE_MARK) == state
            if mine and process.pid not in own and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end_idle(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Kill those that have no task; the others."""
    busy = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if IDLE in " ".join(process.cmdline()):
                process.kill()
            else:
                busy.append(process)
    return busy


def _watch_over(busy: Sequence[psutil.Process]) -> None:
    """Let a detached child end them one by one as they become idle."""
    child = os.fork()
    if child != 0:
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    deadline = time.monotonic() + PATIENCE_S
    while busy and time.monotonic() < deadline:
        time.sleep(0.5)
        busy = end_idle(busy)
    for process in busy:
        with contextlib.suppress(psutil.Error):
            process.kill()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
