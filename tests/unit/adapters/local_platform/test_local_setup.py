"""``setup.sh``: what it says without a fitting Python, and that it does nothing when nothing is to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
READ = ("requirements-dev.lock", "requirements-build.lock", "pyproject.toml", "setup.sh")
TOOLS = ("sh", "cat", "cksum", "tr", "dirname", "rm", "flock", "awk", "mv")

NEVER = "#!/bin/sh\necho 'set-up was started' >&2\nexit 9\n"
"""Stands for a program that must not be reached."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in READ:
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder for the PATH, with what a bare system has and no Python."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in TOOLS:
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return folder


def set_up(checkout: Path, programs: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "./setup.sh"],
        cwd=checkout,
        env={"PATH": str(programs), "HOME": str(checkout), **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def ready_environment(checkout: Path, programs: Path) -> None:
    """An environment with the stamp that a finished set-up leaves."""
    (checkout / ".venv" / "bin").mkdir(parents=True)
    script(checkout / ".venv" / "bin" / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    files = " ".join(("requirements-dev.lock", "requirements-build.lock", "pyproject.toml", "setup.sh"))
    stamp = subprocess.run(
        ["/bin/sh", "-c", f"cat {files} | cksum | tr '\\n' ' '; pwd"],
        cwd=checkout,
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    (checkout / ".venv" / "stamp").write_text(stamp.stdout)
    script(programs / "uv", NEVER)


def test_without_a_fitting_python_it_says_which_ones_fit_and_how_to_get_one(checkout: Path, programs: Path) -> None:
    done = set_up(checkout, programs)

    assert done.returncode == 1
    assert "Python 3.11, 3.12 or 3.13" in done.stderr
    assert "make PYTHON=/path/to/python3.12" in done.stderr
    assert not (checkout / ".venv" / "stamp").exists()


def test_a_python_that_is_too_old_or_a_broken_shim_is_passed_over(checkout: Path, programs: Path) -> None:
    script(programs / "python3", "#!/bin/sh\nexit 1\n")
    script(programs / "python3.12", "#!/bin/sh\necho 'shim: command not found' >&2\nexit 127\n")

    done = set_up(checkout, programs)

    assert done.returncode == 1
    assert "Python 3.11, 3.12 or 3.13" in done.stderr


def test_a_second_run_starts_nothing(checkout: Path, programs: Path) -> None:
    ready_environment(checkout, programs)

    done = set_up(checkout, programs)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", READ[:3])
def test_a_changed_lock_or_project_file_starts_it_again(checkout: Path, programs: Path, name: str) -> None:
    ready_environment(checkout, programs)
    with (checkout / name).open("a") as file:
        file.write("\n# changed\n")

    done = set_up(checkout, programs)

    assert "set-up was started" in done.stderr
    assert done.returncode == 9


def test_an_interrupted_set_up_leaves_no_stamp(checkout: Path, programs: Path) -> None:
    ready_environment(checkout, programs)
    os.utime(checkout / "pyproject.toml")
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("\n# changed\n")

    set_up(checkout, programs)

    assert not (checkout / ".venv" / "stamp").exists()
