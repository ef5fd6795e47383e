"""Passwords and keys of the embedded installation: generated once, one file each, mode 0600."""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

USERS = ("admin", "op", "user", "viewer")
"""Sign-in names; ``config/airflow.cfg`` gives each its role."""

PASSWORDS_FILE = "passwords.json"


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """All secrets of one installation."""

    postgres: str
    airflow_db: str
    fermion_db: str
    fernet: str
    jwt: str
    api: str
    passwords: Mapping[str, str]


def keep_keys(folder: Path) -> Keys:
    """The keys in ``folder``; those that are missing are generated. The same at every later call."""
    return Keys(
        postgres=_keep(folder / "postgres_password", _password),
        airflow_db=_keep(folder / "airflow_db_password", _password),
        fermion_db=_keep(folder / "fermion_db_password", _password),
        fernet=_keep(folder / "fernet_key", _fernet_key),
        jwt=_keep(folder / "jwt_secret", _long_key),
        api=_keep(folder / "api_secret_key", _long_key),
        passwords=_keep_passwords(folder / PASSWORDS_FILE),
    )


def _password() -> str:
    return secrets.token_hex(12)


def _long_key() -> str:
    return secrets.token_hex(64)


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def _keep(path: Path, make: Callable[[], str]) -> str:
    if path.exists() and (kept := path.read_text().strip()):
        path.chmod(0o600)
        return kept
    made = make()
    _write(path, made + "\n")
    return made


def _keep_passwords(path: Path) -> Mapping[str, str]:
    kept = json.loads(path.read_text() or "{}") if path.exists() else {}
    wanted = {user: kept.get(user) or _password() for user in USERS}
    if wanted.items() <= kept.items():
        path.chmod(0o600)
        return wanted
    _write(path, json.dumps({**kept, **wanted}, indent=1) + "\n")
    return wanted


def _write(path: Path, text: str) -> None:
    """Whole or not at all, and never readable by others, not even for a moment."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
