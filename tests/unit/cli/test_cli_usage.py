"""What was typed wrongly: words for people, one JSON document for programs, the same exit code for both."""

from __future__ import annotations

import json

import pytest
from installations import Installation

WRONG = [
    pytest.param(["jobs", "--status", "nope"], "'nope'", id="a word that is none of the option's"),
    pytest.param(["jobs", "--limit", "0"], "--limit", id="a number out of range"),
    pytest.param(["jobs", "--limit", "many"], "--limit", id="a word for a number"),
    pytest.param(["jobs", "--state", "failed"], "--state", id="an option that there is not"),
    pytest.param(["job"], "JOB", id="an argument that is missing"),
    pytest.param(["train"], "--spec", id="an option that is missing"),
    pytest.param(["jobs", "more"], "more", id="an argument too many"),
    pytest.param(["train", "--spec", "-", "--wait", "--timeout", "-1"], "--timeout", id="a time before now"),
    pytest.param(["train", "--spec", "-", "--timeout", "5"], "--wait", id="a limit of the watching, and no watching"),
    pytest.param(["restart", "job-1", "--timeout", "5"], "--wait", id="the same for a restart"),
    pytest.param(["trian"], "trian", id="a command that there is not"),
    pytest.param(["datasets", "regster"], "regster", id="a command below another that there is not"),
    pytest.param(["datasets", "register", "digits"], "source", id="an argument of a command below another"),
]


@pytest.mark.parametrize(("words", "named"), WRONG)
def test_what_was_typed_wrongly_is_one_json_document_where_that_is_asked_for(
    installed: Installation, words: list[str], named: str
) -> None:
    code, printed, complained = installed.called(*words, "--json")
    answer = json.loads(printed)
    assert (code, answer["error"], complained) == (2, "usage", "")
    assert named in answer["message"]


@pytest.mark.parametrize(("words", "named"), WRONG)
def test_people_are_told_on_standard_error(installed: Installation, words: list[str], named: str) -> None:
    code, printed, complained = installed.called(*words)
    assert (code, printed) == (2, "")
    assert named in complained


def test_an_option_before_the_command_is_answered_too(installed: Installation) -> None:
    code, printed, _ = installed.called("--json", "jobs")
    assert (code, json.loads(printed)["error"]) == (2, "usage")


def test_what_is_right_is_not_touched(installed: Installation) -> None:
    assert installed.called("jobs", "--json") == (0, "[]\n", "")
    assert installed.called("job", "job-20260302-001", "--json")[0] == 4
    assert installed.called("jobs", "--help", "--json")[0] == 0
