"""URLs, and what the drivers' errors become."""

from __future__ import annotations

import sqlite3

import psycopg
import pytest
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from fermion.adapters.sql import open_store
from fermion.adapters.sql.engines import parse_url
from fermion.adapters.sql.link import translate
from fermion.errors import Conflict, FermionError, NotFound, OutsideBroken, OutsideUnavailable, SettingsInvalid


def sqlite_error(name: str, kind: type[sqlite3.Error] = sqlite3.OperationalError) -> sqlite3.Error:
    """As the driver raises it."""
    error = kind(f"it says {name}")
    error.sqlite_errorcode = getattr(sqlite3, name)
    error.sqlite_errorname = name
    return error


def postgres_error(state: str) -> psycopg.Error:
    """As the driver raises it."""
    return psycopg.errors.lookup(state)("it says so")


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        pytest.param(sqlite_error("SQLITE_BUSY"), OutsideUnavailable, id="locked"),
        pytest.param(sqlite_error("SQLITE_BUSY_SNAPSHOT"), OutsideUnavailable, id="locked, the long code"),
        pytest.param(sqlite_error("SQLITE_LOCKED"), OutsideUnavailable, id="locked within the process"),
        pytest.param(sqlite_error("SQLITE_FULL"), OutsideUnavailable, id="disk full"),
        pytest.param(sqlite_error("SQLITE_IOERR"), OutsideUnavailable, id="disk error"),
        pytest.param(sqlite_error("SQLITE_CANTOPEN"), OutsideUnavailable, id="no such folder"),
        pytest.param(sqlite_error("SQLITE_READONLY"), OutsideBroken, id="a write in a view"),
        pytest.param(sqlite_error("SQLITE_ERROR"), OutsideBroken, id="a wrong statement"),
        pytest.param(sqlite_error("SQLITE_CORRUPT", sqlite3.DatabaseError), OutsideBroken, id="corrupt"),
        pytest.param(sqlite_error("SQLITE_NOTADB", sqlite3.DatabaseError), OutsideBroken, id="no database"),
        pytest.param(psycopg.OperationalError("connection refused"), OutsideUnavailable, id="refused"),
        pytest.param(psycopg.errors.ConnectionTimeout("timeout"), OutsideUnavailable, id="no answer"),
        pytest.param(postgres_error("40001"), OutsideUnavailable, id="serialization"),
        pytest.param(postgres_error("40P01"), OutsideUnavailable, id="deadlock"),
        pytest.param(postgres_error("55P03"), OutsideUnavailable, id="lock timeout"),
        pytest.param(postgres_error("53300"), OutsideUnavailable, id="too many connections"),
        pytest.param(postgres_error("57P01"), OutsideUnavailable, id="shut down by an administrator"),
        pytest.param(postgres_error("57014"), OutsideUnavailable, id="statement timeout"),
        pytest.param(postgres_error("08006"), OutsideUnavailable, id="connection failure"),
        pytest.param(postgres_error("25006"), OutsideBroken, id="a write in a read-only transaction"),
        pytest.param(postgres_error("42P01"), OutsideBroken, id="no such table"),
        pytest.param(postgres_error("42601"), OutsideBroken, id="syntax"),
        pytest.param(postgres_error("23505"), Conflict, id="a duplicate"),
        pytest.param(sqlite_error("SQLITE_CONSTRAINT_UNIQUE", sqlite3.IntegrityError), Conflict, id="a duplicate row"),
        pytest.param(postgres_error("23503"), NotFound, id="a row that belongs to none"),
        pytest.param(
            sqlite_error("SQLITE_CONSTRAINT_FOREIGNKEY", sqlite3.IntegrityError),
            NotFound,
            id="a row that belongs to none, in SQLite",
        ),
        pytest.param(postgres_error("23502"), OutsideBroken, id="a missing value"),
    ],
)
def test_only_what_may_pass_is_unavailable(origin: Exception, expected: type[FermionError]) -> None:
    translated = translate(DBAPIError("SELECT secret", {"password": "hidden"}, origin))
    assert type(translated) is expected
    assert "secret" not in str(translated)
    assert "hidden" not in str(translated)


def test_a_connection_that_broke_under_a_statement_is_unavailable() -> None:
    error = OperationalError("SELECT 1", {}, postgres_error("42601"), connection_invalidated=True)
    assert type(translate(error)) is OutsideUnavailable


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(PoolTimeout("QueuePool limit"), OutsideUnavailable, id="no connection free"),
        pytest.param(ArgumentError("what is this"), OutsideBroken, id="a mistake of ours"),
        pytest.param(IntegrityError("x", {}, sqlite3.IntegrityError("NOT NULL")), OutsideBroken, id="a constraint"),
    ],
)
def test_other_errors(error: Exception, expected: type[FermionError]) -> None:
    assert type(translate(error)) is expected  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["postgres://h/d", "postgresql://h/d", "postgresql+psycopg://h/d"])
def test_every_spelling_of_postgres_means_one_driver(url: str) -> None:
    assert parse_url(url).drivername == "postgresql+psycopg"


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("", id="empty"),
        pytest.param("fermion.db", id="a path"),
        pytest.param("sqlite://", id="a database in memory"),
        pytest.param("sqlite:///:memory:", id="a database in memory by name"),
        pytest.param("mysql://user:hush@host/d", id="another server"),
        pytest.param("postgresql+asyncpg://user:hush@host/d", id="another driver"),
    ],
)
def test_a_url_that_cannot_hold_the_state_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(SettingsInvalid, match=r"use sqlite:////absolute/path.db or postgresql\+psycopg://") as refused:
        open_store(url)
    assert "hush" not in str(refused.value)


def test_opening_a_store_touches_nothing() -> None:
    open_store("sqlite:////nowhere/at/all.db")
    open_store("postgresql://user@203.0.113.1:1/nothing")
