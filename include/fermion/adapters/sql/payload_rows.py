"""Rows that hold a value whole, as JSON in ``payload``, beside the few columns that are asked for.

A key that an older program did not write takes the field's default; one that only a newer program knows is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import Column, Executable, Update, bindparam, update

from fermion.adapters.sql.codec import Values
from fermion.adapters.sql.link import Link
from fermion.domain.payloads import from_payload

T = TypeVar("T")


def read_all(link: Link, kind: type[T], query: Executable, values: Values | None = None) -> Sequence[T]:
    """The values of all rows."""
    return [from_payload(kind, row.payload) for row in link.rows(query, values)]


def read_one(link: Link, kind: type[T], query: Executable, values: Values) -> T | None:
    """The value of the first row, or None."""
    row = link.row(query, values)
    return None if row is None else from_payload(kind, row.payload)


def guarded(key: Column[Any]) -> Update:
    """An UPDATE of the row of ``saved_key`` if it still has the version ``expected``."""
    return update(key.table).where(key == bindparam("saved_key"), key.table.c.version == bindparam("expected"))


def save(link: Link, statement: Update, row: Values, *, key: str) -> bool:
    """Write the row, whose version is the next one, in place of the one before; False for a lost race."""
    changed = {name: value for name, value in row.items() if name != key}
    return bool(link.write(statement, {**changed, "saved_key": row[key], "expected": row["version"] - 1}))
