"""Detaches a runner with its guard from whoever starts it: double fork, a session of its own, the folder's lock held."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from .files import ERRORS, ORDER, RUNNER, RUNNER_LOCK, STOP, read_json, write_json
from .keeper import GO_SIGNAL, STOP_SIGNAL, Keeper
from .processes import adopt_orphans, end_descendants, identity, set_name
from .serving import Serving
from .training import Training

_QUICK_S = 10.0  # a runner that ends by itself sooner than this is followed by the next one only after a pause
_LONGEST_PAUSE_S = 10.0


def start(folder: str) -> int:
    """Detach a runner for the folder; returns 0 once it waits (or another one does), 1 with a reason on stderr."""
    reader, writer = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(reader)
        os.setsid()
        if os.fork():
            os._exit(0)
        _detached(folder, writer)
    os.close(writer)
    os.waitpid(first, 0)
    answer = b""
    while piece := os.read(reader, 4096):
        answer += piece
    if answer in (b"waiting", b"already"):
        return 0
    sys.stderr.write(answer.decode(errors="replace") or "the runner ended before it waited")
    return 1


def _detached(folder: str, ready: int) -> NoReturn:
    """Take the folder's lock, then split into guard and runner."""
    os.chdir("/")
    os.umask(0o022)
    lock = os.open(os.path.join(folder, RUNNER_LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _take(lock):
        os.write(ready, b"already")
        os._exit(0)
    errors = os.open(os.path.join(folder, ERRORS), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDWR)
    for target, source in ((0, nothing), (1, nothing), (2, errors)):
        os.dup2(source, target)
    signals = {GO_SIGNAL, STOP_SIGNAL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    adopt_orphans()
    guard = os.getpid()
    runner = os.fork()
    if runner:
        os.close(ready)
        _guard(folder, runner)
    _run(folder, guard, ready)


def _take(lock: int) -> bool:
    """Take the lock; whoever only tests it lets go at once, so a second of patience tells a holder from a tester."""
    deadline = time.monotonic() + 1.0
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)


def _guard(folder: str, runner: int) -> NoReturn:
    """Wait for the runner's end, then end what it left; a killed runner of a replica gets a successor."""
    set_name("fermion-guard")
    pause_s = 0.0
    while True:
        began = time.monotonic()
        while (ended := os.waitpid(-1, 0))[0] != runner:
            pass
        end_descendants(lambda: None)
        if os.waitstatus_to_exitcode(ended[1]) == 0 or not _has_successor(folder):
            os._exit(0)
        pause_s = min(_LONGEST_PAUSE_S, pause_s * 2 or 0.1) if time.monotonic() - began < _QUICK_S else 0.0
        _rest(folder, pause_s)
        runner = os.fork()
        if runner == 0:
            _run(folder, os.getppid(), None)


def _has_successor(folder: str) -> bool:
    """Whether another runner is to take over: only a replica's, and not when the guard was told to end as well."""
    order = read_json(os.path.join(folder, ORDER)) or {}
    return order.get("kind") == "replica" and signal.SIGTERM not in signal.sigpending()


def _rest(folder: str, pause_s: float) -> None:
    """Wait before the next runner; a stop needs it at once."""
    until = time.monotonic() + pause_s
    while time.monotonic() < until and not os.path.exists(os.path.join(folder, STOP)):
        time.sleep(0.02)


def _run(folder: str, guard: int, ready: int | None) -> NoReturn:
    set_name("fermion-runner")
    adopt_orphans()
    code = 1
    try:
        runner = _keeper(folder)
        write_json(os.path.join(folder, RUNNER), {"runner": identity(os.getpid()), "guard": identity(guard)})
        if ready is not None:
            os.write(ready, b"waiting")
            os.close(ready)
        go = runner.wait_for_go()
        if go is not None:
            runner.run(go)
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _keeper(folder: str) -> Keeper:
    path = os.path.join(folder, ORDER)
    order: Mapping[str, Any] | None = read_json(path)
    if order is None:
        raise SystemExit(f"{path} is missing or unreadable; prepare the workload again")
    return Serving(folder, order) if order.get("kind") == "replica" else Training(folder, order)
