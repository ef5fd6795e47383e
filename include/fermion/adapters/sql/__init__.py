"""The platform's own database, on SQLite or Postgres.

Importing this package loads neither SQLAlchemy nor a driver: every task of every run imports it at its start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fermion.adapters.sql.store import SqlStore

__all__ = ["migrate", "open_store"]


def open_store(url: str) -> SqlStore:
    """A store on ``sqlite:////absolute/path.db`` or ``postgresql+psycopg://user:password@host:port/database``.

    Nothing is opened yet: the first transaction connects. ``Store.check()`` tells whether the schema is this program's.

    Raises:
        SettingsInvalid: the URL is not one of the two.
    """
    from fermion.adapters.sql.store import SqlStore

    return SqlStore(url)


def migrate(url: str) -> str:
    """Bring the database's schema to this program's revision; the revision. Safe to call from many processes at once.

    An SQLite file is created if absent (with its folder); a Postgres database must exist.

    Raises:
        SettingsInvalid: the URL is not one of the two.
        OutsideUnavailable: the database does not answer.
    """
    from fermion.adapters.sql.migrating import migrate as run

    return run(url)
