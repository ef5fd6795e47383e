"""A spec as the form's fields: whatever the engine's database makes of them, they mean the same spec."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from builders import make_spec
from fermion.adapters.memory.jsonlike import as_jsonb
from fermion.domain.forms import to_form
from fermion.domain.request import MAX_DURATION, parse_request, same_request
from fermion.domain.unstorable import MAX_NUMBER

DURATIONS = st.none() | st.timedeltas(min_value=timedelta(seconds=1), max_value=MAX_DURATION)
VALUES = (
    st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-MAX_NUMBER, MAX_NUMBER)
    | st.booleans()
    | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=5)
)


def test_jsonb_is_what_it_is_taken_for() -> None:
    stored = as_jsonb({"a": [1e16, 1.0, 2.5e-7, True, 5e-324, -0.0]})
    assert repr(stored) == "{'a': [10000000000000000, 1.0, 2.5e-07, True, 5e-324, 0.0]}"
    with pytest.raises(OverflowError):
        as_jsonb({"a": 1e20})


@given(value=VALUES, max_runtime=DURATIONS, queue_timeout=DURATIONS)
@example(value=1e16, max_runtime=timedelta(days=12), queue_timeout=None)
@example(value=1e20, max_runtime=timedelta(days=30), queue_timeout=None)
@example(value=-0.0, max_runtime=None, queue_timeout=timedelta(seconds=123456.7))
def test_a_spec_comes_back_as_it_was(
    value: str | float | bool, max_runtime: timedelta | None, queue_timeout: timedelta | None
) -> None:
    spec = make_spec(hyperparameters={"a": value}, max_runtime=max_runtime, queue_timeout=queue_timeout)
    read = parse_request({**as_jsonb(to_form(spec)), "owner": spec.owner})
    assert same_request(read, spec)


def test_ordinary_hyperparameters_stay_an_object_for_the_form() -> None:
    shown = {"epochs": 3, "lr": 2.5e-7, "name": "a", "flag": True}
    assert to_form(make_spec(hyperparameters=shown))["hyperparameters"] == shown
