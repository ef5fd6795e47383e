"""Connections to the two databases: how they are opened, checked before use, and begun."""

from __future__ import annotations

import select
import time
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, InvalidatePoolError

from fermion.adapters.sql.json_text import from_json, to_json
from fermion.errors import SettingsInvalid

PATIENCE_S = 10
"""How long a transaction waits for a lock, a free connection or a server that is starting, before it gives up."""

TRUSTED_S = 1.0
"""A connection of the pool that was used within that time is used again without asking the server for a sign of life."""


def parse_url(url: str) -> URL:
    """The URL with its driver named.

    Raises:
        SettingsInvalid: it is not an SQLite file or a Postgres database.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise SettingsInvalid(f"the database URL cannot be read; {_FORMS}", what="database") from error
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername == "postgresql+psycopg":
        return parsed
    if parsed.drivername in {"sqlite", "sqlite+pysqlite"} and parsed.database not in {None, "", ":memory:"}:
        return parsed
    shown = parsed.render_as_string(hide_password=True)
    raise SettingsInvalid(f"the database URL {shown} is not one that the state can live in; {_FORMS}", what="database")


_FORMS = "use sqlite:////absolute/path.db or postgresql+psycopg://user:password@host:port/database."


def open_engine(url: URL, *, read_only: bool = False) -> Engine:
    """An engine with a small pool. Nothing connects yet. ``read_only`` matters on SQLite only."""
    if url.get_backend_name() == "sqlite":
        return _open_sqlite(url, read_only=read_only)
    return _open_postgres(url)


def begin_mode(mode: str) -> dict[str, Any]:
    """Execution options that choose how SQLite begins: ``DEFERRED`` (a view of one moment) or ``IMMEDIATE`` (to write)."""
    return {"fermion_begin": mode}


def _open_sqlite(url: URL, *, read_only: bool) -> Engine:
    engine = create_engine(
        url,
        json_serializer=to_json,
        json_deserializer=from_json,
        pool_size=8,
        max_overflow=56,
        pool_timeout=PATIENCE_S,
        # The driver's own, guessing, transaction control is off: "begin" below says exactly when one begins.
        connect_args={"timeout": PATIENCE_S, "isolation_level": None, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        # With the write-ahead log a killed process loses nothing; a power cut may lose the last commits, never a half one.
        connection.execute("PRAGMA synchronous = NORMAL")
        if read_only:
            connection.execute("PRAGMA query_only = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get("fermion_begin", "IMMEDIATE")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine


def _open_postgres(url: URL) -> Engine:
    engine = create_engine(
        url,
        json_serializer=to_json,
        json_deserializer=from_json,
        pool_size=5,
        max_overflow=20,
        pool_timeout=PATIENCE_S,
        pool_use_lifo=True,
        pool_recycle=1800,
        connect_args={"connect_timeout": PATIENCE_S, "application_name": "fermion"},
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        # A transaction whose program hangs must not hold its locks for ever.
        connection.autocommit = True
        connection.execute(
            f"SET lock_timeout = '{PATIENCE_S}s'; SET statement_timeout = '60s';"
            " SET idle_in_transaction_session_timeout = '120s'"
        )
        connection.autocommit = False

    _ask_before_use(engine)
    return engine


def _ask_before_use(engine: Engine) -> None:
    """Whether a pooled connection still lives is asked over the network only where that is in doubt: it was idle for some
    time, or the server has said something by itself, which it does when it ends one."""

    @event.listens_for(engine, "connect")
    @event.listens_for(engine, "checkin")
    def note(_connection: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def ask(connection: Any, record: Any, _proxy: object) -> None:
        idle_s = time.monotonic() - record.info["idle_since"]
        if idle_s < TRUSTED_S and not _has_spoken(connection.fileno()):
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError(str(error)) from error  # every idle one is as old: the pool opens another


def _has_spoken(socket: int) -> bool:
    waiting = select.poll()
    waiting.register(socket, select.POLLIN)
    return bool(waiting.poll(0))
