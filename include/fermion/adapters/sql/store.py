"""The store on SQLite or Postgres. Keeps ``ports.Store``.

It never retries by itself: a transaction's body belongs to the caller, who calls again. What it does is wait: for a lock,
a free connection, a starting server, each at most ``PATIENCE_S``.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, text

from fermion.adapters.sql.bells import Bell, PostgresBell, SqliteBell
from fermion.adapters.sql.bulk import Appended
from fermion.adapters.sql.catalog import SqlCatalog
from fermion.adapters.sql.engines import PATIENCE_S, begin_mode, open_engine, parse_url
from fermion.adapters.sql.jobs import SqlJobs
from fermion.adapters.sql.leases import KnownLeases, SqlLeases
from fermion.adapters.sql.link import Link, translated
from fermion.adapters.sql.locks import lock_key
from fermion.adapters.sql.records import SqlRecords
from fermion.adapters.sql.replica_rows import SqlReplicaRows
from fermion.adapters.sql.rollouts import SqlRollouts
from fermion.adapters.sql.services import SqlServices
from fermion.adapters.sql.tables import REVISION, VERSION_TABLE
from fermion.adapters.sql.traffic import SqlTraffic
from fermion.errors import FermionError, OutsideBroken, OutsideUnavailable

_log = logging.getLogger(__name__)


class SqlTransaction:
    """The repositories of one transaction."""

    def __init__(self, link: Link, leases: KnownLeases) -> None:
        self.appended = Appended(link)
        self.jobs = SqlJobs(link)
        self.leases = SqlLeases(link, self.appended, leases)
        self.catalog = SqlCatalog(link)
        self.records = SqlRecords(link, self.appended)
        self.services = SqlServices(link)
        self.replicas = SqlReplicaRows(link)
        self.rollouts = SqlRollouts(link)
        self.traffic = SqlTraffic(link)


class SqlStore:
    """The platform's own database. Threads share one; after a fork the child opens connections of its own."""

    def __init__(self, url: str) -> None:
        self._url = parse_url(url)
        self._is_sqlite = self._url.get_backend_name() == "sqlite"
        self._start_afresh()
        _stores.add(self)

    def _start_afresh(self) -> None:
        self._opening = threading.Lock()
        # Threads of one process queue here in order; SQLite itself lets waiters sleep and poll, and starves some.
        self._writing = threading.Lock()
        self._writer: int | None = None
        self._is_paused = False
        self._engines: dict[bool, Engine] = {}
        self._bell: Bell | None = None
        self._leases = KnownLeases()

    def _engine(self, *, read_only: bool) -> Engine:
        key = read_only and self._is_sqlite
        with self._opening:
            if key not in self._engines:
                self._engines[key] = open_engine(self._url, read_only=key)
            return self._engines[key]

    # --- transactions -----------------------------------------------------------------------------------------------

    @contextmanager
    def begin(self, *, exclusive: str | None = None) -> Iterator[SqlTransaction]:
        """Raises OutsideUnavailable when the lock is not had within ``PATIENCE_S``."""
        with self.linked(read_only=False) as link:
            if exclusive is not None and not self._is_sqlite:
                link.lock(lock_key(exclusive))
            transaction = SqlTransaction(link, self._leases)
            yield transaction
            transaction.appended.flush()
        self._leases.learn(transaction.leases.granted)

    @contextmanager
    def read(self) -> Iterator[SqlTransaction]:
        """One moment: a snapshot on both databases."""
        with self.linked(read_only=True) as link:
            yield SqlTransaction(link, self._leases)

    @contextmanager
    def linked(self, *, read_only: bool) -> Iterator[Link]:
        """A transaction for statements of this package's own."""
        turn = nullcontext() if read_only else self._turn()
        with turn, self._connected(read_only=read_only) as connection:
            link = Link(connection, read_only=read_only)
            try:
                yield link
            except BaseException:
                with suppress(FermionError):  # the first error is the one to tell
                    link.settle()
                raise
            link.settle()

    @contextmanager
    def _connected(self, *, read_only: bool) -> Iterator[Connection]:
        with translated():
            connection = self._engine(read_only=read_only).connect()
        try:
            with translated():
                connection = connection.execution_options(**self._options(read_only=read_only))
                transaction = connection.begin()
            try:
                yield connection
            except BaseException:
                with translated():
                    transaction.rollback()
                raise
            with translated():
                transaction.commit()
        finally:
            connection.close()

    def _options(self, *, read_only: bool) -> dict[str, object]:
        if self._is_sqlite:
            return begin_mode("DEFERRED" if read_only else "IMMEDIATE")
        return {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True} if read_only else {}

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._is_sqlite:
            yield
            return
        if not self._writing.acquire(timeout=PATIENCE_S):
            raise OutsideUnavailable(
                f"the database is locked: another transaction of this process writes for over {PATIENCE_S} s",
                what="store",
            )
        self._writer = threading.get_ident()
        try:
            yield
        finally:
            self._writer = None
            self._writing.release()

    # --- waking each other ------------------------------------------------------------------------------------------

    def notify(self, topic: str, payload: str = "") -> None:
        """Best effort: an outage is logged, because what it would tell is in the database anyway."""
        try:
            self._ringing().ring(topic, payload)
        except OutsideUnavailable as error:
            _log.warning("nobody could be told of %s: %s", topic, error)

    def wait(self, topics: Collection[str], timeout: timedelta) -> str | None:
        """What was notified since this store's last wait counts too, so that nothing is missed between two waits."""
        return self._ringing().wait(frozenset(topics), timeout.total_seconds())

    def _ringing(self) -> Bell:
        engine = self._engine(read_only=False)
        with self._opening:
            if self._bell is None:
                self._bell = SqliteBell(self) if self._is_sqlite else PostgresBell(engine)
            return self._bell

    # --- health -----------------------------------------------------------------------------------------------------

    def check(self) -> str:
        """As ``SQLite 3.40.1 at /srv/fermion.db, schema 0001``."""
        version = "sqlite_version()" if self._is_sqlite else "current_setting('server_version')"
        with self.linked(read_only=True) as link:
            number = link.scalar(text(f"SELECT {version}"))
        kind = "SQLite" if self._is_sqlite else "PostgreSQL"
        name = f"{kind} {number} at {self._url.render_as_string(hide_password=True)}"
        found = self._revision(name)
        if found != REVISION:
            raise OutsideUnavailable(
                f"{name} has schema {found}; this program needs {REVISION}: {_MIGRATE}", what="store"
            )
        return f"{name}, schema {found}"

    def _revision(self, name: str) -> str:
        try:
            with self.linked(read_only=True) as link:
                return str(link.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}")))
        except OutsideBroken as error:
            raise OutsideUnavailable(f"{name} has no schema of this program: {_MIGRATE}", what="store") from error

    def close(self) -> None:
        """Close every connection; the next call opens new ones."""
        with self._opening:
            engines, bell = list(self._engines.values()), self._bell
            self._engines, self._bell = {}, None
        if bell is not None:
            bell.close()
        for engine in engines:
            engine.dispose()

    # --- forks ------------------------------------------------------------------------------------------------------

    def _before_fork(self) -> None:
        """SQLite keeps its locks in the process's memory, so a child would believe that it holds its parent's. Wait for
        the thread that writes and close what is idle: then there is nothing to inherit."""
        if not self._is_sqlite:
            return
        if self._writer != threading.get_ident():
            self._is_paused = self._writing.acquire(timeout=PATIENCE_S)
        for engine in self._engines.values():
            engine.dispose()

    def _after_fork_in_parent(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self._writing.release()

    def _after_fork_in_child(self) -> None:
        """Leave the parent's connections alone, unclosed: closing one would end the parent's too."""
        _left_behind.append((self._engines, self._bell))
        self._start_afresh()


_MIGRATE = "run its migrations (docs/state.md)."

_stores: weakref.WeakSet[SqlStore] = weakref.WeakSet()
_left_behind: list[object] = []


def _tell_stores(step: Callable[[SqlStore], None]) -> Callable[[], None]:
    def tell() -> None:
        for store in list(_stores):
            step(store)

    return tell


os.register_at_fork(
    before=_tell_stores(SqlStore._before_fork),
    after_in_parent=_tell_stores(SqlStore._after_fork_in_parent),
    after_in_child=_tell_stores(SqlStore._after_fork_in_child),
)

if TYPE_CHECKING:
    from fermion.ports import Store

    def _keeps_the_port(kept: SqlStore) -> Store:
        return kept
