"""The own database on Debian's Postgres: every case of the store's contract suite, and restarts in the middle of use."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CONTRACT = HERE.parent / "contract"
sys.path[:0] = [str(HERE), str(CONTRACT)]

import missing  # noqa: E402
from debian_postgres import PASSWORD, DebianPostgres, PostgresMissing  # noqa: E402

from builders import make_job  # noqa: E402
from fermion.adapters.sql import migrate, open_store  # noqa: E402
from fermion.adapters.sql.store import SqlStore  # noqa: E402
from fermion.errors import OutsideUnavailable  # noqa: E402

pytestmark = [pytest.mark.components, pytest.mark.timeout(180)]

FIXTURES = {"start", "fork"}
SUITES = sorted(path.stem for path in CONTRACT.glob("test_store_*.py"))
for suite in SUITES:
    found = vars(importlib.import_module(suite))
    fixtures = {name: it for name, it in found.items() if name in FIXTURES}
    if twice := fixtures.keys() & globals().keys():
        raise RuntimeError(f"{suite} has fixtures that another suite has too: {', '.join(sorted(twice))}")
    # Suites may call a case alike: each keeps its suite's name.
    cases = {f"{name}_of_{suite}": it for name, it in found.items() if name.startswith("test_")}
    globals().update(fixtures | cases)


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[DebianPostgres]:
    try:
        with DebianPostgres.running() as server:
            yield server
    except PostgresMissing as error:
        missing.skip(str(error))


@pytest.fixture(scope="module")
def own_server(postgres_server: DebianPostgres) -> DebianPostgres:
    """One that a test may stop and start: the tests of this file follow one another."""
    return postgres_server


@pytest.fixture(scope="module")
def postgres_shared(postgres_server: DebianPostgres) -> str:
    url = postgres_server.new_database()
    migrate(url)
    return url


@pytest.fixture
def postgres_url(postgres_server: DebianPostgres, postgres_shared: str) -> Iterator[str]:
    yield postgres_shared
    postgres_server.empty_database(postgres_shared)


@pytest.fixture
def database_url(postgres_url: str) -> str:
    return postgres_url


@pytest.fixture
def database(postgres_url: str) -> Iterator[SqlStore]:
    store = open_store(postgres_url)
    yield store
    store.close()


@pytest.fixture
def postgres_store(database: SqlStore) -> SqlStore:
    return database


@pytest.fixture
def store(database: SqlStore) -> SqlStore:
    return database


def test_it_is_debians_server_and_asks_for_the_password(postgres_server: DebianPostgres, database: SqlStore) -> None:
    assert f"PostgreSQL {postgres_server.version}." in database.check()
    with pytest.raises(OutsideUnavailable) as caught:
        open_store(postgres_server.new_database().replace(PASSWORD, "another")).check()
    assert "password" in str(caught.value)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["shut down", "crashed"])
def test_writers_go_on_after_a_restart_and_what_was_committed_is_there(
    postgres_server: DebianPostgres, database: SqlStore, how: signal.Signals
) -> None:
    committed: list[str] = []
    refused: list[OutsideUnavailable] = []
    has_restarted, until = threading.Event(), time.monotonic() + 30

    def write(writer: int) -> None:
        number = after = 0
        while after < 3 and time.monotonic() < until:
            number, is_after = number + 1, has_restarted.is_set()
            job = make_job(f"job-{writer}-{number}")
            try:
                with database.begin() as tx:
                    tx.jobs.add(job)
            except OutsideUnavailable as error:
                refused.append(error)
                continue
            committed.append(job.id)
            after += is_after

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    while len(committed) < 20 and time.monotonic() < until:
        time.sleep(0.01)
    postgres_server.restart(how)
    has_restarted.set()
    for writer in writers:
        writer.join(60)

    assert refused, "the restart was in the middle of use"
    assert all(error.retryable for error in refused)
    with database.read() as tx:
        kept = {job.id for job in tx.jobs.find(limit=1_000_000)}
    assert set(committed) <= kept
    assert len([name for name in committed if name.startswith("job-0-")]) > 3, "a writer went on"
