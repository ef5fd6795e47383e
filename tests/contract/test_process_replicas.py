"""The process driver's replicas keep the contract on real servers; then what only processes can show.

Every wait is bounded; after each test no process of its location root is left.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from replicas_contract import ReplicasContract, grant

from fermion.adapters.files.placing import PLACED_AT
from fermion.adapters.local_platform.layout import Layout as PlatformLayout
from fermion.adapters.local_platform.processes import find
from fermion.adapters.process import runner
from fermion.adapters.process.nodes import DeviceUse, ProcessNodes
from fermion.adapters.process.replicas import ProcessReplicas
from fermion.adapters.process.workloads import ProcessWorkloads
from fermion.domain.artifacts import FileEntry
from fermion.domain.leases import Slice
from fermion.domain.serving.replicas import (
    Probe,
    ProbeKind,
    Probes,
    ReplicaSeen,
    ReplicaSpec,
    ReplicaState,
    replica_name,
    revision_id,
)
from fermion.domain.workloads import ExitCause, Grant
from fermion.errors import DriverCannot

LIMIT_S = 30
REVISION = revision_id("inf-digits-001", 1)
NAME = replica_name(REVISION, 1)
SERVER = "replica_server.py"
OFTEN = timedelta(milliseconds=100)
STARTUP = Probe(kind=ProbeKind.TCP, failure_threshold=60)
READINESS = Probe(kind=ProbeKind.HTTP, path="/ready", period=OFTEN, failure_threshold=1)

ESCAPE = textwrap.dedent("""
    import subprocess
    print(subprocess.Popen(["sleep", "120"], start_new_session=True).pid, flush=True)
""")
"""Leaves a child in a session of its own."""

GLUTTON = textwrap.dedent("""
    import os, pathlib, threading, time
    def eat():
        order = pathlib.Path(os.environ["PUPPET"], "eat")
        while not order.exists(): time.sleep(0.01)
        order.unlink()
        blocks = []
        while True:
            blocks.append(bytearray(b"x") * (8 * 1024 * 1024))
            time.sleep(0.02)
    threading.Thread(target=eat, daemon=True).start()
""")
"""Takes more and more memory when told so."""

BUSY = textwrap.dedent("""
    import threading
    def burn():
        while True: sum(range(1000))
    threading.Thread(target=burn, daemon=True).start()
""")
"""Would use a whole core."""

FLOOD = textwrap.dedent("""
    import os, pathlib, threading, time
    def pour():
        order = pathlib.Path(os.environ["PUPPET"], "flood")
        while not order.exists(): time.sleep(0.01)
        mebibyte = (b"x" * 1023 + b"\\n") * 1024
        for _ in range(1024): os.write(1, mebibyte)
        os.write(1, b"the end of it\\n")
    threading.Thread(target=pour, daemon=True).start()
""")
"""Prints a gibibyte when told so."""

HEALTH = textwrap.dedent("""
    import os
    from concurrent import futures
    import grpc
    def check(request, context):  # a HealthCheckRequest: field 1 is the service
        if request[2:] not in (b"", b"good"):
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return b"\\x08\\x01"  # SERVING
    server = grpc.server(futures.ThreadPoolExecutor(2))
    handler = grpc.unary_unary_rpc_method_handler(check)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler})])
    server.add_insecure_port("127.0.0.1:" + os.environ["GRPC_PORT"])
    server.start()
""")
"""Answers the gRPC health check by the real library."""


class SystemClock:
    """The real present."""

    def now(self) -> datetime:
        return datetime.now(UTC)


def wait_for(is_true: Callable[[], object], within_s: float = LIMIT_S) -> None:
    """Look until it is true; fails the test when it takes too long."""
    until = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < until, f"did not come true within {within_s} s"
        time.sleep(0.005)


def lives(pid: int) -> bool:
    """Whether a process of that number lives."""
    process = runner.read_process(pid)
    return process is not None and process.state not in "ZX"


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    process = runner.read_process(pid)
    return process.cpu_s if process else 0.0


def throttled(group: Path) -> int:
    """How many times the kernel held a control group back for its CPU limit."""
    lines = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
    return int(lines["nr_throttled"])


def tail(bench: ProcessBench, name: str) -> str:
    """The last lines of a log, read from far behind its dropped middle."""
    text, offset = "", 1 << 30
    while not (chunk := bench.replicas.log(name, offset=offset)).at_end:
        offset = chunk.next_offset
        text = chunk.text
    return text + chunk.text


class ProcessBench:
    """A location root whose servers are puppets."""

    def __init__(self, root: Path) -> None:
        clock = SystemClock()
        nodes = ProcessNodes("local", clock, declared_slots=1)
        self.root = root
        self.replicas = ProcessReplicas(root / "serving", clock, device_use=nodes.device_use)
        self.trainings = ProcessWorkloads(root, clock, device_use=nodes.device_use)

    def spec(self, *, number: int = 1, **changes: object) -> ReplicaSpec:
        name = replica_name(REVISION, number)
        self.puppet(name).mkdir(exist_ok=True)
        spec = ReplicaSpec(
            name=name,
            revision=REVISION,
            service="inf-digits-001",
            image=sys.prefix,
            code=str(Path(__file__).parent),
            model=str(self.root / "model"),
            model_name="digits",
            model_version=1,
            argv=(SERVER,),
            log=self.replicas.log_location(name),
            probes=Probes(startup=STARTUP, readiness=READINESS),
            environment={"PUPPET": str(self.puppet(name))},
            backoff=timedelta(seconds=0.5),
            settled=timedelta(minutes=10),
        )
        return replace(spec, **changes)  # type: ignore[arg-type]

    def puppet(self, name: str) -> Path:
        """Where its server finds its orders."""
        return self.root / name

    def hold(self, name: str) -> None:
        self.puppet(name).mkdir(exist_ok=True)
        (self.puppet(name) / "hold").touch()

    def release(self, name: str) -> None:
        (self.puppet(name) / "hold").unlink()

    def unready(self, name: str) -> None:
        (self.puppet(name) / "unready").touch()

    def ready(self, name: str) -> None:
        (self.puppet(name) / "unready").unlink()

    def crash(self, name: str, code: int) -> None:
        self._order(name, "crash", str(code))

    def crash_always(self, name: str) -> None:
        (self.puppet(name) / "broken").touch()

    def lose(self, name: str) -> None:
        self.kill(name, "guard")
        self.kill(name, "runner")

    def say(self, name: str, text: str) -> None:
        self._order(name, "say", text)
        wait_for(lambda: text in self.replicas.log(name).text)

    def ignore_term(self, name: str) -> None:
        (self.puppet(name) / "deaf").touch()
        wait_for((self.puppet(name) / "deaf.obeyed").exists)

    def pass_time(self, duration: timedelta) -> None:
        """Real time passes by itself; ``until`` waits for what is due."""

    def until(self, name: str, state: ReplicaState, *, starts: int = 1) -> ReplicaSeen:
        found: list[ReplicaSeen] = []

        def is_there() -> bool:
            seen = self.replicas.look(name)
            found[:] = [seen]
            return seen.state is state and seen.starts >= starts

        wait_for(is_there)
        return found[0]

    def run(self, **changes: object) -> str:
        """Prepare and grant; the name."""
        self.replicas.prepare(self.spec(**changes))  # type: ignore[arg-type]
        self.replicas.resume(NAME, grant())
        return NAME

    def unready_from_the_start(self, name: str) -> None:
        """Its path ``/ready`` never answers 200."""
        self.puppet(name).mkdir(exist_ok=True)
        self.unready(name)

    def prepare_without_groups(self, spec: ReplicaSpec) -> None:
        """A name that no control group can have: the runner must keep the limits by itself."""
        self.replicas.prepare(spec)
        order = self.file(spec.name, runner.ORDER)
        self.replicas.stop(spec.name, grace=timedelta(0), why="")
        folder = self.root / "serving" / "replicas" / spec.name
        folder.mkdir()
        runner.write_json(str(folder / runner.ORDER), {**order, "name": "no/such/group"})
        self.replicas.prepare(spec)

    def file(self, name: str, file: str) -> Mapping[str, object]:
        """What a file of its folder holds."""
        return dict(json.loads((self.root / "serving" / "replicas" / name / file).read_text()))

    def pid(self, name: str) -> int:
        """Its server's process number."""
        return int(str(self.file(name, runner.STARTED)["pid"]))

    def kill(self, name: str, part: str) -> None:
        """KILL to its runner or its guard."""
        who = self.file(name, runner.RUNNER)[part]
        assert isinstance(who, dict)
        os.kill(who["pid"], signal.SIGKILL)
        wait_for(lambda: not runner.is_alive(who))

    def clean(self) -> None:
        """Leave no process behind."""
        for name in self.replicas.names():
            self.replicas.stop(name, grace=timedelta(0), why="the test is over")
        over = (ReplicaState.ABSENT, ReplicaState.EXITED, ReplicaState.LOST)
        wait_for(lambda: all(self.replicas.look(name).state in over for name in self.replicas.names()))
        self.replicas.end_orphans()
        wait_for(lambda: not self.replicas._marked())

    def _order(self, name: str, verb: str, what: str) -> None:
        draft = self.puppet(name) / f".{verb}"
        draft.write_text(what, encoding="utf-8")
        draft.rename(self.puppet(name) / verb)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[ProcessBench]:
    made = ProcessBench(tmp_path)
    yield made
    made.clean()


class TestProcessReplicas(ReplicasContract):
    """The contract."""


# --- violence ---------------------------------------------------------------------------------------------------------


def test_a_killed_server_is_executed_again_at_once_and_soon_ready(
    bench: ProcessBench, record_property: Callable[[str, object], None]
) -> None:
    first = bench.until(bench.run(), ReplicaState.READY)
    assert first.exec_at is not None
    assert first.ready_at is not None
    cold_s = (first.ready_at - first.exec_at).total_seconds()
    restarts, readies = [], []
    for starts in (2, 3):
        before = datetime.now(UTC)
        os.kill(bench.pid(NAME), signal.SIGKILL)
        seen = bench.until(NAME, ReplicaState.READY, starts=starts)
        assert seen.started_at is not None
        assert seen.ready_at is not None
        restarts.append((seen.started_at - before).total_seconds())
        readies.append((seen.ready_at - before).total_seconds())
        assert seen.last_exit is not None
        assert (seen.last_exit.cause, seen.last_exit.signal) == (ExitCause.SIGNALLED, signal.SIGKILL)
        assert "SIGKILL" in seen.last_exit.detail

    record_property("seconds", {"cold": cold_s, "restart": restarts, "ready": readies})
    assert restarts[0] < 1  # the second waits for its backoff
    assert readies[0] < 1.5 * cold_s + 0.5


@pytest.fixture
def placed(tmp_path: Path) -> FileEntry:
    """A model's file where the bench's servers are told that their model lies, as a cache places it."""
    file = tmp_path / "model" / "weights.bin"
    file.parent.mkdir()
    put(file, b"as published")
    return FileEntry(path=file.name, size=12, sha256=hashlib.sha256(b"as published").hexdigest())


def put(file: Path, content: bytes) -> None:
    """One rename, as the cache puts a file right."""
    draft = file.with_suffix(".draft")
    draft.write_bytes(content)
    os.utime(draft, (PLACED_AT, PLACED_AT))
    draft.rename(file)


def test_a_server_is_not_started_again_from_a_changed_file_and_is_once_that_is_put_right(
    bench: ProcessBench, placed: FileEntry
) -> None:
    name = bench.run(model_files=(placed,))
    bench.until(name, ReplicaState.READY)
    file = bench.root / "model" / placed.path
    file.write_bytes(b"AS published")
    assert bench.replicas.look(name).state is ReplicaState.READY, "a running server goes on"

    os.kill(bench.pid(name), signal.SIGKILL)
    seen = bench.until(name, ReplicaState.BACKING_OFF, starts=2)
    assert seen.last_exit is not None
    assert seen.last_exit.cause is ExitCause.NEVER_STARTED
    assert "file 'weights.bin' of its model is not what was published" in seen.detail

    put(file, b"as published")
    bench.until(name, ReplicaState.READY, starts=3)


@pytest.mark.parametrize("change", ["gone", "longer", "a link"])
def test_a_server_that_waited_for_its_grant_is_not_started_from_other_files(
    bench: ProcessBench, placed: FileEntry, change: str
) -> None:
    bench.replicas.prepare(bench.spec(model_files=(placed,)))
    file = bench.root / "model" / placed.path
    if change == "longer":
        put(file, b"as published, and more")
    else:
        file.unlink()
    if change == "a link":
        (bench.root / "elsewhere").write_bytes(b"as published")
        file.symlink_to(bench.root / "elsewhere")
    bench.replicas.resume(NAME, grant())
    assert "not what was published" in bench.until(NAME, ReplicaState.BACKING_OFF).detail


def test_a_file_that_was_only_touched_is_read_and_served(bench: ProcessBench, placed: FileEntry) -> None:
    os.utime(bench.root / "model" / placed.path)
    bench.until(bench.run(model_files=(placed,)), ReplicaState.READY)


def test_a_killed_runner_is_followed_by_another_one_with_the_same_grant(bench: ProcessBench) -> None:
    name = bench.run(memory_mib=500, cpus=1.5)
    first = bench.until(name, ReplicaState.READY)
    bench.say(name, "before")
    groups = bench.file(name, runner.STARTED)["cgroups"]
    server, guard = bench.pid(name), bench.file(name, runner.RUNNER)["guard"]
    bench.kill(name, "runner")

    seen = bench.until(name, ReplicaState.READY, starts=2)
    assert not lives(server)
    assert bench.file(name, runner.RUNNER)["guard"] == guard
    assert (seen.token, seen.exec_at, seen.endpoints) == (first.token, first.exec_at, first.endpoints)
    assert bench.file(name, runner.STARTED)["devices"] == ["slot-0"]
    assert seen.last_exit is not None
    assert "its runner was killed" in seen.last_exit.detail
    assert not any(Path(group).exists() for group in groups)  # type: ignore[attr-defined]
    bench.say(name, "after")
    text = bench.replicas.log(name).text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    bench.crash(name, 0)
    bench.until(name, ReplicaState.READY, starts=3)


def test_a_killed_guard_does_not_disturb_the_replica(bench: ProcessBench) -> None:
    name = bench.run()
    bench.until(name, ReplicaState.READY)
    bench.kill(name, "guard")
    bench.crash(name, 0)

    assert bench.until(name, ReplicaState.READY, starts=2).token == 1


def test_a_replica_without_runner_and_guard_is_lost_and_what_is_left_of_it_can_be_ended(bench: ProcessBench) -> None:
    name = bench.run(argv=("python", "-c", f"{ESCAPE}import runpy; runpy.run_path({SERVER!r})"))
    bench.until(name, ReplicaState.READY)
    server, child = bench.pid(name), int(bench.replicas.log(name).text.split()[0])
    assert bench.replicas.orphans() == []
    bench.lose(name)

    bench.until(name, ReplicaState.LOST)
    wait_for(lambda: not lives(server))
    wait_for(lambda: len(bench.replicas.orphans()) == 1)
    assert f"pid {child} of replica {name}" in bench.replicas.orphans()[0]
    seen = bench.replicas.look(name)
    assert str(child) in seen.detail
    assert (seen.orphans, seen.is_gone) == (1, False)  # its GPU is not free
    assert bench.trainings.orphans() == []
    assert bench.trainings.end_orphans() == 0
    assert bench.replicas.end_orphans() == 1
    assert not lives(child)
    assert bench.replicas.look(name).is_gone
    bench.replicas.prepare(bench.spec())
    bench.replicas.resume(name, grant())
    assert bench.replicas.look(name).state is ReplicaState.LOST  # whether it comes back is not decided here


def test_a_suspended_replica_survives_the_kill_of_its_runner(bench: ProcessBench) -> None:
    bench.replicas.prepare(bench.spec())
    before = bench.file(NAME, runner.RUNNER)
    bench.kill(NAME, "runner")
    wait_for(lambda: bench.file(NAME, runner.RUNNER) != before)
    assert bench.until(NAME, ReplicaState.SUSPENDED, starts=0).token is None
    bench.replicas.resume(NAME, grant(3))

    assert bench.until(NAME, ReplicaState.READY).token == 3


def test_a_runner_killed_while_it_stops_leaves_a_record_all_the_same(bench: ProcessBench) -> None:
    name = bench.run()
    bench.until(name, ReplicaState.READY)
    bench.ignore_term(name)
    bench.replicas.stop(name, grace=timedelta(minutes=10), why="scaled down")
    bench.kill(name, "runner")

    seen = bench.until(name, ReplicaState.EXITED)
    assert seen.exit is not None
    assert (seen.exit.cause, seen.exit.detail, seen.starts) == (ExitCause.STOPPED, "scaled down", 1)


def test_a_runner_that_is_told_to_end_stops_its_server_and_has_no_successor(bench: ProcessBench) -> None:
    name = bench.run()
    bench.until(name, ReplicaState.READY)
    who = bench.file(name, runner.RUNNER)
    for process in bench.replicas._marked():  # as `fermion down` does
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)

    seen = bench.until(name, ReplicaState.EXITED)
    assert seen.exit is not None
    assert seen.exit.cause is ExitCause.STOPPED
    wait_for(lambda: not any(runner.is_alive(dict(part)) for part in who.values()))  # type: ignore[call-overload]


def test_fermion_down_finds_replicas_as_well_as_trainings(bench: ProcessBench, tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "work").mkdir(parents=True)
    (state / "work" / "serving").symlink_to(bench.root / "serving")
    name = bench.run()
    bench.until(name, ReplicaState.READY)

    found = find(PlatformLayout(root=tmp_path, state=state))
    assert found.workload_names == {name}
    assert bench.pid(name) in {process.pid for process in found.workloads}


def test_a_replica_whose_folder_was_deleted_by_hand_is_ended(bench: ProcessBench) -> None:
    name = bench.run()
    bench.until(name, ReplicaState.READY)
    server, folder = bench.pid(name), bench.root / "serving" / "replicas" / name
    wait_for(lambda: shutil.rmtree(folder, ignore_errors=True) or not folder.exists())

    wait_for(lambda: not lives(server))
    wait_for(lambda: not bench.replicas._marked())
    assert bench.replicas.look(name).state is ReplicaState.ABSENT


@pytest.mark.parametrize("how", ["started again", "stopped"])
def test_no_descendant_outlives_its_server(bench: ProcessBench, how: str) -> None:
    name = bench.run(argv=("python", "-c", f"{ESCAPE}import runpy; runpy.run_path({SERVER!r})"))
    bench.until(name, ReplicaState.READY)
    child = int(bench.replicas.log(name).text.split()[0])
    assert lives(child)
    if how == "stopped":
        bench.replicas.stop(name, grace=timedelta(minutes=10), why="scaled down")
        bench.until(name, ReplicaState.EXITED)
    else:
        bench.crash(name, 1)
        bench.until(name, ReplicaState.READY, starts=2)
    assert not lives(child)


def test_a_command_that_cannot_be_executed_waits_for_its_next_try_and_says_why(bench: ProcessBench) -> None:
    name = bench.run(argv=("no-such-program",))
    seen = bench.until(name, ReplicaState.BACKING_OFF, starts=2)
    assert seen.exec_at is None
    assert seen.last_exit is not None
    assert seen.last_exit.cause is ExitCause.NEVER_STARTED
    assert "no-such-program" in seen.detail
    bench.replicas.stop(name, grace=timedelta(0), why="gave up")
    bench.until(name, ReplicaState.EXITED)


def test_a_log_that_cannot_be_written_ends_the_replica(bench: ProcessBench) -> None:
    seen = bench.until(bench.run(log="/proc/nowhere/serve.log"), ReplicaState.EXITED, starts=0)
    assert seen.exit is not None
    assert seen.exit.cause is ExitCause.NEVER_STARTED
    assert "/proc/nowhere" in seen.exit.detail


def test_one_that_has_settled_starts_again_at_once_whatever_was_before(bench: ProcessBench) -> None:
    name = bench.run(settled=timedelta(0), backoff=timedelta(minutes=10))
    for starts in (2, 3, 4):
        bench.until(name, ReplicaState.READY, starts=starts - 1)
        bench.crash(name, 1)
    bench.until(name, ReplicaState.READY, starts=4)


# --- limits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keeper", ["control group", "runner"])
def test_crossing_the_memory_limit_starts_it_again_and_says_so(bench: ProcessBench, keeper: str) -> None:
    spec = bench.spec(argv=("python", "-c", f"{GLUTTON}import runpy; runpy.run_path({SERVER!r})"), memory_mib=120)
    if keeper == "control group":
        group = runner.Cgroup.create("probe", 64 * 1024 * 1024)
        if group is None:
            pytest.skip("no control group with a memory limit may be made here")
        group.close()
        bench.replicas.prepare(spec)
    else:
        bench.prepare_without_groups(spec)
    bench.replicas.resume(NAME, grant(5))
    bench.until(NAME, ReplicaState.READY)
    (bench.puppet(NAME) / "eat").touch()

    seen = bench.until(NAME, ReplicaState.READY, starts=2)
    assert seen.token == 5
    assert seen.last_exit is not None
    assert seen.last_exit.cause is ExitCause.OUT_OF_MEMORY
    assert "of the 120 MiB" in seen.last_exit.detail
    assert ("the kernel ended it" if keeper == "control group" else "the runner ended it") in seen.last_exit.detail
    left = bench.file(NAME, runner.STARTED)["cgroups"]
    bench.replicas.stop(NAME, grace=timedelta(0), why="seen enough")
    bench.until(NAME, ReplicaState.EXITED)
    bench.replicas.remove(NAME)
    assert not any(Path(group).exists() for group in left)  # type: ignore[attr-defined]


@pytest.mark.parametrize("keeper", ["control group", "affinity"])
def test_the_cpu_limit_is_kept(bench: ProcessBench, keeper: str) -> None:
    spec = bench.spec(argv=("python", "-c", f"{BUSY}import runpy; runpy.run_path({SERVER!r})"), cpus=0.4)
    if keeper == "control group":
        bench.replicas.prepare(spec)
    else:
        bench.prepare_without_groups(spec)
    bench.replicas.resume(NAME, grant())
    bench.until(NAME, ReplicaState.READY)
    if bench.file(NAME, runner.STARTED)["cpu_kept_by"] != keeper:
        pytest.skip("no control group with a CPU limit may be made here")
    if keeper == "affinity":
        assert len(os.sched_getaffinity(bench.pid(NAME))) == 1
        return
    group = Path(bench.file(NAME, runner.STARTED)["cgroups"][-1])  # type: ignore[index]
    assert str(bench.pid(NAME)) in (group / "cgroup.procs").read_text().split()
    before, began = cpu_s(bench.pid(NAME)), time.monotonic()
    wait_for(lambda: throttled(group) >= 10)  # a busy machine would also slow it down: the kernel says who did
    assert (cpu_s(bench.pid(NAME)) - before) / (time.monotonic() - began) < 0.4 * 1.4
    wait_for(lambda: 0 < (bench.replicas.look(NAME).usage.cpu_cores or 0) < 0.7)  # type: ignore[union-attr]


def test_use_is_measured_over_all_processes_and_devices_are_asked_for(bench: ProcessBench) -> None:
    asked: list[Sequence[str]] = []

    def use(devices: Sequence[str]) -> DeviceUse:
        asked.append(tuple(devices))
        return DeviceUse(0.5, 1024.0)

    replicas = ProcessReplicas(bench.root / "serving", SystemClock(), device_use=use)
    replicas.prepare(bench.spec())
    one = Grant(token=1, slices=(Slice("here", ("GPU-a",)),), devices_are_declared=False)
    replicas.resume(NAME, one)
    wait_for(lambda: (seen := replicas.look(NAME).usage) is not None and (seen.memory_mib or 0) > 5)

    usage = replicas.look(NAME).usage
    assert usage is not None
    assert (usage.gpu_utilisation, usage.gpu_memory_mib, usage.gpu_reason) == (0.5, 1024.0, None)
    assert set(asked) == {("GPU-a",)}


def test_a_flood_of_output_neither_delays_the_probes_nor_fills_the_disk(bench: ProcessBench) -> None:
    limit = 4 * 1024 * 1024
    name = bench.run(
        argv=("python", "-c", f"{FLOOD}import runpy; runpy.run_path({SERVER!r})"),
        log_limit=limit,
        probes=Probes(
            startup=STARTUP,
            readiness=replace(READINESS, timeout=timedelta(seconds=5)),
            liveness=replace(READINESS, path="/live", timeout=timedelta(seconds=5)),
        ),
    )
    bench.until(name, ReplicaState.READY)
    (bench.puppet(name) / "flood").touch()
    wait_for(lambda: "the end of it" in tail(bench, name), within_s=90)

    seen = bench.replicas.look(name)
    assert (seen.state, seen.starts) == (ReplicaState.READY, 1)
    log = Path(bench.replicas.log_location(name))
    assert sum(path.stat().st_size for path in log.parent.iterdir()) < limit + 64 * 1024
    began = time.monotonic()
    bench.replicas.stop(name, grace=timedelta(minutes=10), why="seen enough")
    bench.until(name, ReplicaState.EXITED)
    assert time.monotonic() - began < 5
    assert log.read_text().count("bytes dropped here") == 1


# --- what the server finds --------------------------------------------------------------------------------------------


def test_the_server_finds_its_model_and_its_ports_and_no_secret(
    bench: ProcessBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "hidden")
    source = (
        "import json, os, sys, time; print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd(), sys.executable]))"
    )
    places = ("--http={port:http}", "{port:grpc}", "{model_dir}", '{"a": 1}', "{model_name}/{model_version}")
    name = bench.run(
        argv=("python", "-c", f"{source}; time.sleep(60)", *places),
        ports=("http", "grpc"),
        environment={"MLSERVER_HTTP_PORT": "{port:http}", "FERMION_REPLICA": "spoofed"},
        probes=Probes(),
    )
    seen = bench.until(name, ReplicaState.READY)
    wait_for(lambda: bench.replicas.log(name).text.endswith("\n"))

    argv, env, cwd, executable = json.loads(bench.replicas.log(name).text)
    http, grpc = str(seen.endpoints["http"].port), str(seen.endpoints["grpc"].port)
    model = str(bench.root / "model")
    assert argv == [f"--http={http}", grpc, model, '{"a": 1}', "digits/1"]
    assert (env["PORT"], env["HTTP_PORT"], env["GRPC_PORT"], env["MLSERVER_HTTP_PORT"]) == (http, http, grpc, http)
    assert (env["FERMION_MODEL_DIR"], env["FERMION_MODEL_NAME"], env["FERMION_MODEL_VERSION"]) == (model, "digits", "1")
    assert (env["FERMION_SERVICE"], env["FERMION_REVISION"]) == ("inf-digits-001", REVISION)
    assert (env["FERMION_REPLICA"], env["FERMION_WORKLOAD"]) == (name, name)
    assert (env["FERMION_DEVICES"], env["FERMION_DEVICES_DECLARED"]) == ("slot-0", "1")
    assert "CUDA_VISIBLE_DEVICES" not in env
    assert "hidden" not in env.values()
    folder = bench.root / "serving" / "replicas" / name
    assert (env["HOME"], env["TMPDIR"]) == (str(folder / "home"), str(folder / "tmp"))
    assert cwd == str(Path(__file__).parent)
    assert executable == f"{sys.prefix}/bin/python"
    assert http != grpc
    assert seen.endpoints["http"].host == "127.0.0.1"


def test_a_server_whose_port_was_taken_gets_another_one(bench: ProcessBench) -> None:
    bench.hold(NAME)
    bench.run()
    first = bench.until(NAME, ReplicaState.STARTING).endpoints["http"].port
    with socket.create_server(("127.0.0.1", first)):
        os.replace(bench.puppet(NAME) / "hold", bench.puppet(NAME) / "unready")  # it runs into the taken port now
        second = bench.until(NAME, ReplicaState.UNREADY, starts=2).endpoints["http"].port
    assert second != first


def test_everything_that_does_not_go_together_is_said_at_once(bench: ProcessBench) -> None:
    spec = bench.spec(
        argv=("server", "--port={port:metrics}"),
        probes=Probes(
            startup=Probe(kind=ProbeKind.EXEC, period=timedelta(0)),
            readiness=Probe(kind=ProbeKind.GRPC, port="grpc"),
            liveness=Probe(kind=ProbeKind.HTTP, path="live", failure_threshold=0),
        ),
        cpus=0.0,
        memory_mib=-1,
    )
    with pytest.raises(DriverCannot) as refused:
        bench.replicas.prepare(spec)
    for words in (
        "names port 'metrics' and has 'http'",
        "names port 'grpc'",
        "startup probe has no command",
        "startup probe has a period",
        "path 'live'",
        "liveness probe has a threshold below 1",
        "0 cpus",
        "-1 MiB",
    ):
        assert words in str(refused.value)
    assert bench.replicas.names() == []


# --- probes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        pytest.param(Probe(kind=ProbeKind.TCP), Probe(kind=ProbeKind.TCP, port="other"), id="tcp"),
        pytest.param(Probe(kind=ProbeKind.HTTP, path="/x"), Probe(kind=ProbeKind.HTTP, path="/ready"), id="http"),
        pytest.param(
            Probe(kind=ProbeKind.EXEC, command=("sh", "-c", 'test "$PORT" = {port:http}')),
            Probe(kind=ProbeKind.EXEC, command=("sleep", "60"), timeout=timedelta(seconds=0.2)),
            id="a command",
        ),
        pytest.param(
            Probe(kind=ProbeKind.GRPC, port="grpc", path="good"),
            Probe(kind=ProbeKind.GRPC, port="grpc", path="bad"),
            id="grpc",
        ),
        pytest.param(
            Probe(kind=ProbeKind.GRPC, port="grpc"), Probe(kind=ProbeKind.GRPC, port="http"), id="grpc asked of another"
        ),
    ],
)
@pytest.mark.parametrize("is_good", [True, False], ids=["succeeds", "fails"])
def test_each_kind_of_probe_tells_a_ready_server_from_another(
    bench: ProcessBench, good: Probe, bad: Probe, is_good: bool
) -> None:
    readiness = replace(good if is_good else bad, period=OFTEN, failure_threshold=2)
    bench.unready_from_the_start(NAME)
    name = bench.run(
        argv=("python", "-c", f"{HEALTH}import runpy; runpy.run_path({SERVER!r})"),
        ports=("http", "grpc", "other"),
        probes=Probes(startup=STARTUP, readiness=readiness),
    )
    seen = bench.until(name, ReplicaState.READY if is_good else ReplicaState.UNREADY)
    assert seen.starts == 1
    assert bool(seen.detail) is not is_good


def test_a_server_that_does_not_live_is_started_again_and_the_probe_says_why(bench: ProcessBench) -> None:
    name = bench.run(
        probes=Probes(
            startup=STARTUP,
            liveness=Probe(kind=ProbeKind.HTTP, path="/live", period=OFTEN, failure_threshold=2),
        )
    )
    bench.until(name, ReplicaState.READY)
    (bench.puppet(name) / "not_live").touch()
    seen = bench.until(name, ReplicaState.READY, starts=2)
    (bench.puppet(name) / "not_live").unlink()
    assert seen.last_exit is not None
    assert "liveness probe failed 2 times in a row: GET /live" in seen.last_exit.detail
    assert "answered 503" in seen.last_exit.detail


def test_a_frozen_server_is_killed_when_its_drain_is_over(bench: ProcessBench) -> None:
    often = Probe(kind=ProbeKind.HTTP, period=OFTEN, timeout=timedelta(seconds=0.3), failure_threshold=2)
    name = bench.run(probes=Probes(startup=STARTUP, readiness=often, liveness=often), drain=timedelta(seconds=0.3))
    bench.until(name, ReplicaState.READY)
    os.kill(bench.pid(name), signal.SIGSTOP)
    bench.until(name, ReplicaState.UNREADY)
    seen = bench.until(name, ReplicaState.READY, starts=2)
    assert seen.last_exit is not None
    assert seen.last_exit.signal == signal.SIGKILL
    assert "no answer within 0.3 s" in seen.last_exit.detail


def test_a_server_that_never_starts_is_started_again(bench: ProcessBench) -> None:
    bench.hold(NAME)
    startup = Probe(kind=ProbeKind.TCP, period=OFTEN, failure_threshold=3)
    bench.run(probes=Probes(startup=startup, readiness=READINESS))
    seen = bench.until(NAME, ReplicaState.STARTING, starts=2)
    assert seen.last_exit is not None
    assert "startup probe failed 3 times in a row" in seen.last_exit.detail
    assert "nothing listens there" in seen.last_exit.detail


def test_a_replica_that_nobody_asks_is_ready_while_it_lives(bench: ProcessBench) -> None:
    bench.hold(NAME)
    seen = bench.until(bench.run(probes=Probes()), ReplicaState.READY)
    assert seen.ready_at is not None
