"""A number with its noun."""

from __future__ import annotations

import pytest

from fermion.domain.counting import counted


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (counted(0, "GPU"), "0 GPUs"),
        (counted(1, "GPU"), "1 GPU"),
        (counted(2, "GPU"), "2 GPUs"),
        (counted(12345, "byte"), "12,345 bytes"),
        (counted(1, "process", "processes"), "1 process"),
        (counted(3, "process", "processes"), "3 processes"),
    ],
)
def test_a_noun_is_in_the_number_that_it_is_counted_with(said: str, expected: str) -> None:
    assert said == expected
