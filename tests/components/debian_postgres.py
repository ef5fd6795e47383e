"""Debian's Postgres for tests: its programs, its account, a password on loopback TCP; the server that many installations have."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from postgres import START_S, PostgresServer, _end_with_the_tests

PROGRAMS = Path("/usr/lib/postgresql")
PACKAGE = "the package postgresql (tests/components/install.sh installs it)"
ACCOUNT = "postgres"
PASSWORD = "a-password-of-the-test"


class PostgresMissing(RuntimeError):
    """Debian's Postgres is not on this machine; the message says what is missing."""


class DebianPostgres(PostgresServer):
    """One server of the newest version that is installed."""

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[DebianPostgres]:
        """A server in a temporary folder; stopped and forgotten at the end.

        Raises:
            PostgresMissing: its programs or its account are not here.
        """
        programs()
        with tempfile.TemporaryDirectory(prefix="fermion-debian-pg-", ignore_cleanup_errors=True) as name:
            if os.geteuid() == 0:
                shutil.chown(name, ACCOUNT)
            server = cls(Path(name))
            try:
                server.initialise()
                server.start()
                yield server
            finally:
                server.stop()

    def initialise(self) -> None:
        """Make the data folder; every connection needs the password."""
        secret = self.folder / "password"
        secret.write_text(PASSWORD, encoding="utf-8")
        secret.chmod(0o644)
        options = ["-U", "postgres", "-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "--locale=C"]
        command = [*_as_its_account(), str(programs() / "initdb"), "-D", self._data, *options]
        subprocess.run(command, check=True, capture_output=True, timeout=START_S, cwd="/")

    def start(self) -> None:
        """Start and wait until it answers."""
        command = [str(programs() / "postgres"), "-D", self._data, "-p", str(self.port)]
        for setting in ("listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=120"):
            command += ["-c", setting]
        is_root = os.geteuid() == 0
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
                preexec_fn=_end_with_the_tests if sys.platform == "linux" else None,
                user=ACCOUNT if is_root else None,
                group=ACCOUNT if is_root else None,
                extra_groups=[] if is_root else None,
            )
        self._wait_until_it_answers()

    def restart(self, how: signal.Signals) -> None:
        """Stop it in this way and start it again."""
        self.stop(how)
        self.start()

    def new_database(self) -> str:
        """The URL of a new, empty database, password included."""
        return super().new_database().replace("postgres@", f"postgres:{PASSWORD}@")

    @property
    def version(self) -> int:
        """The server's major version."""
        with psycopg.connect(self._conninfo) as connection:
            return connection.info.server_version // 10000

    @property
    def _conninfo(self) -> str:
        return f"{super()._conninfo} password={PASSWORD}"


def programs() -> Path:
    """The folder of the newest version's programs.

    Raises:
        PostgresMissing: there is none, or no account to run it.
    """
    found = [each.parent for each in PROGRAMS.glob("*/bin/initdb") if each.parts[-3].isdigit()]
    if not found:
        raise PostgresMissing(f"no Postgres in {PROGRAMS}: it needs {PACKAGE}")
    if os.geteuid() == 0 and ACCOUNT not in {each.pw_name for each in pwd.getpwall()}:
        raise PostgresMissing(f"there is no account {ACCOUNT!r}: it comes with {PACKAGE}")
    return max(found, key=lambda each: int(each.parts[-2]))


def _as_its_account() -> list[str]:
    return ["runuser", "-u", ACCOUNT, "--"] if os.geteuid() == 0 else []
