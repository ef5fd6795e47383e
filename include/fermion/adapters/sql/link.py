"""One open transaction's connection. Every error of a driver leaves it translated; nothing above knows SQLAlchemy's."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from sqlalchemy import Connection, CursorResult, Executable, Table, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from fermion.adapters.sql.codec import Values
from fermion.errors import Conflict, FermionError, NotFound, OutsideBroken, OutsideUnavailable

_SQLITE_BROKEN = frozenset(
    {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
)
_LOCK = text("SELECT pg_advisory_xact_lock(:key)")
_POSTGRES_UNAVAILABLE = ("08", "40", "53", "55P03", "57", "58", "25P03", "25P04")
"""Connection, serialization and deadlock, resources, lock not had in time, ended by an operator, system, idle too long."""


class Link:
    """Runs statements. ``read_only`` tells that this transaction may not write."""

    def __init__(self, connection: Connection, *, read_only: bool) -> None:
        self._connection = connection
        self._posted: AbstractContextManager[Any] | None = None
        self.read_only = read_only
        self.dialect = connection.dialect.name

    def rows(self, statement: Executable, values: Values | None = None) -> Sequence[Any]:
        """All rows."""
        with translated():
            return self._answer_to(statement, values).fetchall()

    def row(self, statement: Executable, values: Values | None = None) -> Any | None:
        """The first row, or None."""
        with translated():
            return self._answer_to(statement, values).first()

    def scalar(self, statement: Executable, values: Values | None = None) -> Any:
        """The first value of the first row, or None."""
        with translated():
            return self._answer_to(statement, values).scalar()

    def write(self, statement: Executable, values: Values | Sequence[Values] | None = None) -> int:
        """How many rows were written; with a list of values the statement runs once for each, in one call."""
        with translated():
            return self._answer_to(statement, values, preserve_rowcount=True).rowcount

    def _answer_to(
        self, statement: Executable, values: Values | Sequence[Values] | None, **options: bool
    ) -> CursorResult[Any]:
        self.settle()
        return self._connection.execute(statement, values, execution_options=options)

    def post(self, statement: Executable, values: Values | Sequence[Values] | None = None) -> None:
        """A write of which nobody counts the rows. Postgres is not waited for: what it refuses, the next statement or the
        commit tells, so that it works while this program goes on."""
        if self.dialect == "sqlite":
            self.write(statement, values)
            return
        if self._posted is None:
            driver: Any = self._connection.connection.driver_connection
            self._posted = driver.pipeline()
            self._posted.__enter__()
        with translated():
            self._connection.execute(statement, values)

    def settle(self) -> None:
        """Wait for what was posted."""
        posted, self._posted = self._posted, None
        if posted is None:
            return
        try:
            posted.__exit__(None, None, None)
        except self._connection.dialect.loaded_dbapi.Error as error:  # told when the pipeline is left, past SQLAlchemy
            raise translate(DBAPIError(None, None, error)) from error

    def lock(self, key: int) -> None:
        """Wait for a Postgres lock, which is kept until the end; sent together with the BEGIN when it is the first statement."""
        self.post(_LOCK, {"key": key})
        self.settle()

    def insert(self, table: Table) -> Any:
        """An INSERT of this database's own kind, which knows ON CONFLICT."""
        if self.dialect == "sqlite":
            from sqlalchemy.dialects import sqlite

            return sqlite.insert(table).inline()
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table).inline()

    def upsert(self, table: Table) -> Any:
        """An INSERT that replaces the whole row of the same primary key."""
        statement = self.insert(table)
        changed = {column.name: statement.excluded[column.name] for column in table.c if not column.primary_key}
        return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=changed)


@contextmanager
def translated() -> Iterator[None]:
    """Turn errors of SQLAlchemy and its drivers into ours. A value that cannot be written stays the caller's ValueError."""
    try:
        yield
    except StatementError as error:
        if isinstance(error.orig, (ValueError, TypeError)):
            raise error.orig from error
        raise translate(error) from error
    except SQLAlchemyError as error:
        raise translate(error) from error


def translate(error: SQLAlchemyError) -> FermionError:
    """Ours: OutsideUnavailable where the same call may succeed later, Conflict for a duplicate, NotFound for a row that
    belongs to none, else OutsideBroken.

    Statements and values are not quoted.
    """
    if isinstance(error, PoolTimeout):
        return OutsideUnavailable("the database has no connection free; every one of the pool is in use", what="store")
    if not isinstance(error, DBAPIError):
        return OutsideBroken(f"the database cannot be used: {error}", what="store")
    origin = error.orig
    sentence = first_line(origin)
    if _is_duplicate(origin):
        return Conflict(f"another row has this already: {sentence}", what="store")
    if _is_orphan(origin):
        return NotFound(f"what this row belongs to does not exist: {sentence}", what="store")
    if error.connection_invalidated or _is_passing(origin):
        return OutsideUnavailable(f"the database does not answer: {sentence}", what="store")
    if "no such table" in sentence or getattr(origin, "sqlstate", None) == "42P01":
        return OutsideBroken(f"the database's schema is not this program's ({sentence}); migrate it", what="store")
    return OutsideBroken(f"the database refuses: {sentence}", what="store")


def _is_passing(origin: BaseException | None) -> bool:
    if isinstance(origin, sqlite3.OperationalError):
        code = getattr(origin, "sqlite_errorcode", None)  # absent where Python's own module raised it
        return code is not None and (code & 0xFF) not in _SQLITE_BROKEN
    if isinstance(origin, sqlite3.Error):
        return False
    state = getattr(origin, "sqlstate", None)
    if state is None:  # psycopg: no answer came at all
        return type(origin).__name__ in {"OperationalError", "ConnectionTimeout", "InterfaceError"}
    return str(state).startswith(_POSTGRES_UNAVAILABLE)


def _is_duplicate(origin: BaseException | None) -> bool:
    codes = {sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY}
    return getattr(origin, "sqlite_errorcode", None) in codes or getattr(origin, "sqlstate", None) == "23505"


def _is_orphan(origin: BaseException | None) -> bool:
    is_sqlite = getattr(origin, "sqlite_errorcode", None) == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY
    return is_sqlite or getattr(origin, "sqlstate", None) == "23503"


def first_line(origin: BaseException | None) -> str:
    """What a driver's error says, without its hints."""
    lines = str(origin).strip().splitlines()
    return lines[0] if lines else type(origin).__name__
