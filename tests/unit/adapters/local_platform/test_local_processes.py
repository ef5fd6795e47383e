"""Whose processes are ended, and whose never."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from fermion.adapters.local_platform.layout import Layout
from fermion.adapters.local_platform.processes import end, find

SLEEP = "import time; print('ready', flush=True); time.sleep(300)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP
PARENT_OF_UNMARKED = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], env={})
print(child.pid, flush=True)
child.wait()
"""

Spawn = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    state = tmp_path / "state"
    (state / "work").mkdir(parents=True)
    (state / "work" / "id").write_text("this-location")
    return Layout(root=tmp_path, state=state)


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    started: list[subprocess.Popen[str]] = []

    def run(marks: Mapping[str, str], code: str = SLEEP) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, **marks}, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else ():
            child.kill()
        process.kill()
        process.communicate()


def ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def program_of(layout: Layout) -> dict[str, str]:
    return {"FERMION_STATE": str(layout.state), "FERMION_PROGRAM": "scheduler"}


WORKLOAD = {"FERMION_WORKLOAD": "job-20241110-001-1", "FERMION_LOCATION_ID": "this-location"}


def test_a_program_of_this_installation_is_found(layout: Layout, spawn: Spawn) -> None:
    process = spawn(program_of(layout))
    ready(process)

    assert [each.pid for each in find(layout).programs] == [process.pid]


@pytest.mark.parametrize(
    "marks",
    [
        pytest.param({"FERMION_STATE": "/elsewhere/run", "FERMION_PROGRAM": "scheduler"}, id="another installation"),
        pytest.param({"FERMION_STATE": "{state}"}, id="a shell in which the state folder is set"),
        pytest.param({"FERMION_PROGRAM": "scheduler"}, id="a program without a state folder"),
        pytest.param(
            {"FERMION_WORKLOAD": "job-1", "FERMION_LOCATION_ID": "another-location"}, id="a training of another one"
        ),
    ],
)
def test_what_is_not_ours_is_not_found(layout: Layout, spawn: Spawn, marks: Mapping[str, str]) -> None:
    ready(spawn({name: value.format(state=layout.state) for name, value in marks.items()}))

    found = find(layout)

    assert (found.programs, found.workloads) == ([], [])


def test_a_training_is_never_a_program_even_when_a_program_started_it(layout: Layout, spawn: Spawn) -> None:
    process = spawn({**program_of(layout), **WORKLOAD})
    ready(process)

    found = find(layout)

    assert found.programs == []
    assert [each.pid for each in found.workloads] == [process.pid]
    assert found.workload_names == {"job-20241110-001-1"}


def test_the_child_of_a_training_belongs_to_it_whatever_its_environment(layout: Layout, spawn: Spawn) -> None:
    process = spawn(WORKLOAD, PARENT_OF_UNMARKED)
    child = int(ready(process))

    assert {each.pid for each in find(layout).workloads} == {process.pid, child}


def test_the_caller_is_not_found_by_itself(layout: Layout) -> None:
    code = """
import sys
from pathlib import Path
from fermion.adapters.local_platform.layout import Layout
from fermion.adapters.local_platform.processes import find
print(len(find(Layout(root=Path(sys.argv[1]), state=Path(sys.argv[1]) / "state")).programs))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(layout.root)],
        env={**os.environ, **program_of(layout)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout.strip() == "0"


def test_a_process_that_ignores_term_is_killed(layout: Layout, spawn: Spawn) -> None:
    process = spawn(program_of(layout), STUBBORN)
    ready(process)

    assert end(find(layout).programs, grace_s=0.1) == 1
    assert process.wait(10) == -9


def test_a_zombie_counts_as_gone(layout: Layout, spawn: Spawn) -> None:
    """``spawn`` never waits for its process, so it stays a zombie."""
    process = spawn(program_of(layout))
    ready(process)
    found = find(layout).programs

    end(found, grace_s=10)

    assert [each.status() for each in found] == [psutil.STATUS_ZOMBIE]
    assert find(layout).programs == []
