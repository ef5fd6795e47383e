"""JSON in and out of columns: what is written quickly is what the standard library would read."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermion.adapters.sql.json_text import from_json, to_json
from fermion.domain.reasons import Reason

SURROGATE = "\ud800"
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec=None)),
    st.sampled_from([SURROGATE, "null", "\x00", "a\udfffb"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just(SURROGATE), inner), max_leaves=20
)


@given(VALUES)
def test_what_is_written_is_read_back_by_us_and_by_the_standard_library(value: Any) -> None:
    written = to_json(value)
    assert from_json(written) == json.loads(written) == value
    assert from_json(json.dumps(value)) == value


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_what_json_has_not_is_refused_wherever_it_hides(odd: float) -> None:
    for value in (odd, [1, odd], {"a": {"b": [None, odd]}}, {"null": odd}):
        with pytest.raises(ValueError, match="not JSON compliant"):
            to_json(value)


def test_read_only_mappings_enums_tuples_and_keys_that_are_numbers_are_written() -> None:
    assert to_json(MappingProxyType({"a": MappingProxyType({"b": (1, 2)})})) == '{"a":{"b":[1,2]}}'
    assert to_json({"reason": Reason.GRANTED}) == f'{{"reason":"{Reason.GRANTED}"}}'
    assert to_json({1: None}) == '{"1":null}'
    assert from_json(to_json(1 << 80)) == 1 << 80


def test_what_is_no_value_is_refused() -> None:
    with pytest.raises(TypeError, match="object is not a JSON-ready value"):
        to_json({"a": object()})
    with pytest.raises(ValueError, match="Expecting"):
        from_json("{")
