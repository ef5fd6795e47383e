"""With the platform down: what does not answer, and who starts it."""

from __future__ import annotations

import json

import pytest
from installations import Installation

START = "`make up` or `fermion up` starts the platform."


@pytest.fixture
def down(installed: Installation) -> Installation:
    """An installation whose own database takes no connections."""
    secrets = installed.root / "run" / "secrets"
    secrets.mkdir()
    (secrets / "database_url").write_text("postgresql+psycopg://fermion:word@127.0.0.1:1/fermion\n")
    installed.database = ""
    return installed


@pytest.mark.parametrize("words", [["jobs"], ["job", "job-20260302-001"], ["pools"], ["ledger"], ["datasets"]])
def test_every_command_says_how_the_platform_is_started(down: Installation, words: list[str]) -> None:
    code, told = down.fermion(*words)
    assert code == 3
    assert told.startswith("the database does not answer: ")
    assert told.endswith(f". {START}\n")
    code, told = down.fermion(*words, "--json")
    assert json.loads(told)["message"].endswith(f". {START}")


def test_the_doctor_says_it_once(down: Installation) -> None:
    code, told = down.fermion("doctor")
    assert code == 1
    assert told.count(START) == 1
    first, *others = told.splitlines()
    assert first.endswith(f". {START}")
    assert all(line.endswith("unknown. Ask again once what does not answer is back.") for line in others)


def test_a_database_of_somebody_else_is_not_ours_to_start(down: Installation) -> None:
    down.database = "postgresql+psycopg://fermion:word@127.0.0.1:2/fermion"
    code, told = down.fermion("jobs")
    assert code == 3
    assert "make up" not in told
    assert "make up" not in down.fermion("doctor")[1]
