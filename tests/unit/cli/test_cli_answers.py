"""What holds for every command: one JSON document with ``--json``, the documented exit codes, and any width of terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
from installations import Installation

from builders import NOW, make_job, make_lease
from fermion.cli.main import app
from fermion.domain.artifacts import ModelDraft
from fermion.domain.jobs import Phase
from fermion.domain.reasons import Explanation, Reason

JOB, ENDED = "job-20260302-001", "job-20260302-002"
ABSENT = "job-20991231-999"
ROOT = Path(__file__).parents[3]

# Every command that needs no running platform, on jobs that are there; asked again it answers the same.
LOOKS = {
    "jobs": ("jobs",),
    "job": ("job", JOB),
    "logs": ("logs", JOB),
    "logs of an ended job, followed": ("logs", "-f", ENDED),
    "explain": ("explain", JOB),
    "report": ("report", ENDED),
    "pools": ("pools",),
    "ledger": ("ledger",),
    "models": ("models",),
    "a model, verified": ("models", "digits", "--verify"),
    "datasets": ("datasets",),
    "stop": ("stop", JOB),
    "stop of an ended job": ("stop", ENDED),
}
OTHERS = {"restart": ("restart", ENDED), "doctor": ("doctor",), "datasets forget": ("datasets", "forget", "digits")}
UNKNOWN = {
    "job": ("job", ABSENT),
    "logs": ("logs", ABSENT),
    "logs, followed": ("logs", "-f", ABSENT),
    "stop": ("stop", ABSENT),
    "restart": ("restart", ABSENT),
    "restart, resumed": ("restart", "--resume", ABSENT),
    "explain": ("explain", ABSENT),
    "report": ("report", ABSENT),
    "models": ("models", "nobody"),
    "models, verified": ("models", "nobody", "--verify"),
    "datasets forget": ("datasets", "forget", "nobody"),
}


def table(commands: dict[str, tuple[str, ...]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("words", [pytest.param(words, id=name) for name, words in commands.items()])


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """A bit of everything; a message that a markup or a terminal might take for something else."""
    made = Installation(tmp_path_factory.mktemp("stocked"))
    text = "[red]waits[/red] for 3 of 8 GPUs → now; " + "a long sentence " * 12
    made.put(
        make_job(JOB, explanation=Explanation(Reason.WAITING_FOR_QUOTA, text)),
        make_job(ENDED, phase=Phase.FAILED, explanation=Explanation(Reason.STOPPED, "Stopped by ann."), ended_at=NOW),
        leases=[make_lease(gpus=8)],
    )
    draft = ModelDraft(model="digits", metrics={"accuracy": 0.97}, lineage={"job": ENDED}, created_at=NOW)
    made.publish(draft, {"model.bin": b"weights"})
    assert made.called("datasets", "register", "digits", "data of us/digits").code == 0
    return made


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Nothing but an empty database."""
    return Installation(tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Nothing listens where its database should be."""
    made = Installation(tmp_path_factory.mktemp("cut_off"))
    made.database = "postgresql+psycopg://nobody:nothing@127.0.0.1:1/fermion"
    return made


@pytest.fixture(scope="module")
def misconfigured(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Two mistakes in its configuration."""
    made = Installation(tmp_path_factory.mktemp("misconfigured"))
    (made.root / "config" / "fermion.yaml").write_text("environment: embeded\ncolour: red\n")
    return made


def test_every_command_is_called_by_a_test() -> None:
    tests = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py"))
    assert [name for name in commands() if f'("{name}"' not in tests] == []


def test_every_command_is_documented() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    documented = {re.split(r"[ \]]", name)[0] for row in rows for name in re.findall(r"`([a-z][^`]*)`", row)}
    assert set(commands()) == documented


def commands() -> list[str]:
    """All of them, by name."""
    return sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@table({**LOOKS, "doctor": ("doctor",)})
def test_json_is_one_document_and_nothing_else_whatever_the_terminal(
    stocked: Installation, words: tuple[str, ...]
) -> None:
    answer = stocked.called(*words, "--json", columns=20)
    assert (answer.code, answer.err) == (1 if words == ("doctor",) else 0, ""), "nothing was synced, the engine is down"
    assert answer.document


@table({**LOOKS, "doctor": ("doctor",)})
def test_a_narrow_terminal_breaks_nothing(stocked: Installation, words: tuple[str, ...]) -> None:
    wide, narrow = (stocked.called(*words, columns=columns) for columns in (1000, 40))
    assert (narrow.code, narrow.err) == (wide.code, wide.err)
    assert letters(narrow.out) == letters(wide.out)
    assert all(job_id in narrow.out for job_id in re.findall(r"job-\d{8}-\d{3}", wide.out)), "ids can be copied"


def test_the_place_of_a_report_is_one_line_on_a_narrow_terminal(stocked: Installation) -> None:
    (line,) = stocked.called("report", ENDED, columns=40).out.splitlines()
    assert Path(line).is_file()


def letters(text: str) -> list[str]:
    """What is told, whatever the lines and columns that it stands in; without numbers, which the next moment changes."""
    return sorted(re.sub(r"[\s\d━╸╺]", "", text))


@table(UNKNOWN)
def test_what_there_is_not_is_code_4_with_words_or_json(empty: Installation, words: tuple[str, ...]) -> None:
    told = empty.called(*words, columns=40)
    assert (told.code, told.out) == (4, "")
    assert "nobody" in told.err or ABSENT in told.err
    assert len(told.err.splitlines()) == 1, "a complaint is not wrapped"
    answer = empty.called(*words, "--json")
    assert (answer.code, answer.err) == (4, "")
    assert answer.document == {"error": "not_found", "message": told.err.strip()}


@table({name: words for name, words in {**LOOKS, **OTHERS}.items() if words[0] not in {"models", "doctor"}})
def test_a_database_that_does_not_answer_is_code_3(cut_off: Installation, words: tuple[str, ...]) -> None:
    told, answer = cut_off.called(*words), cut_off.called(*words, "--json")
    assert (told.code, told.out, answer.code, answer.err) == (3, "", 3, "")
    assert answer.document == {"error": "outside_unavailable", "message": told.err.strip()}


def test_a_database_that_does_not_answer_is_what_the_doctor_tells(cut_off: Installation) -> None:
    answer = cut_off.called("doctor", "--json")
    assert (answer.code, answer.document["ok"], answer.document["open_leases"]) == (1, False, None)
    assert cut_off.called("doctor").code == 1


@table({**LOOKS, **OTHERS})
def test_a_configuration_with_problems_is_code_2(misconfigured: Installation, words: tuple[str, ...]) -> None:
    told, answer = misconfigured.called(*words), misconfigured.called(*words, "--json")
    assert (told.code, told.out, answer.code, answer.err) == (2, "", 2, "")
    assert answer.document == {"error": "settings_invalid", "message": told.err.strip()}
    assert all(f"fermion.yaml:{line}" in told.err for line in (1, 2)), "each problem has its line"
