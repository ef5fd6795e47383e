"""Every DAG file: it imports without a database, quickly, and brings the DAG of its own name. So does the plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from airflow_home import ROOT

DAGS = sorted(path.stem for path in (ROOT / "dags").glob("*.py"))
SLOW = {"airflow.models", "boto3", "botocore", "docker", "git", "kubernetes", "fastapi", "psycopg", "fermion"}
ENOUGH_S = 0.5
"""Processor seconds for one file where Airflow is loaded already, as it is in a worker; usual are 0.02 to 0.1."""

PARSE = """
import json, runpy, sys, time
import airflow.sdk, airflow.providers.standard.operators.trigger_dagrun
answers = {}
for path in sys.argv[1:]:
    before, began = set(sys.modules), time.process_time()
    dag = runpy.run_path(path)["dag"]
    answers[path] = {"dag": dag.dag_id, "seconds": time.process_time() - began, "new": sorted(set(sys.modules) - before)}
print(json.dumps(answers))
"""

LOAD = """
import json, sys
from airflow import plugins_manager
plugins_manager.ensure_plugins_loaded()
folder = sys.argv[1]
mine = [name for name, module in sys.modules.items() if str(getattr(module, "__file__", None) or "").startswith(folder)]
print(json.dumps({"mine": sorted(mine), "errors": list(plugins_manager.get_import_errors())}))
"""


def run(program: str, *arguments: str, **changed: str) -> Mapping[str, object]:
    """What a process of its own answers, in which no database can be opened."""
    environment = {name: value for name, value in os.environ.items() if name != "AIRFLOW_API_APPS"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**environment, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "sqlite:////nonexistent/airflow.db", **changed},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    assert isinstance(answer, dict)
    return answer


def load_plugins(folder: Path, **changed: str) -> list[str]:
    """The modules of that folder that Airflow's plugin loader has executed."""
    answer = run(LOAD, str(folder), AIRFLOW__CORE__PLUGINS_FOLDER=str(folder), **changed)
    assert answer["errors"] == []
    return list(answer["mine"])  # type: ignore[call-overload]


def test_each_dag_file_holds_the_dag_of_its_name_imports_nothing_slow_and_needs_no_database() -> None:
    paths = {name: str(ROOT / "dags" / f"{name}.py") for name in DAGS}
    answers = run(PARSE, *paths.values())
    for name, path in paths.items():
        answer = answers[path]
        assert isinstance(answer, dict)
        assert answer["dag"] == name
        assert {module for module in answer["new"] if module in SLOW or module.split(".")[0] in SLOW} == set()
        assert answer["seconds"] < ENOUGH_S, name


def test_the_plugin_loader_executes_one_file_and_a_task_pays_for_nothing_else() -> None:
    assert load_plugins(ROOT / "plugins") == ["fermion_plugin"]


def test_without_the_ignore_file_the_loader_would_execute_what_lies_below(tmp_path: Path) -> None:
    package = tmp_path / "fermion_airflow"
    package.mkdir()
    (package / "stray.py").write_text("")
    assert load_plugins(tmp_path) == ["stray"]
    (tmp_path / ".airflowignore").write_text((ROOT / "plugins/.airflowignore").read_text())
    assert load_plugins(tmp_path) == []


@pytest.mark.parametrize(("apps", "is_served"), [("core", True), ("execution", False)])
def test_pages_are_made_only_in_an_api_server_that_serves_pages(apps: str, is_served: bool) -> None:
    loaded = load_plugins(ROOT / "plugins", AIRFLOW_API_APPS=apps)
    assert ("fermion_airflow.api.app" in loaded, "fermion_airflow.api.door" in loaded) == (is_served, is_served)
