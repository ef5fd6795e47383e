"""The schema: made from nothing, by several at once, and exactly the tables that the code believes in."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, text

from builders import make_job, make_lease, make_service
from fermion.adapters.sql import migrate, open_store
from fermion.adapters.sql.migrating import SCRIPTS
from fermion.adapters.sql.tables import REVISION, VERSION_TABLE, metadata
from fermion.domain.rollout.rollouts import FINAL
from fermion.domain.serving.services import REVISION_FINAL
from fermion.errors import OutsideBroken, OutsideUnavailable
from postgres import PostgresServer

LIMIT_S = 60


def scripts() -> list[str]:
    """The revisions that there are scripts for, the first one first."""
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    return [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]


REVISIONS = scripts()


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database in which nothing is yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/deep/folder/fermion.db"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    yield server.new_database()


@pytest.fixture
def migrated(empty_url: str) -> Iterator[Engine]:
    """An engine on a migrated database."""
    migrate(empty_url)
    engine = create_engine(empty_url)
    yield engine
    engine.dispose()


def test_an_empty_database_gets_the_schema_and_says_so(empty_url: str) -> None:
    assert migrate(empty_url) == REVISION
    store = open_store(empty_url)
    assert store.check().endswith(f"schema {REVISION}")
    store.close()


def test_migrating_again_changes_nothing(empty_url: str) -> None:
    migrate(empty_url)
    store = open_store(empty_url)
    with store.begin() as tx:
        assert tx.leases.next_token() == 1
    migrate(empty_url)
    with store.begin() as tx:
        assert tx.leases.next_token() == 2
    store.close()


def test_the_migrations_make_exactly_the_tables_of_the_code(migrated: Engine) -> None:
    options = {"compare_type": True, "compare_server_default": True, "version_table": VERSION_TABLE}
    with migrated.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


@pytest.mark.parametrize(
    ("index", "is_unique", "condition"),
    [
        pytest.param("ux_lease_devices_live", True, ["live"], id="a device is held once"),
        pytest.param("ux_services_open_name", True, ["closed_at IS NULL"], id="open services' names"),
        pytest.param("ux_services_open_prefix", True, ["closed_at IS NULL"], id="open services' prefixes"),
        pytest.param("ux_services_open_port", True, ["closed_at IS NULL"], id="open services' ports"),
        pytest.param("ix_revisions_open", False, sorted(REVISION_FINAL), id="open revisions"),
        pytest.param("ix_rollouts_open", False, sorted(FINAL), id="open rollouts"),
        pytest.param("ux_rollouts_open", True, sorted(FINAL), id="a service has one open rollout"),
    ],
)
def test_the_partial_indexes_are_limited_to_what_they_should(
    migrated: Engine, index: str, is_unique: bool, condition: list[str]
) -> None:
    """Alembic does not compare what an index is limited to, and these are what refuses a double grant or route."""
    catalog = {
        "sqlite": "SELECT sql FROM sqlite_master WHERE name = :index",
        "postgresql": "SELECT indexdef FROM pg_indexes WHERE indexname = :index",
    }
    with migrated.connect() as connection:
        definition = str(connection.scalar(text(catalog[migrated.dialect.name]), {"index": index}))
    assert ("UNIQUE" in definition) is is_unique
    limit = definition.partition("WHERE ")[2]
    assert (re.findall(r"'(\w+)'", limit) or [limit.strip("() ")]) == condition


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_an_upgrade_keeps_the_rows(empty_url: str, monkeypatch: pytest.MonkeyPatch, revision: str) -> None:
    with monkeypatch.context() as former:
        former.setattr("fermion.adapters.sql.migrating.REVISION", revision)
        assert migrate(empty_url) == revision
    store = open_store(empty_url)
    with store.begin() as tx:
        tx.jobs.add(make_job())
        tx.leases.add(make_lease(gpus=2))
    assert migrate(empty_url) == REVISION
    with store.begin() as tx:
        assert tx.jobs.find() == [make_job()]
        assert tx.leases.live() == [make_lease(gpus=2)]
        assert tx.services.add(make_service())
    store.close()


def test_the_newest_script_is_the_revision_that_the_code_names() -> None:
    assert REVISIONS[-1] == REVISION


def test_several_processes_that_migrate_at_once_all_succeed(empty_url: str) -> None:
    source = f"from fermion.adapters.sql import migrate; print(migrate({empty_url!r}))"
    processes = [
        subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    ends = [process.communicate(timeout=LIMIT_S) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, ends
    assert [out.strip() for out, _ in ends] == [REVISION] * 4


def test_several_threads_that_migrate_at_once_all_succeed(empty_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(migrate, [empty_url] * 4)) == [REVISION] * 4


def test_a_database_without_the_schema_says_what_to_do(empty_url: str, tmp_path: Path) -> None:
    (tmp_path / "deep/folder").mkdir(parents=True)
    store = open_store(empty_url)
    with pytest.raises(OutsideUnavailable, match=r"no schema of this program: run its migrations \(docs/state.md\)"):
        store.check()
    with pytest.raises(OutsideBroken, match="schema is not this program's"), store.read() as tx:
        tx.jobs.find()
    store.close()


def test_a_schema_of_another_program_version_says_both(migrated: Engine, empty_url: str) -> None:
    with migrated.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    store = open_store(empty_url)
    with pytest.raises(OutsideUnavailable, match=f"has schema 9999; this program needs {REVISION}"):
        store.check()
    store.close()


def test_a_migrated_sqlite_file_writes_ahead(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/fermion.db"
    migrate(url)
    engine = create_engine(url)
    with engine.connect() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
    engine.dispose()


def test_a_file_that_is_no_database_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "fermion.db"
    path.write_text("these are not the pages of a database " * 100)
    with pytest.raises(OutsideBroken, match="is not a database"):
        migrate(f"sqlite:///{path}")


def test_a_place_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(OutsideUnavailable, match="cannot be opened as a database"):
        migrate(f"sqlite:///{tmp_path}")
