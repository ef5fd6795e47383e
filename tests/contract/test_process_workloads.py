"""The process driver's workloads on real processes: what the ``Workloads`` port promises, and what only processes can do.

Every wait is bounded; after each test no process of its location root is left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fermion.adapters.process import runner
from fermion.adapters.process.nodes import DeviceUse, ProcessNodes
from fermion.adapters.process.space import ProcessSpace
from fermion.adapters.process.workloads import ProcessWorkloads
from fermion.domain.leases import Slice
from fermion.domain.workloads import ExitCause, Grant, Seen, WorkloadSpec, WorkloadState, workload_name
from fermion.errors import Conflict, DriverCannot, NotFound

GRACE = timedelta(seconds=10)
NAME = workload_name("job-20250101-001", 1)


class SystemClock:
    """The real present."""

    def now(self) -> datetime:
        return datetime.now(UTC)


@dataclass
class Bench:
    """A location root with its workloads and everything to make specs from."""

    root: Path
    workloads: ProcessWorkloads
    space: ProcessSpace

    def spec(self, source: str, *, attempt: int = 1, **changes: object) -> WorkloadSpec:
        job_id = "job-20250101-001"
        code = self.root / "code"
        code.mkdir(exist_ok=True)
        (code / f"train{attempt}.py").write_text(textwrap.dedent(source))
        spec = WorkloadSpec(
            name=workload_name(job_id, attempt),
            job_id=job_id,
            attempt=attempt,
            image=sys.prefix,
            code=str(code),
            entrypoint=(f"train{attempt}.py",),
            arguments=(),
            parameters={},
            datasets={},
            output=self.space.output(job_id, attempt),
            checkpoints=self.space.checkpoints(job_id),
            log=self.space.log(job_id, attempt),
        )
        return replace(spec, **changes)  # type: ignore[arg-type]

    def run(self, source: str, **changes: object) -> str:
        """Prepare and resume; the workload's name."""
        spec = self.spec(source, **changes)  # type: ignore[arg-type]
        self.workloads.prepare(spec)
        self.workloads.resume(spec.name, grant(1))
        return spec.name

    def until(self, name: str, *states: WorkloadState, within_s: float = 30.0) -> Seen:
        wait_for(lambda: self.workloads.look(name).state in states, within_s)
        return self.workloads.look(name)

    def ended(self, name: str, *, within_s: float = 30.0) -> Seen:
        return self.until(name, WorkloadState.EXITED, within_s=within_s)

    def printed(self, name: str, text: str) -> None:
        wait_for(lambda: text in self.workloads.log(name).text, 20)

    def folder(self, name: str) -> Path:
        return self.root / "workloads" / name

    def file(self, name: str, file: str) -> Mapping[str, object]:
        return dict(json.loads((self.folder(name) / file).read_text()))

    def whole_log(self, name: str, limit: int = 65536) -> str:
        pieces, offset = [], 0
        while True:
            chunk = self.workloads.log(name, offset=offset, limit=limit)
            pieces.append(chunk.text)
            offset = chunk.next_offset
            if chunk.at_end:
                return "".join(pieces)


def grant(token: int, devices: Sequence[str] = ("slot-0",), *, declared: bool = True) -> Grant:
    return Grant(token=token, slices=(Slice("here", tuple(devices)),), devices_are_declared=declared)


def wait_for(is_true: Callable[[], object], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < deadline, f"did not come true within {within_s} s"
        time.sleep(0.01)


def lives(pid: int) -> bool:
    process = runner.read_process(pid)
    return process is not None and process.state not in "ZX"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    clock = SystemClock()
    nodes = ProcessNodes("local", clock, declared_slots=1)
    workloads = ProcessWorkloads(tmp_path, clock, device_use=nodes.device_use)
    yield Bench(tmp_path, workloads, ProcessSpace(tmp_path))
    for name in workloads.names():
        workloads.stop(name, grace=timedelta(0), why="the test is over")
    wait_for(lambda: all(workloads.look(n).state is not WorkloadState.RUNNING for n in workloads.names()), 20)
    workloads.end_orphans()
    wait_for(lambda: not workloads._marked(), 20)


# --- the ordinary life ------------------------------------------------------------------------------------------------


def test_a_workload_is_absent_then_suspended_then_running_then_exited(bench: Bench) -> None:
    assert bench.workloads.look(NAME).state is WorkloadState.ABSENT

    bench.workloads.prepare(bench.spec("import time; print('hello', flush=True); time.sleep(60)"))
    suspended = bench.workloads.look(NAME)
    assert (suspended.state, suspended.token, suspended.exec_at) == (WorkloadState.SUSPENDED, None, None)
    assert bench.workloads.names() == [NAME]

    bench.workloads.resume(NAME, grant(7))
    running = bench.until(NAME, WorkloadState.RUNNING)
    assert running.token == 7
    assert running.exec_at is not None
    bench.printed(NAME, "hello")

    bench.workloads.stop(NAME, grace=GRACE, why="enough")
    exited = bench.ended(NAME)
    assert exited.exit is not None
    assert (exited.exit.cause, exited.exit.detail, exited.token) == (ExitCause.STOPPED, "enough", 7)


@pytest.mark.parametrize("code", [pytest.param(0, id="success"), pytest.param(3, id="an error")])
def test_the_exit_record_holds_the_code_and_the_times(bench: Bench, code: int) -> None:
    seen = bench.ended(bench.run(f"import sys; sys.exit({code})"))

    assert seen.exit is not None
    assert (seen.exit.cause, seen.exit.code, seen.exit.signal) == (ExitCause.EXITED, code, None)
    assert seen.exit.exec_at is not None
    assert seen.exit.exec_at <= seen.exit.exit_at
    assert seen.exit.max_rss_mib is not None
    assert seen.exit.max_rss_mib > 1
    assert seen.exit.cpu_seconds is not None


def test_the_code_finds_all_it_needs_by_paths_and_arguments(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for secret in ("AIRFLOW__CORE__FERNET_KEY", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(secret, "hidden")
    data = bench.root / "somewhere" / "digits"
    data.mkdir(parents=True)
    (data / "part.csv").write_text("1,2\n")
    source = """
        import json, os, pathlib, sys
        out = pathlib.Path(os.environ["FERMION_OUTPUT_DIR"]) / "seen.json"
        out.write_text(json.dumps({
            "argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "executable": sys.executable,
            "data": (pathlib.Path(os.environ["FERMION_DATA_DIR"]) / "digits" / "part.csv").read_text(),
            "parameters": json.loads(pathlib.Path(os.environ["FERMION_PARAMETERS"]).read_text()),
            "group_leader": os.getpgid(0) == os.getpid(), "stdin": sys.stdin.read(),
        }))
    """
    name = bench.run(
        source,
        arguments=("--lr", "0.1"),
        parameters={"lr": 0.1},
        datasets={"digits": str(data)},
        resume_from="/checkpoints/5",
        environment={"OMP_NUM_THREADS": "1", "FERMION_OUTPUT_DIR": "/elsewhere"},
    )

    bench.ended(name)
    seen = json.loads((Path(bench.space.output("job-20250101-001", 1)) / "seen.json").read_text())
    assert seen["argv"] == ["--lr", "0.1"]
    assert seen["parameters"] == {"lr": 0.1}
    assert seen["data"] == "1,2\n"
    assert seen["cwd"] == str(bench.root / "code")
    assert seen["executable"] == f"{sys.prefix}/bin/python"
    assert seen["group_leader"] is True
    assert seen["stdin"] == ""
    env = seen["env"]
    assert env["PATH"].startswith(f"{sys.prefix}/bin:")
    assert env["FERMION_RESUME_FROM"] == "/checkpoints/5"
    assert env["FERMION_WORKLOAD"] == name
    assert env["OMP_NUM_THREADS"] == "1"
    assert "hidden" not in env.values()


@pytest.mark.parametrize(
    ("devices", "declared", "expected"),
    [
        pytest.param(
            ("slot-0", "slot-1"), True, (None, "slot-0,slot-1", "1"), id="declared slots come without a CUDA id"
        ),
        pytest.param(("GPU-a", "GPU-b"), False, ("GPU-a,GPU-b", "GPU-a,GPU-b", None), id="devices come by UUID"),
    ],
)
def test_granted_devices_reach_the_code(
    bench: Bench, devices: tuple[str, ...], declared: bool, expected: tuple[str | None, ...]
) -> None:
    source = """
        import json, os
        keys = ("CUDA_VISIBLE_DEVICES", "FERMION_DEVICES", "FERMION_DEVICES_DECLARED")
        print(json.dumps([os.environ.get(key) for key in keys]))
    """
    bench.workloads.prepare(bench.spec(source))
    bench.workloads.resume(NAME, grant(1, devices, declared=declared))

    bench.ended(NAME)
    assert json.loads(bench.workloads.log(NAME).text) == list(expected)


def test_an_entrypoint_that_is_no_python_file_is_found_on_the_environments_path(bench: Bench) -> None:
    name = bench.run("", entrypoint=("python", "-c", "import sys; print(sys.prefix)"))

    bench.ended(name)
    assert bench.workloads.log(name).text.strip() == sys.prefix


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        pytest.param({"entrypoint": ("no-such-program",)}, "no-such-program", id="the command is not there"),
        pytest.param({"entrypoint": ("./train1.txt",)}, "train1.txt", id="the file is not executable"),
        pytest.param({"code": "/nowhere"}, "/nowhere", id="the code is gone"),
        pytest.param({"log": "/proc/nowhere/train.log"}, "/proc/nowhere", id="the log cannot be written"),
    ],
)
def test_what_cannot_be_executed_never_started_and_says_why(
    bench: Bench, changes: dict[str, object], word: str
) -> None:
    (bench.root / "code").mkdir()
    (bench.root / "code" / "train1.txt").write_text("no program")

    seen = bench.ended(bench.run("", **changes))

    assert seen.exit is not None
    assert seen.exit.cause is ExitCause.NEVER_STARTED
    assert seen.exit.code is None
    assert seen.exit.exec_at is None
    assert word in seen.exit.detail


def test_use_is_measured_over_the_whole_family(bench: Bench) -> None:
    source = """
        import os, time
        block = bytearray(60 * 1024 * 1024)
        if os.fork() == 0:
            block = bytearray(80 * 1024 * 1024)
        end = time.time() + 60
        while time.time() < end: pass
    """
    name = bench.run(source)

    def is_measured() -> bool:
        usage = bench.workloads.look(name).usage
        return usage is not None and (usage.cpu_cores or 0) > 0.1 and (usage.memory_mib or 0) > 130

    wait_for(is_measured, 20)
    usage = bench.workloads.look(name).usage
    assert usage is not None
    assert usage.gpu_utilisation is None
    assert usage.gpu_reason is not None
    assert "declared slots" in usage.gpu_reason
    assert datetime.now(UTC) - usage.observed_at < timedelta(seconds=10)


# --- repeats, races and fencing ---------------------------------------------------------------------------------------


def test_preparing_again_finds_the_first_one(bench: Bench) -> None:
    spec = bench.spec("pass")
    bench.workloads.prepare(spec)
    first = bench.file(NAME, runner.RUNNER)
    bench.workloads.prepare(spec)

    assert bench.file(NAME, runner.RUNNER) == first


def test_racing_prepares_end_up_with_one_waiting_runner(bench: Bench) -> None:
    spec = bench.spec("print('once')")
    failures: list[BaseException] = []

    def prepare() -> None:
        try:
            bench.workloads.prepare(spec)
            assert bench.workloads.look(NAME).state is WorkloadState.SUSPENDED
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=prepare) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    wait_for(lambda: len(bench.workloads._marked()) == 2, 10)  # one runner and its guard
    bench.workloads.resume(NAME, grant(1))
    bench.ended(NAME)
    assert bench.workloads.log(NAME).text == "once\n"


def test_a_repeated_grant_changes_nothing_and_an_older_one_is_refused(bench: Bench) -> None:
    name = bench.run("import time; time.sleep(60)")
    with pytest.raises(Conflict, match="token 1; token 0 is older"):
        bench.workloads.resume(name, grant(0))
    started = bench.until(name, WorkloadState.RUNNING)
    bench.workloads.resume(name, grant(1))

    seen = bench.workloads.look(name)
    assert (seen.token, seen.exec_at) == (1, started.exec_at)
    with pytest.raises(Conflict, match="executed under token 1"):
        bench.workloads.resume(name, grant(2))


def test_a_grant_to_nothing_is_not_found(bench: Bench) -> None:
    with pytest.raises(NotFound, match="prepare it"):
        bench.workloads.resume(NAME, grant(1))


def test_several_nodes_are_refused(bench: Bench) -> None:
    with pytest.raises(DriverCannot, match="asks for 2"):
        bench.workloads.prepare(bench.spec("pass", nodes=2))
    bench.workloads.prepare(bench.spec("pass"))
    with pytest.raises(DriverCannot, match="spans 2 nodes"):
        bench.workloads.resume(
            NAME, Grant(token=1, slices=(Slice("a", ("slot-0",)), Slice("b", ("slot-0",))), devices_are_declared=True)
        )


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "UPPER", "a..b"])
def test_a_name_that_is_no_folder_name_is_refused(bench: Bench, name: str) -> None:
    with pytest.raises(DriverCannot, match="cannot name a folder"):
        bench.workloads.look(name)


def test_a_dataset_name_cannot_lead_out_of_the_data_folder(bench: Bench) -> None:
    with pytest.raises(DriverCannot, match="dataset name"):
        bench.workloads.prepare(bench.spec("pass", datasets={"../x": "/tmp"}))
    assert bench.workloads.names() == []
    assert [p for p in (bench.root / "workloads").iterdir() if p.name.startswith(".new")] == []


def test_a_grant_wakes_the_runner_at_once(bench: Bench, record_property: Callable[[str, object], None]) -> None:
    latencies = []
    for attempt in range(1, 9):
        spec = bench.spec("pass", attempt=attempt)
        bench.workloads.prepare(spec)
        before = datetime.now(UTC)
        bench.workloads.resume(spec.name, grant(attempt))
        seen = bench.ended(spec.name)
        assert seen.exec_at is not None
        latencies.append((seen.exec_at - before).total_seconds())

    record_property("resume_p50_s", statistics.median(latencies))
    assert max(latencies) < 5
    assert statistics.median(latencies) < runner.RECHECK_S  # by its signal, not by its periodic look


def test_a_lost_wake_up_signal_costs_a_moment_and_nothing_else(bench: Bench) -> None:
    bench.workloads.prepare(bench.spec("print('awake')"))
    go = {"token": 1, "devices": ["slot-0"], "declared": True}
    runner.write_json(str(bench.folder(NAME) / runner.GO), go)  # and no signal

    assert bench.ended(NAME, within_s=runner.RECHECK_S + 10).token == 1


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_a_stop_lets_the_code_save_within_its_grace(bench: Bench) -> None:
    source = """
        import os, pathlib, signal, sys, time
        def save(*_):
            pathlib.Path(os.environ["FERMION_CHECKPOINT_DIR"], "last").write_text("7")
            sys.exit(0)
        signal.signal(signal.SIGTERM, save)
        print("ready", flush=True)
        time.sleep(60)
    """
    name = bench.run(source)
    bench.printed(name, "ready")
    bench.workloads.stop(name, grace=GRACE, why="preempted by job-2")

    seen = bench.ended(name)
    assert seen.exit is not None
    assert (seen.exit.cause, seen.exit.code, seen.exit.detail) == (ExitCause.STOPPED, 0, "preempted by job-2")
    assert bench.space.has_checkpoint("job-20250101-001")


def test_a_code_that_ignores_term_is_killed_after_its_grace(bench: Bench) -> None:
    source = """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("deaf", flush=True)
        time.sleep(120)
    """
    name = bench.run(source)
    bench.printed(name, "deaf")
    began = time.monotonic()
    bench.workloads.stop(name, grace=timedelta(seconds=1), why="max_runtime")

    seen = bench.ended(name)
    assert seen.exit is not None
    assert (seen.exit.cause, seen.exit.signal) == (ExitCause.STOPPED, signal.SIGKILL)
    assert 1.0 <= time.monotonic() - began < 10


def test_a_repeated_stop_can_shorten_the_grace_but_not_lengthen_it(bench: Bench) -> None:
    source = """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("deaf", flush=True)
        time.sleep(120)
    """
    name = bench.run(source)
    bench.printed(name, "deaf")
    bench.workloads.stop(name, grace=timedelta(seconds=100), why="first")
    bench.workloads.stop(name, grace=timedelta(seconds=200), why="second")
    assert bench.file(name, runner.STOP)["grace_s"] == 100
    bench.workloads.stop(name, grace=timedelta(0), why="third")

    seen = bench.ended(name, within_s=10)
    assert seen.exit is not None
    assert seen.exit.detail == "first"


def test_stopping_a_suspended_workload_removes_it_with_its_runner(bench: Bench) -> None:
    bench.workloads.prepare(bench.spec("pass"))
    bench.workloads.stop(NAME, grace=GRACE, why="not needed")

    assert bench.workloads.look(NAME).state is WorkloadState.ABSENT
    assert bench.workloads.names() == []
    wait_for(lambda: not bench.workloads._marked(), 10)


def test_stopping_and_removing_what_is_not_there_is_fine(bench: Bench) -> None:
    bench.workloads.stop(NAME, grace=GRACE, why="")
    bench.workloads.remove(NAME)


def test_grandchildren_end_with_the_training_also_those_in_sessions_of_their_own(bench: Bench) -> None:
    source = """
        import os, subprocess, sys
        worker = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(120)"
        plain = subprocess.Popen([sys.executable, "-c", worker])
        escaped = subprocess.Popen([sys.executable, "-c", worker], start_new_session=True, env={})
        print(plain.pid, escaped.pid, flush=True)
        os._exit(0)
    """
    name = bench.run(source)
    seen = bench.ended(name)

    assert seen.exit is not None
    assert (seen.exit.cause, seen.exit.code) == (ExitCause.EXITED, 0)
    pids = [int(word) for word in bench.workloads.log(name).text.split()]
    assert len(pids) == 2
    assert not any(lives(pid) for pid in pids)  # gone before the record was written


# --- violence ---------------------------------------------------------------------------------------------------------


def test_a_training_survives_the_kill_of_whoever_started_it(bench: Bench) -> None:
    bench.spec("import time; print('alive', flush=True); time.sleep(60)")
    starter = textwrap.dedent(
        f"""
        import os, signal, sys
        from datetime import datetime, UTC
        from pathlib import Path
        from fermion.adapters.process.nodes import DeviceUse
        from fermion.adapters.process.workloads import ProcessWorkloads
        from fermion.domain.leases import Slice
        from fermion.domain.workloads import Grant, WorkloadSpec
        class Clock:
            def now(self): return datetime.now(UTC)
        root = Path({str(bench.root)!r})
        workloads = ProcessWorkloads(root, Clock(), device_use=lambda devices: DeviceUse(None, None, "test"))
        workloads.prepare(WorkloadSpec(
            name={NAME!r}, job_id="job-20250101-001", attempt=1, image=sys.prefix, code=str(root / "code"),
            entrypoint=("train1.py",), arguments=(), parameters={{}}, datasets={{}}, output=str(root / "out"),
            checkpoints=str(root / "ckpt"), log=str(root / "log" / "train.log"),
        ))
        workloads.resume({NAME!r}, Grant(token=1, slices=(Slice("here", ("slot-0",)),), devices_are_declared=True))
        os.killpg(0, signal.SIGKILL)
        """
    )
    done = subprocess.run([sys.executable, "-c", starter], start_new_session=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL

    bench.printed(NAME, "alive")
    assert bench.workloads.look(NAME).state is WorkloadState.RUNNING
    assert os.getsid(int(str(bench.file(NAME, runner.STARTED)["pid"]))) != os.getsid(0)
    bench.workloads.stop(NAME, grace=GRACE, why="seen enough")
    bench.ended(NAME)


def test_a_killed_training_is_signalled(bench: Bench) -> None:
    name = bench.run("import time; time.sleep(60)")
    bench.until(name, WorkloadState.RUNNING)
    os.kill(int(str(bench.file(name, runner.STARTED)["pid"])), signal.SIGKILL)

    seen = bench.ended(name)
    assert seen.exit is not None
    assert (seen.exit.cause, seen.exit.code, seen.exit.signal) == (ExitCause.SIGNALLED, None, signal.SIGKILL)
    assert "SIGKILL" in seen.exit.detail


def test_a_killed_runner_is_lost_and_leaves_nobody_behind(bench: Bench) -> None:
    source = """
        import os, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], start_new_session=True)
        print(os.getpid(), child.pid, flush=True)
        time.sleep(120)
    """
    name = bench.run(source)
    wait_for(lambda: bench.workloads.log(name).text.endswith("\n"), 20)
    pids = [int(word) for word in bench.workloads.log(name).text.split()]
    kill_part(bench, name, "runner")

    seen = bench.until(name, WorkloadState.LOST)
    assert "no exit record" in seen.detail
    assert seen.token == 1
    assert not any(lives(pid) for pid in pids)  # LOST is said only once they are gone
    assert bench.workloads.orphans() == []
    bench.workloads.remove(name)
    assert bench.workloads.look(name).state is WorkloadState.ABSENT


def test_processes_that_outlive_runner_and_guard_are_orphans_and_can_be_ended(bench: Bench) -> None:
    source = """
        import os, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], start_new_session=True)
        print(child.pid, flush=True)
        time.sleep(120)
    """
    name = bench.run(source)
    wait_for(lambda: bench.workloads.log(name).text.endswith("\n"), 20)
    child = int(bench.workloads.log(name).text)
    assert bench.workloads.orphans() == []
    kill_part(bench, name, "guard")
    kill_part(bench, name, "runner")

    seen = bench.until(name, WorkloadState.LOST)
    wait_for(lambda: len(bench.workloads.orphans()) == 1, 10)
    assert bench.workloads.look(name).orphans == 1, "its GPU is not free"
    assert f"pid {child} of workload {name}" in bench.workloads.orphans()[0]
    assert str(child) in seen.detail
    assert bench.workloads.end_orphans() == 1
    assert not lives(child)
    assert bench.workloads.orphans() == []


def test_a_killed_guard_does_not_disturb_the_training(bench: Bench) -> None:
    name = bench.run("import sys; sys.stdin.read(); import time; time.sleep(1); print('done')")
    bench.until(name, WorkloadState.RUNNING)
    kill_part(bench, name, "guard")

    seen = bench.ended(name)
    assert seen.exit is not None
    assert seen.exit.code == 0


def test_a_suspended_workload_whose_runner_died_is_lost_until_it_is_prepared_again(bench: Bench) -> None:
    spec = bench.spec("print('late')")
    bench.workloads.prepare(spec)
    kill_part(bench, NAME, "runner")
    wait_for(lambda: bench.workloads.look(NAME).state is WorkloadState.LOST, 10)

    bench.workloads.prepare(spec)
    assert bench.workloads.look(NAME).state is WorkloadState.SUSPENDED


def test_a_grant_revives_a_runner_that_died_while_it_waited(bench: Bench) -> None:
    bench.workloads.prepare(bench.spec("print('late')"))
    kill_part(bench, NAME, "runner")
    wait_for(lambda: bench.workloads.look(NAME).state is WorkloadState.LOST, 10)
    bench.workloads.resume(NAME, grant(3))

    assert bench.ended(NAME).token == 3
    assert bench.workloads.log(NAME).text == "late\n"


def test_a_process_number_given_out_again_is_not_taken_for_the_runner(bench: Bench) -> None:
    bench.workloads.prepare(bench.spec("pass"))
    who = dict(bench.file(NAME, runner.RUNNER))
    wrong = {**who["runner"], "start_ticks": who["runner"]["start_ticks"] - 1}  # type: ignore[index,dict-item]
    runner.write_json(str(bench.folder(NAME) / runner.RUNNER), {"runner": wrong, "guard": {**wrong}})

    assert bench.workloads.look(NAME).state is WorkloadState.LOST
    runner.write_json(str(bench.folder(NAME) / runner.RUNNER), who)


def test_a_runner_in_another_container_is_known_by_its_lock(bench: Bench) -> None:
    name = bench.run("import time; time.sleep(60)")
    bench.until(name, WorkloadState.RUNNING)
    here = dict(bench.file(name, runner.RUNNER))
    there = {part: {**who, "pid": 999_999, "pid_namespace": "pid:[1]"} for part, who in here.items()}  # type: ignore[dict-item]
    runner.write_json(str(bench.folder(name) / runner.RUNNER), there)

    assert bench.workloads.look(name).state is WorkloadState.RUNNING
    assert bench.workloads.orphans() == []
    bench.workloads.stop(name, grace=GRACE, why="by its file, no signal reaches it")
    seen = bench.ended(name)
    assert seen.exit is not None
    assert seen.exit.cause is ExitCause.STOPPED


def test_a_training_whose_folder_was_deleted_by_hand_is_ended(bench: Bench) -> None:
    name = bench.run("import time; time.sleep(120)")
    bench.until(name, WorkloadState.RUNNING)
    pid = int(str(bench.file(name, runner.STARTED)["pid"]))
    # The runner writes its heartbeat into the folder until it is gone: as with `rm -rf`, a second try may be needed.
    wait_for(lambda: shutil.rmtree(bench.folder(name), ignore_errors=True) or not bench.folder(name).exists(), 10)

    assert bench.workloads.look(name).state is WorkloadState.ABSENT
    wait_for(lambda: not lives(pid), runner.FOLDER_GONE_S + 10)
    wait_for(lambda: not bench.workloads._marked(), 10)


def test_torn_files_do_not_break_a_look(bench: Bench) -> None:
    name = bench.run("import time; time.sleep(60)")
    bench.until(name, WorkloadState.RUNNING)
    (bench.folder(name) / runner.EXIT).write_text('{"cause": "exi')

    assert bench.workloads.look(name).state is WorkloadState.RUNNING


@pytest.mark.parametrize("keeper", ["control group", "runner"])
def test_crossing_the_memory_limit_is_out_of_memory_with_the_numbers(
    bench: Bench, keeper: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
        import time
        blocks = []
        for _ in range(100):
            blocks.append(bytearray(b"x") * (8 * 1024 * 1024))
            time.sleep(0.02)
        time.sleep(60)
    """
    if keeper == "control group":
        group = runner.Cgroup.create("probe", 64 * 1024 * 1024)
        if group is None:
            pytest.skip("no control group with a memory limit may be made here")
        group.close()
        spec = bench.spec(source, memory_mib=160)
        bench.workloads.prepare(spec)
    else:
        # A name that no control group can have: the runner must watch by itself.
        spec = bench.spec(source, memory_mib=160)
        bench.workloads.prepare(spec)
        order = dict(bench.file(NAME, runner.ORDER))
        bench.workloads.stop(NAME, grace=GRACE, why="")
        bench.folder(NAME).mkdir()
        runner.write_json(str(bench.folder(NAME) / runner.ORDER), {**order, "name": "no/such/group"})
        bench.workloads.prepare(spec)
    bench.workloads.resume(NAME, grant(1))

    seen = bench.ended(NAME)
    assert seen.exit is not None
    assert seen.exit.cause is ExitCause.OUT_OF_MEMORY
    assert "of the 160 MiB" in seen.exit.detail
    assert ("the kernel ended it" if keeper == "control group" else "the runner ended it") in seen.exit.detail


def kill_part(bench: Bench, name: str, part: str) -> None:
    who = bench.file(name, runner.RUNNER)[part]
    assert isinstance(who, dict)
    os.kill(who["pid"], signal.SIGKILL)
    wait_for(lambda: not runner.is_alive(who), 10)


# --- what it prints ---------------------------------------------------------------------------------------------------


def test_a_gibibyte_of_output_keeps_head_and_tail_on_a_bounded_disk(bench: Bench) -> None:
    source = """
        import sys
        print("the beginning")
        print('{"progress": 1}', flush=True)
        mebibyte = (b"x" * 1023 + b"\\n") * 1024
        for _ in range(1024):
            sys.stdout.buffer.write(mebibyte)
        print("the end")
        print('{"progress": 100}')
    """
    limit = 4 * 1024 * 1024
    name = bench.run(source, log_limit=limit)
    seen = bench.ended(name, within_s=90)

    assert seen.exit is not None
    assert seen.exit.code == 0
    folder = Path(bench.space.log("job-20250101-001", 1)).parent
    assert sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) < limit + 64 * 1024
    text = bench.whole_log(name)
    assert text.startswith("the beginning\n")
    assert text.endswith('the end\n{"progress": 100}\n')
    assert text.count("bytes dropped here") == 1
    assert bench.workloads.progress(name).text == '{"progress": 1}\n{"progress": 100}\n'
    on_disk = Path(bench.space.log("job-20250101-001", 1)).read_text()
    assert "bytes dropped here" in on_disk
    assert on_disk.endswith('{"progress": 100}\n')


def test_progress_survives_a_flood_of_progress(bench: Bench) -> None:
    source = """
        for number in range(200_000):
            print('{"progress": %d, "filler": "%s"}' % (number, "x" * 200))
    """
    name = bench.run(source, progress_limit=1024 * 1024)
    bench.ended(name, within_s=90)

    lines = bench.workloads.progress(name, limit=4 * 1024 * 1024).text.splitlines()
    numbers = [json.loads(line)["progress"] for line in lines]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 0
    assert numbers[-1] == 199_999
    assert sum(map(len, lines)) < 1024 * 1024


def test_invalid_bytes_and_broken_json_harm_nobody(bench: Bench) -> None:
    source = r"""
        import sys
        out = sys.stdout.buffer
        out.write(b'\xff\xfe broken \xc3\x28\n{"progress": 10}\n{"progress": oops\n{"progress": 400}\n{not closed')
        out.flush()
        sys.stderr.write("to stderr\n")
    """
    name = bench.run(source)
    seen = bench.ended(name)

    assert seen.exit is not None
    assert seen.exit.code == 0
    log = bench.whole_log(name)
    assert "\ufffd\ufffd broken \ufffd(\n" in log
    assert "to stderr\n" in log
    lines = bench.workloads.progress(name).text.splitlines()
    assert lines == ['{"progress": 10}', '{"progress": oops', '{"progress": 400}', "{not closed"]


def test_a_progress_bar_on_stderr_does_not_hide_progress_on_stdout(bench: Bench) -> None:
    source = """
        import sys, time
        for number in range(3):
            sys.stderr.write(f"\\r{number}/3"); sys.stderr.flush()
            print('{"progress": %d}' % number, flush=True)
            time.sleep(0.05)
    """
    name = bench.run(source)
    bench.ended(name)

    assert bench.workloads.progress(name).text == '{"progress": 0}\n{"progress": 1}\n{"progress": 2}\n'


def test_log_and_progress_can_be_followed_while_it_runs_and_read_after_its_removal(bench: Bench) -> None:
    source = """
        import pathlib, time
        print("one"); print('{"progress": 50}')
        while not pathlib.Path("go-on").exists(): time.sleep(0.01)
        print("two"); print('{"progress": 100}')
    """
    name = bench.run(source)
    bench.printed(name, '{"progress": 50}\n')
    first = bench.workloads.log(name)
    seen_so_far = bench.workloads.progress(name)
    assert first.at_end
    assert seen_so_far.text == '{"progress": 50}\n'
    (bench.root / "code" / "go-on").touch()
    bench.ended(name)

    bench.workloads.remove(name)
    assert bench.workloads.look(name).state is WorkloadState.ABSENT
    assert bench.workloads.log(name, offset=first.next_offset).text == 'two\n{"progress": 100}\n'
    assert bench.workloads.progress(name, offset=seen_so_far.next_offset).text == '{"progress": 100}\n'
    bench.space.forget("job-20250101-001")
    assert bench.workloads.log(name).text == ""


def test_a_silent_training_that_hangs_is_seen_alive(bench: Bench) -> None:
    name = bench.run("import time; time.sleep(120)")
    bench.until(name, WorkloadState.RUNNING)
    wait_for(lambda: bench.workloads.look(name).usage is not None, 10)

    assert bench.workloads.look(name).state is WorkloadState.RUNNING
    assert bench.workloads.progress(name).text == ""


def test_a_running_workload_cannot_be_removed(bench: Bench) -> None:
    name = bench.run("import time; time.sleep(60)")
    bench.until(name, WorkloadState.RUNNING)

    with pytest.raises(Conflict, match="still running"):
        bench.workloads.remove(name)


def test_device_use_is_asked_for_the_granted_devices(bench: Bench) -> None:
    asked: list[Sequence[str]] = []

    def use(devices: Sequence[str]) -> DeviceUse:
        asked.append(tuple(devices))
        return DeviceUse(0.5, 1024.0)

    workloads = ProcessWorkloads(bench.root, SystemClock(), device_use=use)
    workloads.prepare(bench.spec("import time; time.sleep(60)"))
    workloads.resume(NAME, grant(1, ("GPU-a",), declared=False))
    wait_for(lambda: workloads.look(NAME).usage is not None, 20)

    usage = workloads.look(NAME).usage
    assert usage is not None
    assert (usage.gpu_utilisation, usage.gpu_memory_mib, usage.gpu_reason) == (0.5, 1024.0, None)
    assert set(asked) == {("GPU-a",)}
