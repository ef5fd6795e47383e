"""Many rows in one call. SQLite runs a plain statement for each of them; Postgres, where a row costs more on its way than
in its table, is given all of them as one JSON document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    JSON,
    ColumnElement,
    Executable,
    Table,
    Text,
    and_,
    any_,
    bindparam,
    cast,
    column,
    func,
    join,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeDecorator

from fermion.adapters.sql.codec import Values
from fermion.adapters.sql.json_text import of_texts, to_json
from fermion.adapters.sql.link import Link
from fermion.adapters.sql.locks import lock_key
from fermion.adapters.sql.tables import Number, UtcTime
from fermion.errors import OutsideBroken


class Duplicate(StrEnum):
    """What becomes of a new row whose key is there already."""

    REFUSED = "refused"
    SKIPPED = "skipped"
    REPLACES = "replaces"


@dataclass(frozen=True, slots=True)
class Kind:
    """How rows of a table are inserted.

    ``exclusive`` names a lock that is held from before the first row gets its number to the end of the transaction.
    """

    table: Table
    duplicate: Duplicate = Duplicate.REFUSED
    exclusive: str | None = None


class Appended:
    """Rows that nobody waits for: written together before the commit, or before the transaction reads such rows."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._rows: dict[Kind, dict[object, Values]] = {}

    def add(self, kind: Kind, row: Values) -> None:
        """Append; rows of one kind have the same columns and keep their order. One that replaces does so here already.

        Raises:
            OutsideBroken: the transaction only reads.
        """
        if self._link.read_only:
            raise OutsideBroken("a transaction that only reads cannot write; use begin()", what="store")
        rows = self._rows.setdefault(kind, {})
        is_keyed = kind.duplicate is Duplicate.REPLACES
        rows[tuple(row[column.name] for column in kind.table.primary_key) if is_keyed else len(rows)] = row

    def flush(self) -> None:
        """Write what was added since the last time. On Postgres all kinds are one statement."""
        found = [(kind, list(rows.values())) for kind, rows in self._rows.items()]
        found.sort(key=lambda each: each[0].table.name)
        self._rows = {}
        if self._link.dialect == "sqlite":
            for kind, rows in found:
                self._link.post(_insertion("sqlite", kind, tuple(rows[0])), rows)
        elif found:
            documents = [_document(kind.table, rows) for kind, rows in found]
            together = _together(tuple((kind, tuple(rows[0])) for kind, rows in found))
            self._link.post(together, {name: value for each in documents for name, value in each.items()})


def insert_all(link: Link, table: Table, rows: Sequence[Values], duplicate: Duplicate) -> int:
    """Insert rows that have the same columns; how many were written."""
    if not rows:
        return 0
    statement = _insertion(link.dialect, Kind(table, duplicate), tuple(rows[0]))
    return link.write(statement, rows if link.dialect == "sqlite" else _document(table, rows))


_Rows = tuple[Table, Sequence[Values]]
"""Rows of a table that have the same columns."""


def insert_skipping(link: Link, found: Sequence[_Rows], *, then: _Rows) -> bool:
    """Insert rows of several tables, skipping those that are there already, and ``then`` (some) only if none was. Whether none was.

    On Postgres one statement; a row may refer to one of another table of the same call.
    """
    if link.dialect == "sqlite":
        is_whole = all([insert_all(link, table, rows, Duplicate.SKIPPED) == len(rows) for table, rows in found])
        if is_whole:
            insert_all(link, *then, Duplicate.REFUSED)
        return is_whole
    found = [each for each in found if each[1]]
    documents = [_document(table, rows) for table, rows in (*found, then)]
    kinds = tuple((Kind(table, Duplicate.SKIPPED), tuple(rows[0])) for table, rows in found)
    values = {name: value for each in documents for name, value in each.items()}
    return bool(link.scalar(_skipping(kinds, (Kind(then[0]), tuple(then[1][0]))), values))


def update_all(link: Link, table: Table, rows: Sequence[Values]) -> None:
    """Write these columns of the rows with that ``id`` whose version is the one before."""
    if not rows:
        return
    if link.dialect == "sqlite":
        guarded = update(table).where(table.c.id == bindparam("row_id"), table.c.version == bindparam("expected"))
        link.post(guarded, [_guarded(row) for row in rows])
        return
    link.post(_update(table, tuple(rows[0])), {**_document(table, rows), "ids": [row["id"] for row in rows]})


def among(dialect: str, column: ColumnElement[str], name: str) -> ColumnElement[bool]:
    """Whether the column holds one of the parameter's values. Postgres takes them as one array, so that the statement stays
    the same, and prepared, however many they are."""
    if dialect == "sqlite":
        return column.in_(bindparam(name, expanding=True))
    return column == any_(bindparam(name, type_=postgresql.ARRAY(Text)))


def _guarded(row: Values) -> Values:
    changed = {name: value for name, value in row.items() if name != "id"}
    return {**changed, "row_id": row["id"], "expected": row["version"] - 1}


@cache
def _together(kinds: tuple[tuple[Kind, tuple[str, ...]], ...]) -> Executable:
    *others, last = (_insertion("postgresql", kind, names) for kind, names in kinds)
    return last.add_cte(*(each.cte(f"appended_{number}") for number, each in enumerate(others)))  # type: ignore[no-any-return]


@cache
def _skipping(kinds: tuple[tuple[Kind, tuple[str, ...]], ...], then: tuple[Kind, tuple[str, ...]]) -> Executable:
    are_whole = []
    for kind, names in kinds:
        rows = _insertion("postgresql", kind, names).returning(true()).cte()
        count = select(func.count()).select_from(rows).scalar_subquery()
        are_whole.append(count == func.json_array_length(_rows_document(kind.table)))
    is_whole = select(and_(*are_whole).label("is_whole")).cte("whole")
    last = _insertion("postgresql", *then, only_if=is_whole).cte("last")
    return select(is_whole.c.is_whole).add_cte(last)


@cache
def _insertion(dialect: str, kind: Kind, names: tuple[str, ...], only_if: CTE | None = None) -> Any:
    table = kind.table
    statement: Any = (sqlite if dialect == "sqlite" else postgresql).insert(table).inline()
    if dialect != "sqlite":
        rows = _rows(table, names)
        values = select(*_values(table, rows, names))
        if kind.exclusive is not None:
            # No row comes out of the join before the lock is had, and a row gets its number after that.
            held = select(func.pg_advisory_xact_lock(lock_key(kind.exclusive))).cte("held")
            values = values.select_from(join(rows, held, true()))
        if only_if is not None:
            values = values.where(select(only_if.c.is_whole).scalar_subquery())
        statement = statement.from_select(names, values)
    if kind.duplicate is Duplicate.SKIPPED:
        statement = statement.on_conflict_do_nothing()
    if kind.duplicate is Duplicate.REPLACES:
        changed = {column.name: statement.excluded[column.name] for column in table.c if not column.primary_key}
        statement = statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=changed)
    return statement


@cache
def _update(table: Table, names: tuple[str, ...]) -> Executable:
    """Nobody knows how long a document is. The ids, said again as an array, keep Postgres from reading the whole table for it."""
    rows = _rows(table, names)
    changed = dict(zip(names, _values(table, rows, names), strict=True))
    del changed["id"]
    named = among("postgresql", table.c.id, "ids")
    return update(table).where(named, table.c.id == rows.c.id, table.c.version == rows.c.version - 1).values(changed)


def _rows(table: Table, names: tuple[str, ...]) -> Any:
    """The document as a table of these columns, in its order; what is JSON in a column is text in the document."""
    kinds = {name: Text() if isinstance(table.c[name].type, JSON) else table.c[name].type for name in names}
    columns = (column(name, kind) for name, kind in kinds.items())
    return func.json_to_recordset(_rows_document(table)).table_valued(*columns).render_derived(with_types=True)


def _rows_document(table: Table) -> ColumnElement[Any]:
    return cast(bindparam(f"{table.name}_rows", type_=Text), JSON)


def _values(table: Table, rows: Any, names: tuple[str, ...]) -> list[Any]:
    return [cast(rows.c[name], JSON) if isinstance(table.c[name].type, JSON) else rows.c[name] for name in names]


def _document(table: Table, rows: Sequence[Values]) -> Values:
    """The parameter that holds the rows. What a row's object has not is NULL."""
    encoders = _encoders(table, tuple(rows[0]))
    objects = []
    for row in rows:
        found = {name: value for name, value in row.items() if value is not None}
        for name, encode in encoders:
            if name in found:
                found[name] = encode(found[name])
        objects.append(found)
    return {f"{table.name}_rows": of_texts(objects)}


@cache
def _encoders(table: Table, names: tuple[str, ...]) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    """Those of the columns whose value does not stand in the document as it is."""
    found = ((name, _encoder(table.c[name].type)) for name in names)
    return tuple((name, encode) for name, encode in found if encode is not None)


def _encoder(kind: Any) -> Callable[[Any], Any] | None:
    """How a value of that column stands in the document: as its parameter would. As text what JSON has not, and JSON itself:
    Postgres would look into it there, and refuse a NUL that it keeps in a column."""
    if isinstance(kind, JSON):
        return to_json
    if not isinstance(kind, TypeDecorator):
        return None
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    if isinstance(kind, UtcTime):
        return _time
    if not isinstance(kind, Number):
        return lambda value: kind.process_bind_param(value, dialect)

    def encode(value: Any) -> Any:
        bound = kind.process_bind_param(value, dialect)
        return None if bound is None else repr(bound)

    return encode


def _time(value: datetime) -> datetime:
    if value.tzinfo is UTC:
        return value
    return UtcTime().process_bind_param(value, postgresql.dialect())  # type: ignore[no-untyped-call,return-value]
