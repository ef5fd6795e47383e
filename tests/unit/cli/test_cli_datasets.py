"""``fermion datasets``: an installation of its own, the real command, what it prints and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fermion.adapters.sql import migrate

CONFIGURATION = """
environment: embedded
clusters:
  local: {kind: process, declared_slots: 1}
datasets: {}
data:
  roots: ["${FERMION_STATE}/data of us"]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root folder with a configuration, a database and a folder of files whose name has a space."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "fermion.yaml").write_text(CONFIGURATION)
    folder = tmp_path / "run" / "data of us" / "digits"
    folder.mkdir(parents=True)
    (folder / "a.csv").write_text("1,2")
    migrate(f"sqlite:///{tmp_path}/run/fermion.db")
    return tmp_path


def fermion(root: Path, *words: str) -> tuple[int, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FERMION_")}
    environment = {**kept, "FERMION_ROOT": str(root), "FERMION_DATABASE_URL": f"sqlite:///{root}/run/fermion.db"}
    command = [str(Path(sys.executable).parent / "fermion"), "datasets", *words]
    ran = subprocess.run(command, cwd=root / "run", env=environment, capture_output=True, text=True, timeout=60)
    return ran.returncode, ran.stdout


def test_a_folder_is_registered_listed_and_forgotten(root: Path) -> None:
    assert json.loads(fermion(root, "--json")[1]) == []
    code, told = fermion(root, "register", "digits", "data of us/digits", "--json")
    made = json.loads(told)
    assert (code, made["name"], made["files"], made["size_bytes"]) == (0, "digits", 1, 3)
    assert made["uri"] == (root / "run" / "data of us" / "digits").as_uri()
    (listed,) = json.loads(fermion(root, "--json")[1])
    assert (listed["name"], listed["uri"]) == ("digits", made["uri"])
    assert [version["checksum"] for version in listed["versions"]] == [made["checksum"]]
    assert "digits" in fermion(root)[1]
    assert fermion(root, "forget", "digits")[0] == 0
    assert fermion(root, "forget", "digits")[0] == 4


def test_what_cannot_be_registered_is_answered_with_all_problems(root: Path) -> None:
    code, told = fermion(root, "register", "No Name", "/etc", "--json")
    assert code == 2
    assert {problem["code"] for problem in json.loads(told)["problems"]} == {"bad_name", "outside_roots"}
