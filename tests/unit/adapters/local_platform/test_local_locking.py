"""The lock of ``up``, ``down`` and ``clean``."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from fermion.adapters.local_platform.locking import exclusive
from fermion.errors import OutsideUnavailable

TAKE = """
import sys
from datetime import timedelta
from pathlib import Path
from fermion.adapters.local_platform.locking import exclusive
with exclusive(Path(sys.argv[1]), timeout=timedelta(seconds=5)):
    print("held", flush=True)
    sys.stdin.readline()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", TAKE, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_after_its_patience(tmp_path: Path) -> None:
    with hold(tmp_path / "lock") as other:
        try:
            with (
                pytest.raises(OutsideUnavailable, match="another `fermion up`, `down` or `clean`"),
                exclusive(tmp_path / "lock", timeout=timedelta(0)),
            ):
                pytest.fail("the lock was given twice")
        finally:
            other.kill()


def test_the_lock_ends_with_a_killed_holder(tmp_path: Path) -> None:
    with hold(tmp_path / "lock") as other:
        other.kill()
        other.wait(10)

        with exclusive(tmp_path / "lock", timeout=timedelta(0)):
            pass


def test_a_lock_file_that_was_deleted_under_its_holder_is_not_mistaken_for_the_lock(tmp_path: Path) -> None:
    with exclusive(tmp_path / "lock", timeout=timedelta(0)):
        (tmp_path / "lock").unlink()
        with exclusive(tmp_path / "lock", timeout=timedelta(0)):
            assert (tmp_path / "lock").exists()


def test_the_folder_of_the_lock_is_made(tmp_path: Path) -> None:
    with exclusive(tmp_path / "new" / "lock", timeout=timedelta(0)):
        assert (tmp_path / "new" / "lock").exists()
