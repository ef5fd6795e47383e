"""Stores for the contract suite: the same tests on memory, SQLite and Postgres."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fermion.adapters.memory.store import MemoryStore
from fermion.adapters.sql import migrate, open_store
from fermion.adapters.sql.store import SqlStore
from postgres import PostgresServer

DATABASES = ["sqlite", "postgres"]


@pytest.fixture(scope="session")
def sqlite_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file to copy."""
    path = tmp_path_factory.mktemp("original") / "fermion.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_shared(postgres_server: PostgresServer) -> str:
    """A migrated database; one test after the other uses it."""
    url = postgres_server.new_database()
    migrate(url)
    return url


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_original: Path) -> str:
    """A migrated SQLite file of the test's own."""
    path = tmp_path / "fermion.db"
    shutil.copy(sqlite_original, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, postgres_shared: str) -> Iterator[str]:
    """A migrated Postgres database without rows."""
    yield postgres_shared
    postgres_server.empty_database(postgres_shared)


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest) -> str:
    """Each of the two databases."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[SqlStore]:
    """A store on each of the two databases."""
    store = open_store(database_url)
    yield store
    store.close()


@pytest.fixture
def postgres_store(postgres_url: str) -> Iterator[SqlStore]:
    """A store on Postgres."""
    store = open_store(postgres_url)
    yield store
    store.close()


@pytest.fixture(params=["memory", *DATABASES])
def store(request: pytest.FixtureRequest) -> Iterator[MemoryStore | SqlStore]:
    """Every store that keeps the port."""
    if request.param == "memory":
        yield MemoryStore()
        return
    opened = open_store(request.getfixturevalue(f"{request.param}_url"))
    yield opened
    opened.close()
