"""config/docker/keep.py: what runs in a container is started again when it ends by itself, and ends when it is asked to."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

KEEPER = Path(__file__).resolve().parents[2] / "config/docker/keep.py"
PATIENCE_S = 20.0

EAGER = f"""
import runpy, sys
keeper = runpy.run_path({str(KEEPER)!r})
keeper["keep"].__globals__.update(STARTED_S=0.0, PAUSE_S=0.0)
sys.exit(keeper["keep"](sys.argv[1:]))
"""


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True)


def wait_for(file: Path, lines: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while not file.exists() or file.read_text().count("\n") < lines:
        assert time.monotonic() < until, f"{file} has no {lines} lines"
        time.sleep(0.02)


def test_a_command_that_fails_at_its_first_start_ends_it_with_its_code() -> None:
    keeper = start(str(KEEPER), "sh", "-c", "exit 3")

    assert (keeper.communicate(timeout=PATIENCE_S)[1], keeper.returncode) == ("", 3)


@pytest.mark.parametrize(("end", "code"), [("exit 4", 4), ("kill -9 $$", -9)])
def test_a_command_that_ends_later_is_started_again(tmp_path: Path, end: str, code: int) -> None:
    starts = tmp_path / "starts"
    script = f"echo >>{starts}; [ $(wc -l <{starts}) -lt 3 ] || exec sleep 60; {end}"
    keeper = start("-c", EAGER, "sh", "-c", script)
    wait_for(starts, 3)
    keeper.terminate()
    said = keeper.communicate(timeout=PATIENCE_S)[1].splitlines()

    assert said == [f"fermion: sh ended with code {code}; it is started again (time {number})" for number in (1, 2)]
    assert keeper.returncode == 128 + 15


def test_it_waits_for_a_command_that_was_asked_to_end(tmp_path: Path) -> None:
    starts, ends = tmp_path / "starts", tmp_path / "ends"
    script = f"trap 'sleep 0.3; echo >>{ends}; exit 7' TERM; echo >>{starts}; while :; do sleep 0.05; done"
    keeper = start(str(KEEPER), "sh", "-c", script)
    wait_for(starts, 1)
    keeper.terminate()

    assert (keeper.communicate(timeout=PATIENCE_S)[1], keeper.returncode) == ("", 7)
    assert ends.read_text() == "\n"
