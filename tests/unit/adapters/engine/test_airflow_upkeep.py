"""Airflow's past, forgotten: the command's verdict, and the log files. The command itself runs in tests/e2e."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from builders import NOW
from fermion.adapters.engine.upkeep import AirflowUpkeep
from fermion.errors import OutsideBroken

LEFT = "RuntimeError: airflow db clean encountered errors on the following tables and did not clean them: [{}]. Check."


def put_log(logs: Path, dag_id: str, *, age: timedelta) -> Path:
    path = logs / f"dag_id={dag_id}/run_id=r{age.days}/task_id=t/attempt=1.log"
    path.parent.mkdir(parents=True)
    path.write_text("said")
    os.utime(path, times=((NOW - age).timestamp(),) * 2)
    return path


@pytest.fixture
def upkeep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AirflowUpkeep:
    """With a command in the place of Airflow's that writes its words down and ends as ``ends`` says."""
    command = tmp_path / "bin" / "airflow"
    command.parent.mkdir()
    command.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/words\n[ -f {tmp_path}/ends ] && cat {tmp_path}/ends && exit 1\nexit 0\n'
    )
    command.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(command.with_name("python")))
    return AirflowUpkeep(lambda: {"PATH": os.environ["PATH"]}, tmp_path / "logs")


def test_logs_beyond_their_age_go_with_the_folders_that_this_empties(upkeep: AirflowUpkeep, tmp_path: Path) -> None:
    old = put_log(tmp_path / "logs", "train_model", age=timedelta(days=9))
    young = put_log(tmp_path / "logs", "train_model", age=timedelta(days=5))
    assert "1 log files" in upkeep.forget(NOW - timedelta(days=7))
    assert not old.parents[1].exists()
    assert young.exists()


def test_one_dags_past_is_forgotten_without_the_others(upkeep: AirflowUpkeep, tmp_path: Path) -> None:
    mine = put_log(tmp_path / "logs", "sync_platform", age=timedelta(days=9))
    other = put_log(tmp_path / "logs", "train_model", age=timedelta(days=9))
    upkeep.forget(NOW - timedelta(days=7), dags=["sync_platform"])
    assert (mine.exists(), other.exists()) == (False, True)
    words = (tmp_path / "words").read_text()
    assert "--dag-ids sync_platform" in words
    assert f"--clean-before-timestamp {(NOW - timedelta(days=7)).isoformat()}" in words


@pytest.mark.parametrize(
    ("said", "dags", "fails"),
    [
        pytest.param(LEFT.format("'deadline'"), ["sync_platform"], False, id="what cannot be limited to a DAG"),
        pytest.param(LEFT.format("'deadline', 'log'"), ["sync_platform"], True, id="and another table"),
        pytest.param(LEFT.format("'deadline'"), [], True, id="in the cleaning of all"),
        pytest.param("psycopg2.OperationalError: connection refused", ["sync_platform"], True, id="no database"),
    ],
)
def test_a_table_that_was_not_cleaned_is_told_unless_the_cleaning_of_all_takes_it(
    upkeep: AirflowUpkeep, tmp_path: Path, said: str, dags: list[str], fails: bool
) -> None:
    (tmp_path / "ends").write_text(said)
    if not fails:
        assert "sync_platform" in upkeep.forget(NOW, dags=dags)
        return
    with pytest.raises(OutsideBroken, match="exit code 1"):
        upkeep.forget(NOW, dags=dags)
