"""The embedded installation for real: up, killed, up again, down. One installation, the tests go through its life in order."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from fermion.adapters.local_platform.layout import Layout
from fermion.adapters.local_platform.processes import find

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
FERMION = str(Path(sys.executable).with_name("fermion"))


class Installation:
    """The command, called as a person calls it, on a state folder of its own."""

    def __init__(self, root: Path, state: Path) -> None:
        self.layout = Layout(root=root, state=state)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("FERMION_", "AIRFLOW_"))},
            "FERMION_ROOT": str(root),
            "FERMION_STATE": str(state),
        }

    def start(self, *arguments: str, **changed: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [FERMION, *arguments],
            env={**self.environment, **changed},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def call(self, *arguments: str, code: int = 0, **changed: str) -> str:
        with self.start(*arguments, **changed) as process:
            out, err = process.communicate(timeout=240)
        assert process.returncode == code, f"{arguments} ended with {process.returncode}:\n{out}\n{err}"
        return out + err

    def answer(self, *arguments: str) -> dict[str, object]:
        with self.start(*arguments, "--json") as process:
            out, err = process.communicate(timeout=240)
        assert process.returncode == 0, out + err
        made = json.loads(out)
        assert isinstance(made, dict)
        return made

    def processes(self) -> list[psutil.Process]:
        found = find(self.layout)
        return [*found.programs, *found.workloads]

    def kill_everything_but_trainings(self) -> int:
        programs = find(self.layout).programs
        for process in programs:
            process.kill()
        psutil.wait_procs(programs, timeout=1)
        return len(programs)

    def pids(self) -> Mapping[str, int]:
        programs = self.answer("ps")["programs"]
        assert isinstance(programs, list)
        return {each["name"]: each["pid"] for each in programs}

    def sign_in(self) -> int:
        url = str(self.answer("ps")["url"])
        password = json.loads((self.layout.secrets / "passwords.json").read_text())["admin"]
        request = urllib.request.Request(
            f"{url}/auth/token",
            data=json.dumps({"username": "admin", "password": password}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Its path is too long for a socket, as on some people's machines."""
    state = tmp_path_factory.mktemp("a-state-folder-with-a-long-name-" + "x" * 60) / "run"
    installation = Installation(ROOT, state)
    yield installation
    installation.call("clean")
    assert installation.processes() == []
    assert not state.exists()


@pytest.fixture(scope="module")
def training(here: Installation) -> psutil.Process:
    """A real training of five minutes, once its own process runs."""
    examples = here.layout.state / "examples"
    maker = ROOT / "include" / "examples" / "make_repository.py"
    subprocess.run([sys.executable, str(maker), str(examples)], check=True, timeout=120, capture_output=True)
    spec = here.layout.state / "sleeper.json"
    asked = {
        "name": "sleeper",
        "pool": "local/declared",
        "image": "python:3",
        "repository": f"file://{examples}/sleeper.git",
        "entrypoint": "python sleep.py",
        "hyperparameters": {"seconds": 300, "epochs": 100},
        "memory_mib": 256,
        "output_model": "sleeper",
    }
    spec.write_text(json.dumps(asked))
    here.call("train", "--spec", str(spec))
    deadline = time.monotonic() + 120
    while not (found := [each for each in find(here.layout).workloads if "sleep.py" in " ".join(each.cmdline())]):
        assert time.monotonic() < deadline, here.call("jobs")
        time.sleep(0.2)
    return found[0]


def test_two_who_start_it_from_nothing_at_once_get_one_healthy_platform(here: Installation) -> None:
    port = str(free_port())
    with (
        here.start("up", "--json", FERMION_PORT=port) as first,
        here.start("up", "--json", FERMION_PORT=port) as second,
    ):
        answers = [process.communicate(timeout=240) for process in (first, second)]

    assert [process.returncode for process in (first, second)] == [0, 0], answers
    made = [json.loads(out) for out, _ in answers]
    assert sorted(each["started"] for each in made) == [False, True]
    assert made[0]["url"] == made[1]["url"]
    assert here.answer("ps")["problems"] == []
    assert here.sign_in() == 201


def test_up_when_it_is_up_changes_nothing_and_tells_that_every_dag_file_was_read(here: Installation) -> None:
    before = here.pids()

    answer = here.answer("up")

    assert (answer["started"], answer["import_errors"]) == (False, {})
    assert here.pids() == before


def test_a_killed_component_is_started_again_by_the_supervisor(here: Installation) -> None:
    before = here.pids()["triggerer"]
    psutil.Process(before).kill()

    here.answer("up")

    assert here.pids()["triggerer"] not in {0, before}


def test_after_a_kill_of_everything_it_comes_up_and_the_training_lives(
    here: Installation, training: psutil.Process
) -> None:
    """The lock file of Postgres names a process that lives and is somebody else's."""
    url = here.answer("ps")["url"]
    assert here.kill_everything_but_trainings() > 5
    (here.layout.postgres / "postmaster.pid").write_text(f"{training.pid}\n")
    (here.layout.supervisor / "supervisord.pid").write_text(f"{training.pid}\n")

    answer = here.answer("up")

    assert (answer["started"], answer["url"]) == (True, url)
    assert is_alive(training.pid)
    assert here.sign_in() == 201


def test_after_a_kill_of_the_supervisor_alone_its_orphans_are_ended_first(here: Installation) -> None:
    before = here.pids()
    supervisor = psutil.Process(before["scheduler"]).parent()
    assert supervisor is not None
    supervisor.kill()

    assert here.answer("up")["started"] is True

    assert not [pid for pid in before.values() if psutil.pid_exists(pid) and is_alive(pid)]


def test_down_ends_the_training_too_and_leaves_no_process(here: Installation, training: psutil.Process) -> None:
    answer = here.answer("down")

    assert (answer["was_up"], answer["workloads"], answer["leftovers"]) == (True, 1, 0)
    assert not is_alive(training.pid)
    assert here.processes() == []


def test_down_when_it_is_down_is_fine(here: Installation) -> None:
    assert here.answer("down") == {"was_up": False, "workloads": 0, "replicas": 0, "leftovers": 0}
    assert "Fermion is down" in here.call("ps", code=1)


def test_a_taken_port_that_was_asked_for_is_refused_with_what_to_do(here: Installation) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        port = server.getsockname()[1]

        said = here.call("up", code=5, FERMION_PORT=str(port))

    assert f"FERMION_PORT={port} is taken by" in said.replace("\n", " ")
    assert here.processes() == []


def test_a_program_that_cannot_start_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "dags").mkdir(parents=True)
    (root / "config").mkdir()
    settings = (ROOT / "config" / "airflow.cfg").read_text()
    (root / "config" / "airflow.cfg").write_text(settings.replace(".PreloadingExecutor", ".NoSuchExecutor"))
    broken = Installation(root, tmp_path / "run")
    try:
        said = broken.call("up", code=3)
        assert "ended 3 times in a row" in said
        assert "NoSuchExecutor" in said
        assert "fermion down" in said
    finally:
        broken.call("clean")
    assert broken.processes() == []


def free_port() -> int:
    """Far from the ports that an installation chooses by itself, so that no other one takes it between two tests."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
