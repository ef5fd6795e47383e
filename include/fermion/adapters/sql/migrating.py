"""Bringing the schema up to date with the Alembic scripts that lie in this package."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, text

from fermion.adapters.sql.engines import PATIENCE_S, open_engine, parse_url
from fermion.adapters.sql.link import translated
from fermion.adapters.sql.locks import lock_key
from fermion.adapters.sql.tables import REVISION
from fermion.errors import OutsideBroken, OutsideUnavailable

SCRIPTS = Path(__file__).parent / "migrations"


def migrate(url: str) -> str:
    """One transaction for all revisions, under a lock: SQLite's writing transaction, an advisory lock on Postgres."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        _prepare_file(parsed)
    engine = open_engine(parsed)
    try:
        with translated(), engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": lock_key("migrate")})
            command.upgrade(_configure(connection), REVISION)
    finally:
        engine.dispose()
    return REVISION


def _configure(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _prepare_file(url: URL) -> None:
    """Make the folder and turn on the write-ahead log, which the file keeps. SQLite does not wait for that by itself."""
    path = Path(str(url.database))
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + PATIENCE_S
    while not _has_wal(path):
        if time.monotonic() >= until:
            raise OutsideUnavailable(
                f"{path} stayed locked for {PATIENCE_S} s; the write-ahead log is not on", what="store"
            )
        time.sleep(0.05)


def _has_wal(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(path, timeout=1, isolation_level=None)) as connection:
            return bool(connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode not in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            raise OutsideUnavailable(f"{path} cannot be opened as a database: {error}", what="store") from error
        return False
    except sqlite3.DatabaseError as error:
        raise OutsideBroken(f"{path} is not a database: {error}", what="store") from error
