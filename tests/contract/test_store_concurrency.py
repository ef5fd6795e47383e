"""The two databases under several threads and processes, killed processes, forks and a server that goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from builders import make_job, make_lease, seconds
from fermion.adapters.sql import migrate, open_store
from fermion.adapters.sql.store import SqlStore
from fermion.domain.records import Event
from fermion.errors import Conflict, OutsideUnavailable
from postgres import PostgresServer

DAY = date(2026, 3, 2)
LIMIT_S = 60

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(database_url: str) -> Iterator[Start]:
    """Start another process on the same database."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(Path(__file__).with_name("store_worker.py")), database_url, *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate(timeout=LIMIT_S)


def hear(process: subprocess.Popen[str]) -> str:
    """The next line that it says."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str]) -> None:
    """Let it go on."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


# --- ids, devices, versions -----------------------------------------------------------------------------------------


def test_fifty_threads_never_get_one_id_twice(database: SqlStore) -> None:
    def take(_: int) -> str:
        with database.begin() as tx:
            return tx.jobs.new_id(DAY)

    with ThreadPoolExecutor(50) as pool:
        taken = list(pool.map(take, range(200)))
    assert sorted(taken) == [f"job-20260302-{number:03d}" for number in range(1, 201)]


def test_processes_never_get_one_id_twice(start: Start, database: SqlStore) -> None:
    workers = [start("take_ids", "25") for _ in range(4)]
    taken = [line for worker in workers for line in worker.communicate(timeout=LIMIT_S)[0].split()]
    assert sorted(taken) == [f"job-20260302-{number:03d}" for number in range(1, 101)]
    with database.read() as tx:
        assert len(tx.jobs.find()) == 100


def test_of_processes_that_race_for_one_device_exactly_one_wins(start: Start, database: SqlStore) -> None:
    workers = [start("grab", f"lease-{number}") for number in range(4)]
    assert [hear(worker) for worker in workers] == ["ready"] * 4
    for worker in workers:
        tell(worker)
    assert sorted(hear(worker) for worker in workers) == ["lost", "lost", "lost", "won"]
    with database.read() as tx:
        assert len(tx.leases.live()) == 1
        assert sum(entry.gpus for entry in tx.leases.ledger()) == 1


def test_of_threads_that_race_for_overlapping_devices_no_device_is_held_twice(database: SqlStore) -> None:
    def grab(number: int) -> bool:
        try:
            with database.begin() as tx:
                tx.leases.add(make_lease(f"lease-{number}", gpus=4, first=number % 7))
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = sum(pool.map(grab, range(64)))
    with database.read() as tx:
        live = tx.leases.live()
    devices = [device for lease in live for part in lease.slices for device in part.devices]
    assert won == len(live) > 0
    assert len(devices) == len(set(devices))


def test_of_threads_that_save_one_version_exactly_one_wins(database: SqlStore) -> None:
    with database.begin() as tx:
        tx.jobs.add(make_job())

    def save(number: int) -> bool:
        with database.begin() as tx:
            return tx.jobs.save(make_job(attempt=number)) is not None

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(save, range(32))) == 1


def test_of_threads_that_submit_one_run_exactly_one_adds(database: SqlStore) -> None:
    def submit(number: int) -> bool:
        with database.begin() as tx:
            return tx.jobs.add(make_job(f"job-{number}", run=("train_model", "r1")))

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(submit, range(32))) == 1


def test_a_reader_that_follows_the_events_misses_none(database: SqlStore) -> None:
    """Numbers become visible in order, also when transactions that began earlier commit later."""
    done = threading.Event()

    def append(number: int) -> None:
        for step in range(20):
            with database.begin() as tx:
                tx.records.add_event(Event(actor="a", verb=f"{number}.{step}", target="t", at=make_job().submitted_at))
                if step % 3 == 0:
                    tx.records.events(limit=1)  # written early, committed later

    def follow() -> list[str]:
        seen: list[str] = []
        last = 0
        while True:
            ended = done.is_set()
            with database.read() as tx:
                page = tx.records.events(after=last)
            seen += [event.verb for _, event in page]
            last = page[-1][0] if page else last
            if ended and not page:
                return seen

    with ThreadPoolExecutor(9) as pool:
        follower = pool.submit(follow)
        list(pool.map(append, range(8)))
        done.set()
        seen = follower.result(timeout=LIMIT_S)
    assert sorted(seen) == sorted(f"{number}.{step}" for number in range(8) for step in range(20))


# --- locks and kills ------------------------------------------------------------------------------------------------


def test_a_lock_that_another_process_holds_keeps_us_out(start: Start, database: SqlStore) -> None:
    worker = start("hold", "admission")
    assert hear(worker) == "inside"
    entered = threading.Event()

    def enter() -> int:
        with database.begin(exclusive="admission") as tx:
            entered.set()
            return len(tx.jobs.find())

    with ThreadPoolExecutor(1) as pool:
        mine = pool.submit(enter)
        assert not entered.wait(0.3)
        tell(worker)
        assert mine.result(timeout=LIMIT_S) == 1


def test_a_lock_that_stays_held_ends_in_unavailable(
    start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fermion.adapters.sql.engines.PATIENCE_S", 1)
    worker = start("hold", "admission")
    assert hear(worker) == "inside"
    store = open_store(database_url)
    with pytest.raises(OutsideUnavailable, match="does not answer"), store.begin(exclusive="admission"):
        pass
    store.close()


def test_a_process_killed_inside_a_transaction_leaves_nothing_half(start: Start, database: SqlStore) -> None:
    worker = start("die_inside", "admission")
    assert hear(worker) == "inside"
    assert worker.wait(LIMIT_S) == -signal.SIGKILL
    with database.begin(exclusive="admission") as tx:
        assert tx.jobs.find() == []
        assert tx.leases.live() == []
        assert tx.leases.ledger() == []
        assert tx.records.events() == []
        assert tx.leases.next_token() == 1
        tx.leases.add(make_lease(gpus=4))


def test_another_process_wakes_us(start: Start, database: SqlStore) -> None:
    worker = start("ring", "gpus")
    assert hear(worker) == "ready"
    assert database.wait(["gpus"], timedelta(0)) is None
    tell(worker)
    assert database.wait(["gpus"], seconds(LIMIT_S)) == "gpus"


# --- forks ----------------------------------------------------------------------------------------------------------


Fork = Callable[[Callable[[], bool]], "Child"]


class Child:
    """A forked process that exits with 0 when its work answered True."""

    def __init__(self, work: Callable[[], bool]) -> None:
        self._pid = os.fork()
        if self._pid == 0:
            code = 2
            try:
                code = 0 if work() else 1
            finally:
                os._exit(code)

    def end(self, *, within_s: float = LIMIT_S) -> int:
        """Its exit code; one that does not end in time is killed."""
        until = time.monotonic() + within_s
        while self._pid:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._pid = 0
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= until:
                os.kill(self._pid, signal.SIGKILL)
            time.sleep(0.01)
        return 0


@pytest.fixture
def fork() -> Iterator[Fork]:
    """Fork a child; whatever becomes of the test, none is left."""
    children: list[Child] = []

    def start(work: Callable[[], bool]) -> Child:
        children.append(Child(work))
        return children[-1]

    yield start
    for child in children:
        child.end(within_s=0)


def test_a_forked_child_and_its_parent_share_no_connection(database: SqlStore, fork: Fork) -> None:
    def add(job_id: str) -> bool:
        with database.begin() as tx:
            return tx.jobs.add(make_job(job_id))

    database.wait(["gpus"], timedelta(0))
    assert add("job-parent")
    assert fork(lambda: add("job-child")).end() == 0
    assert add("job-parent-again")
    database.notify("gpus")
    assert database.wait(["gpus"], seconds(LIMIT_S)) == "gpus"
    with database.read() as tx:
        assert {job.id for job in tx.jobs.find()} == {"job-parent", "job-child", "job-parent-again"}


def test_a_child_and_its_parent_may_talk_at_the_same_time(database: SqlStore, fork: Fork) -> None:
    with database.read() as tx:  # leaves a connection in the pool that both could take
        tx.jobs.find()
    (heard, said), (go, let_go) = os.pipe(), os.pipe()

    def add_slowly() -> bool:
        with database.begin() as tx:
            added = tx.jobs.add(make_job())
            os.write(said, b"x")
            return bool(os.read(go, 1)) and added

    child = fork(add_slowly)
    assert os.read(heard, 1) == b"x"
    for _ in range(20):
        with database.read() as tx:
            assert tx.jobs.find() == []
    os.write(let_go, b"x")
    assert child.end() == 0
    with database.read() as tx:
        assert len(tx.jobs.find()) == 1


def test_a_child_forked_while_a_thread_writes_can_write_after_it(database: SqlStore, fork: Fork) -> None:
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with database.begin() as tx:
            tx.jobs.add(make_job("job-parent"))
            inside.set()
            leave.wait(LIMIT_S)

    def add() -> bool:
        with database.begin() as tx:
            return tx.jobs.add(make_job("job-child"))

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(hold)
        assert inside.wait(LIMIT_S)
        threading.Timer(0.2, leave.set).start()
        child = fork(add)
        held.result(timeout=LIMIT_S)
    assert child.end() == 0
    with database.read() as tx:
        assert {job.id for job in tx.jobs.find()} == {"job-parent", "job-child"}


def test_a_child_forked_inside_a_transaction_does_not_end_it(database: SqlStore, fork: Fork) -> None:
    with database.begin() as tx:
        tx.jobs.add(make_job())

        def look() -> bool:
            with database.read() as mine:
                return mine.jobs.find() == []

        assert fork(look).end() == 0
        tx.jobs.add(make_job("job-20260302-002"))
    with database.read() as tx:
        assert len(tx.jobs.find()) == 2


# --- outages --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that a test may stop and start."""
    with PostgresServer.running() as server:
        yield server


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["shut down", "crashed"])
def test_the_next_call_after_a_restart_of_the_server_works(own_server: PostgresServer, how: signal.Signals) -> None:
    url = own_server.new_database()
    migrate(url)
    store = open_store(url)
    store.wait(["gpus"], timedelta(0))
    with store.begin() as tx:  # leaves a connection in the pool that the restart will break
        tx.jobs.add(make_job())
    own_server.stop(how)
    own_server.start()
    with store.read() as tx:
        assert len(tx.jobs.find()) == 1
    with pytest.raises(OutsideUnavailable):  # a waiter is told that it may have missed something
        store.wait(["gpus"], seconds(LIMIT_S))
    store.wait(["gpus"], timedelta(0))
    store.notify("gpus")
    assert store.wait(["gpus"], seconds(LIMIT_S)) == "gpus"
    store.close()


def test_a_connection_that_the_server_ended_a_moment_ago_is_not_used_again(own_server: PostgresServer) -> None:
    url = own_server.new_database()
    migrate(url)
    store, other = open_store(url), open_store(url)
    with store.linked(read_only=False) as link:
        pid = link.scalar(text("SELECT pg_backend_pid()"))
    with store.linked(read_only=False) as link:
        assert link.scalar(text("SELECT pg_backend_pid()")) == pid, "the pool has one connection, used in turn"
    with other.linked(read_only=False) as link:
        assert link.scalar(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
    with store.read() as tx:
        assert tx.jobs.find() == []
    store.close()
    other.close()


def test_a_server_that_is_down_is_unavailable_and_a_transaction_it_took_along_left_nothing(
    own_server: PostgresServer,
) -> None:
    url = own_server.new_database()
    migrate(url)
    store = open_store(url)
    transaction = store.begin()
    transaction.__enter__().jobs.add(make_job())
    own_server.stop()
    try:
        with pytest.raises(OutsideUnavailable, match="does not answer"):
            transaction.__exit__(None, None, None)
        with pytest.raises(OutsideUnavailable, match="does not answer"), store.read():
            pass
        with pytest.raises(OutsideUnavailable):
            store.wait(["gpus"], seconds(LIMIT_S))
        with pytest.raises(OutsideUnavailable):
            store.check()
        store.notify("gpus")  # best effort: logged, not raised
    finally:
        own_server.start()
    with store.read() as tx:
        assert tx.jobs.find() == []
    store.close()


def test_transactions_that_lock_each_other_end_in_unavailable_for_one(postgres_url: str) -> None:
    store = open_store(postgres_url)
    with store.begin() as tx:
        tx.jobs.add(make_job("job-a"))
        tx.jobs.add(make_job("job-b"))
    both = threading.Barrier(2, timeout=LIMIT_S)

    def save(first: str, second: str) -> str:
        try:
            with store.begin() as tx:
                tx.jobs.save(make_job(first))
                both.wait()
                tx.jobs.save(make_job(second))
        except OutsideUnavailable as error:
            return str(error)
        return "saved"

    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(save, *names) for names in (("job-a", "job-b"), ("job-b", "job-a"))]
        ends = {task.result(timeout=LIMIT_S) for task in tasks}
    assert ends == {"saved", "the database does not answer: deadlock detected"}
    store.close()
