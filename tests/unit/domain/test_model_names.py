"""Which names a model may have."""

from __future__ import annotations

import pytest

from fermion.domain.model_names import MAX_LENGTH, MAX_SEGMENTS, problems_of


@pytest.mark.parametrize(
    "name",
    ["digits", "vision/digits", "a.b_c-1/7b", "0x", "a" * MAX_LENGTH, "/".join(["a"] * MAX_SEGMENTS)],
)
def test_a_plain_name_has_no_problem(name: str) -> None:
    assert problems_of(name) == []


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        pytest.param("", ["empty"], id="empty"),
        pytest.param("a" * (MAX_LENGTH + 1), ["too_long"], id="one character too long"),
        pytest.param("/".join(["a"] * (MAX_SEGMENTS + 1)), ["too_deep"], id="one segment too many"),
        pytest.param("..", ["dot_segment"], id="only dots"),
        pytest.param("a/../b", ["dot_segment"], id="dots in the middle"),
        pytest.param("./a", ["dot_segment"], id="one dot"),
        pytest.param("/etc/passwd", ["absolute"], id="absolute"),
        pytest.param("~/models", ["absolute", "bad_characters"], id="a home folder"),
        pytest.param("C:\\models", ["foreign_scheme"], id="a drive"),
        pytest.param("s3://bucket/digits", ["foreign_scheme"], id="another scheme"),
        pytest.param("file:///tmp/x", ["foreign_scheme"], id="a file URL"),
        pytest.param("a//b", ["empty_segment"], id="an empty segment"),
        pytest.param("a/", ["empty_segment"], id="a slash at the end"),
        pytest.param("Digits", ["bad_characters"], id="capital letters"),
        pytest.param("-rf", ["bad_characters"], id="a leading dash"),
        pytest.param(".staging", ["bad_characters"], id="a leading dot"),
        pytest.param("a b\n", ["bad_characters"], id="white space"),
        pytest.param("modèle", ["bad_characters"], id="an accent"),
        pytest.param("digits/3", ["number_segment"], id="what looks like a version"),
        pytest.param("/Digits/../3/", None, id="several at once"),
    ],
)
def test_every_problem_of_a_name_is_told(name: str, codes: list[str] | None) -> None:
    found = [problem.code for problem in problems_of(name)]

    assert found == (codes or ["absolute", "dot_segment", "empty_segment", "bad_characters", "number_segment"])


def test_problems_are_put_to_the_field_that_was_named_and_say_what_to_do() -> None:
    (problem,) = problems_of("A", field="spec.output")

    assert problem.field == "spec.output"
    assert "'A'" in problem.message
    assert "vision/digits" in problem.fix
