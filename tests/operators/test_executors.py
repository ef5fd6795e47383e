"""The executor's processes begin with everything imported, and it stays an ordinary local executor."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from configparser import RawConfigParser
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name

import pytest
from airflow.executors.local_executor import LocalExecutor

ROOT = Path(__file__).resolve().parents[2]

WHAT_A_TASK_IMPORTS = """
import json, sys
from fermion.wiring import build, preload

preload()
before = set(sys.modules)
platform = build(database_url="postgresql+psycopg://nobody@127.0.0.1:1/none")
from fermion.usecases import admit, check, prepare, release, report, save, stage, submit, sync, tend
for use in (platform.store.check, lambda: platform.drivers["local"].code.resolve("file:///no/where", "main")):
    try:
        use()
    except Exception as error:
        pass
print(json.dumps([name for name in sys.modules if name not in before and name.startswith(("fermion", "psycopg", "git"))]))
"""


def test_after_the_preload_a_task_imports_nothing_of_the_platform_for_itself(tmp_path: Path) -> None:
    environ = {**os.environ, "FERMION_ROOT": str(ROOT), "FERMION_STATE": str(tmp_path)}
    said = subprocess.run(
        [sys.executable, "-c", WHAT_A_TASK_IMPORTS],
        env=environ, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert json.loads(said.stdout) == []


def test_the_configured_executor_is_a_local_one_that_forks_its_workers_and_ends_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FERMION_ROOT", str(ROOT))
    monkeypatch.setenv("FERMION_STATE", str(tmp_path))
    configured = RawConfigParser()
    configured.read(ROOT / "config" / "airflow.cfg")
    executor = resolve_name(":".join(configured["core"]["executor"].rsplit(".", 1)))(parallelism=1)
    assert isinstance(executor, LocalExecutor)

    executor.start()
    (pid,) = executor.workers
    assert Path(f"/proc/{pid}").exists()
    executor.end()
    assert not Path(f"/proc/{pid}").exists()


def test_a_broken_configuration_keeps_no_scheduler_from_starting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fermion_airflow.executors import PreloadingExecutor

    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "fermion.yaml").write_text("pools: 7\n")
    monkeypatch.setenv("FERMION_ROOT", str(tmp_path))
    executor = PreloadingExecutor(parallelism=1)

    executor.start()
    try:
        assert [worker.is_alive() for worker in executor.workers.values()] == [True]
    finally:
        executor.end()


SCHEDULER = """
import json, os, socket, sys, time
from fermion_airflow.executors import PreloadingExecutor

database = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
executor = PreloadingExecutor(parallelism=2)
executor.start()
inode = os.fstat(database.fileno()).st_ino
database.sendall(json.dumps([inode, *executor.workers]).encode() + bytes([10]))
time.sleep(60)
"""


def test_a_killed_scheduler_leaves_no_worker_and_no_open_connection(tmp_path: Path) -> None:
    environ = {**os.environ, "FERMION_ROOT": str(ROOT), "FERMION_STATE": str(tmp_path)}
    with socket.create_server(("127.0.0.1", 0)) as database:
        database.settimeout(30)
        command = [sys.executable, "-c", SCHEDULER, str(database.getsockname()[1])]
        scheduler = subprocess.Popen(command, env=environ)
        try:
            connection, _ = database.accept()
            connection.settimeout(30)
            with connection.makefile("rb") as said:
                inode, *workers = json.loads(said.readline())
            assert len(workers) == 2
            wait_until(lambda: not any(holds(worker, inode) for worker in workers), "a worker kept the connection")
            assert all(is_alive(worker) for worker in workers)
        finally:
            os.kill(scheduler.pid, signal.SIGKILL)
            scheduler.wait(30)
        with connection:
            assert connection.recv(1) == b"", "somebody still holds the connection"
            wait_until(lambda: not any(is_alive(worker) for worker in workers), "a worker outlived its scheduler")


def wait_until(holds_true: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + 30
    while not holds_true():
        assert time.monotonic() < until, otherwise
        time.sleep(0.02)


def holds(pid: int, inode: int) -> bool:
    for opened in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(opened) == f"socket:[{inode}]":
                return True
    return False


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
