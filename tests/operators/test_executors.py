"""The executor's processes begin with everything imported, and it stays an ordinary local executor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from configparser import RawConfigParser
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
