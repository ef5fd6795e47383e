"""``fermion airflow``: Airflow's own command, on this installation and on no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from installations import Installation

from fermion.adapters.local_platform import addresses
from fermion.adapters.local_platform.addresses import Addresses
from fermion.adapters.local_platform.layout import PROGRAM_MARK, Layout
from fermion.wiring import local_platform


def was_up(installed: Installation) -> None:
    layout = Layout(root=installed.root, state=installed.root / "run")
    layout.make_folders()
    addresses.write(layout.ports_file, Addresses(http=18080, postgres=15432))


def test_the_platform_was_never_up_is_said_and_nothing_is_made(installed: Installation) -> None:
    before = sorted(path.name for path in (installed.root / "run").iterdir())
    code, told = installed.fermion("airflow", "dags", "list")
    assert code == 4
    assert "never up here" in told
    assert "`fermion up` starts it" in told
    assert sorted(path.name for path in (installed.root / "run").iterdir()) == before


def test_the_environment_is_the_installations_and_no_program_of_it(installed: Installation) -> None:
    was_up(installed)
    caller = {"FERMION_ROOT": str(installed.root), "AIRFLOW_HOME": "/elsewhere", "_AIRFLOW_TASK": "1", "LANG": "C"}
    words, environment = local_platform({**caller, PROGRAM_MARK: "somebody else's"}).airflow(["dags", "list", "--help"])
    assert words == [str(Path(sys.executable).parent / "airflow"), "dags", "list", "--help"]
    assert environment["AIRFLOW_HOME"] == str(installed.root / "run" / "airflow")
    assert environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].endswith(":15432/airflow")
    assert environment["FERMION_STATE"] == str(installed.root / "run")
    assert environment["LANG"] == "C"
    assert {PROGRAM_MARK, "_AIRFLOW_TASK"}.isdisjoint(environment), "`down` ends what carries the mark"


def test_arguments_reach_airflow_as_they_are_with_that_environment(installed: Installation) -> None:
    was_up(installed)
    tells = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ['AIRFLOW_HOME']]))"
    airflow = installed.root / "bin" / "airflow"
    airflow.parent.mkdir()
    airflow.write_text(f"#!{sys.executable}\n{tells}\n")
    airflow.chmod(0o755)
    words = ["backfill", "create", "--dag-id", "retrain_digits_daily", "-v", "--help"]
    told = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.executable = {str(airflow.with_name('python'))!r}\n"
         "from fermion.cli.main import main; main()", "airflow", *words],
        env={**os.environ, "FERMION_ROOT": str(installed.root), "FERMION_STATE": str(installed.root / "run")},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert json.loads(told) == [words, str(installed.root / "run" / "airflow")]
