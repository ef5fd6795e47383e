"""Stores to measure on: the embedded Postgres with the installation's own settings, and SQLite."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psutil

from fermion.adapters.local_platform.addresses import Addresses, choose, is_free
from fermion.adapters.local_platform.keys import keep_keys
from fermion.adapters.local_platform.postgres import EmbeddedPostgres
from fermion.adapters.local_platform.processes import end
from fermion.adapters.sql import migrate, open_store
from fermion.adapters.sql.store import SqlStore

ENGINES = ("postgres", "sqlite")


@contextmanager
def fresh_folder() -> Iterator[Path]:
    """A temporary folder that the account of Postgres can enter."""
    with tempfile.TemporaryDirectory(prefix="fermion-bench-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        yield Path(name)


@contextmanager
def open_empty(engine: str) -> Iterator[SqlStore]:
    """A migrated, empty store; what it needs is ended and forgotten afterwards."""
    with fresh_folder() as folder:
        if engine == "sqlite":
            with _opened(f"sqlite:///{folder / 'fermion.db'}") as store:
                yield store
            return
        with running_postgres(folder) as server, _opened(server.url("fermion", scheme="postgresql+psycopg")) as store:
            yield store


@contextmanager
def _opened(url: str) -> Iterator[SqlStore]:
    migrate(url)
    store = open_store(url)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def running_postgres(folder: Path) -> Iterator[EmbeddedPostgres]:
    """The server that an installation would run, below ``folder``."""
    addresses, _ = choose(wanted_http=None, kept=Addresses(http=28180, postgres=28532), is_free=is_free)
    (folder / "secrets").mkdir(mode=0o700)
    keys = keep_keys(folder / "secrets")
    server = EmbeddedPostgres(data=folder / "postgres", keys=keys, port=addresses.postgres)
    account = server.prepare()
    as_whom = {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}
    with (folder / "postgres.log").open("w") as log:
        process = subprocess.Popen(
            server.command(account), env=dict(os.environ), cwd=server.data, stdout=log, stderr=log, **as_whom
        )
        try:
            if not server.wait(timedelta(seconds=60)):
                raise TimeoutError(f"Postgres does not answer:\n{(folder / 'postgres.log').read_text()[-2000:]}")
            server.make_databases()
            yield server
        finally:
            here = psutil.Process(process.pid)
            end([here, *here.children(recursive=True)], grace_s=5)
            process.wait(10)
