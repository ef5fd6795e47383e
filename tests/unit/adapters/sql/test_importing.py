"""Every task of every run imports the store: what an import loads is part of its contract."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ["sqlalchemy", "psycopg", "alembic"]


def loaded(source: str) -> set[str]:
    """Which of the heavy modules a fresh interpreter holds after it ran this."""
    script = f"import sys\n{source}\nprint(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param("import fermion.adapters.sql", set(), id="the package"),
        pytest.param("import fermion.adapters.memory.driver, fermion.adapters.memory.store", set(), id="the fakes"),
        pytest.param(
            "from fermion.adapters.sql import open_store; open_store('sqlite:////nowhere/x.db')",
            {"sqlalchemy"},
            id="a store on SQLite",
        ),
        pytest.param(
            "from fermion.adapters.sql import open_store; open_store('postgresql://h/d')",
            {"sqlalchemy"},
            id="a store on Postgres that nobody used yet",
        ),
    ],
)
def test_nothing_is_loaded_before_it_is_needed(source: str, expected: set[str]) -> None:
    assert loaded(source) == expected
