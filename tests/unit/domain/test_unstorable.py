"""One limit for numbers, at the engine's door and in a request; what differs is told by the advice."""

from __future__ import annotations

import pytest

from builders import make_spec
from fermion.domain.forms import to_form
from fermion.domain.request import read_request
from fermion.domain.unstorable import MAX_NUMBER, problems_of


def at_the_door(value: object) -> set[tuple[str, str]]:
    return {(problem.code, problem.fix) for problem in problems_of({"a": value})}


def in_a_request(value: object) -> set[tuple[str, str]]:
    form = {**to_form(make_spec()), "hyperparameters": {"a": value}}
    return {(each.code, each.fix) for each in read_request(form).problems if each.field == "hyperparameters.a"}


@pytest.mark.parametrize("value", [MAX_NUMBER, -MAX_NUMBER, 0, True])
def test_numbers_within_the_limit_are_taken_by_both(value: int) -> None:
    assert (at_the_door(value), in_a_request(value)) == (set(), set())


@pytest.mark.parametrize("value", [MAX_NUMBER + 1, -MAX_NUMBER - 1, 10**400])
def test_whole_numbers_beyond_it_are_refused_by_both_each_with_its_advice(value: int) -> None:
    assert at_the_door(value) == {("too_large", "Write it as a string.")}
    assert in_a_request(value) == {("too_large", "Write it as a string or as a floating point number.")}


def test_a_float_beyond_it_is_refused_only_where_the_engine_would_read_it() -> None:
    assert at_the_door(1e20) == {("too_large", "Write it as a string.")}
    assert in_a_request(1e20) == set()
