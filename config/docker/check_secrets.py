"""Exit code 2 and a sentence for each secret that cannot work: keys of the wrong form, passwords that Postgres refuses."""

import base64
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg

SECRETS = Path("/run/secrets")
HOST = os.environ.get("FERMION_POSTGRES_HOST", "postgres")
USERS = {"admin", "op", "user", "viewer"}
KEY_CHARACTERS = 32


def problems() -> Iterator[str]:
    """All that is wrong, in sentences that name the secret and say what to do."""
    try:
        is_key = len(base64.urlsafe_b64decode(_read("fernet_key"))) == KEY_CHARACTERS
    except ValueError:
        is_key = False
    if not is_key:
        yield "fernet_key is not 32 bytes in URL-safe base64; delete it, and make-secrets.sh makes a new one"
    for name in ("jwt_secret", "api_secret_key"):
        if len(_read(name)) < KEY_CHARACTERS:
            yield f"{name} has {len(_read(name))} characters, and {KEY_CHARACTERS} are the least"
    try:
        passwords = json.loads(_read("passwords.json"))
        missing = USERS - {user for user, password in passwords.items() if isinstance(password, str) and password}
    except (ValueError, AttributeError) as error:
        yield f'passwords.json is not a JSON object of user and password, {{"admin": "…", …}} ({error})'
    else:
        if missing:
            yield f"passwords.json has no password for {', '.join(sorted(missing))}"
    for name in ("airflow", "fermion"):
        yield from _refusal(name)


def _refusal(name: str) -> Iterator[str]:
    try:
        psycopg.connect(
            host=HOST, dbname=name, user=name, password=_read(f"{name}_db_password"), connect_timeout=10
        ).close()
    except psycopg.OperationalError as error:
        if "password authentication failed" in str(error):
            yield (
                f"{name}_db_password is refused by Postgres at {HOST}: its databases were made with another password. "
                "Put that one back, or change it there too (ALTER ROLE)"
            )
        else:
            yield f"{name}_db_password could not be tried, Postgres at {HOST} does not answer: {str(error).strip()}"


def _read(name: str) -> str:
    return (SECRETS / name).read_text(encoding="utf-8").strip()


found = list(problems())
for problem in found:
    sys.stderr.write(f"fermion: the secret {problem}.\n")
sys.exit(2 if found else 0)
