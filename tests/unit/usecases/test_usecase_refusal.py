"""What a refusal says on a page with little room: whole problems, and no advice twice."""

from __future__ import annotations

import pytest

from fermion.domain.problems import Problem
from fermion.domain.request import parse_request
from fermion.errors import RequestRefused
from fermion.usecases.refusal import NOTE_CHARACTERS, note_of


def problem(number: int, *, message: str = "it is wrong.", fix: str = "") -> Problem:
    return Problem(field=f"field{number}", code="wrong", message=message, fix=fix or f"Mend {number}.")


def test_a_short_refusal_is_told_whole() -> None:
    note = note_of(RequestRefused([problem(1), problem(2)]), "check_quota")
    assert note == (
        "The request has 2 problems (whole in the log of check_quota), in field1, field2:\n\n"
        "- **field1**: it is wrong. Mend 1.\n- **field2**: it is wrong. Mend 2."
    )


@pytest.mark.parametrize("count", [3, 20, 60])
def test_a_long_one_is_cut_between_two_problems_and_says_how_many_are_left(count: int) -> None:
    problems = [problem(number, message=f"it is {'very ' * 60}wrong.") for number in range(count)]
    note = note_of(RequestRefused(problems), "check_quota")
    assert len(note) <= NOTE_CHARACTERS
    *told, last = note.splitlines()[2:]
    assert all(line.endswith(f"Mend {number}.") for number, line in enumerate(told))
    assert last == f"- and {count - len(told)} more problem{'s' if count - len(told) > 1 else ''}."


def test_the_known_fields_are_listed_once() -> None:
    with pytest.raises(RequestRefused) as refused:
        parse_request({"xylophone": 1, "zebra": 2, "quagga": 3})
    assert str(refused.value).count("Known fields:") == 1
    assert note_of(refused.value, "check_quota").count("Known fields:") == 1
    assert str(refused.value).count("no such field.") == 3


def test_short_advice_stays_with_each_problem() -> None:
    long, short = "Choose one of: " + "x" * 80, "Do it."
    problems = [problem(1, fix=long), problem(2, fix=short), problem(3, fix=long), problem(4, fix=short)]
    assert str(RequestRefused(problems)).splitlines()[1:] == [
        f"  - field1: it is wrong. {long}",
        "  - field2: it is wrong. Do it.",
        "  - field3: it is wrong.",
        "  - field4: it is wrong. Do it.",
    ]
