"""What every ``Inference`` keeps, asked of one model: it adds the two numbers of each row, and obeys certain first numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import pytest

from fermion.domain.serving.services import ApiType
from fermion.domain.serving.tensors import Signature, Target, Tensor, TensorSpec
from fermion.errors import DriverCannot, NotFound, OutsideBroken, OutsideUnavailable, RequestRefused
from fermion.ports import Inference

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP64", shape=(-1, 2)),),
    outputs=(
        TensorSpec(name="sum", datatype="FP64", shape=(-1,)),
        TensorSpec(name="word", datatype="BYTES", shape=(-1,)),
    ),
)
REFUSE, FAIL, BE_LATE, NO_NUMBER = -1.0, -2.0, -3.0, -4.0


def add(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The model.

    Raises:
        ValueError: it does not take the inputs.
        RuntimeError: it was asked to fail.
        TimeoutError: it was asked to be late.
    """
    if [(each.name, each.shape[1:]) for each in inputs] != [("x", (2,))]:
        raise ValueError("there must be one input x of two columns")
    values = [float(value) for value in inputs[0].data]
    for number, problem in ((REFUSE, ValueError), (FAIL, RuntimeError), (BE_LATE, TimeoutError)):
        if values[0] == number:
            raise problem("as asked for")
    sums = [a + b for a, b in zip(values[::2], values[1::2], strict=True)]
    sums = [math.nan] * len(sums) if values[0] == NO_NUMBER else sums
    words = tuple("even" if total % 2 == 0 else "odd" for total in sums)
    rows = (len(sums),)
    return (
        Tensor(name="sum", datatype="FP64", shape=rows, data=tuple(sums)),
        Tensor(name="word", datatype="BYTES", shape=rows, data=words),
    )


def x(*rows: tuple[float, float]) -> tuple[Tensor, ...]:
    """The input that the model takes."""
    data = tuple(value for row in rows for value in row)
    return (Tensor(name="x", datatype="FP64", shape=(len(rows), 2), data=data),)


class Served(Protocol):
    """The model, served, and whoever asks it."""

    inference: Inference
    target: Target
    nobody: Target

    def set_ready(self, is_ready: bool) -> None:
        """Whether the model says that it takes requests."""
        ...


class InferenceContract:
    """A subclass has a fixture ``served``."""

    def test_a_model_answers_with_its_outputs(self, served: Served) -> None:
        total, word = served.inference.predict(served.target, x((1.0, 2.5), (3.0, 1.0)))
        assert total == Tensor(name="sum", datatype="FP64", shape=(2,), data=(3.5, 4.0))
        assert word == Tensor(name="word", datatype="BYTES", shape=(2,), data=("odd", "even"))

    def test_a_number_that_is_none_arrives_as_such(self, served: Served) -> None:
        (value,) = served.inference.predict(served.target, x((NO_NUMBER, 1.0)))[0].data
        assert isinstance(value, float)
        assert math.isnan(value)

    def test_inputs_that_the_model_does_not_take_are_refused_in_its_words(self, served: Served) -> None:
        wrong = (replace(x((1.0, 1.0))[0], shape=(1, 1, 2)),)
        with pytest.raises(RequestRefused, match="there must be one input x of two columns"):
            served.inference.predict(served.target, wrong)
        with pytest.raises(RequestRefused) as refusal:
            served.inference.predict(served.target, x((REFUSE, 0.0)))
        assert [(each.field, each.code) for each in refusal.value.problems] == [("inputs", "refused_by_model")]

    def test_a_model_that_is_not_there_is_not_found(self, served: Served) -> None:
        other = replace(served.target, model="other")
        with pytest.raises(NotFound, match="knows no model 'other'"):
            served.inference.predict(other, x((1.0, 1.0)))
        with pytest.raises(NotFound):
            served.inference.signature(other)
        assert not served.inference.is_ready(other)

    def test_a_model_that_fails_is_broken(self, served: Served) -> None:
        with pytest.raises(OutsideBroken, match="failed"):
            served.inference.predict(served.target, x((FAIL, 0.0)))

    def test_a_model_that_is_late_is_unavailable(self, served: Served) -> None:
        with pytest.raises(OutsideUnavailable, match="did not answer within") as late:
            served.inference.predict(served.target, x((BE_LATE, 0.0)))
        assert late.value.retryable

    def test_where_nobody_listens_nobody_answers(self, served: Served) -> None:
        with pytest.raises(OutsideUnavailable, match="nobody answers at") as nobody:
            served.inference.predict(served.nobody, x((1.0, 1.0)))
        assert nobody.value.retryable
        with pytest.raises(OutsideUnavailable):
            served.inference.signature(served.nobody)
        assert not served.inference.is_ready(served.nobody)

    def test_a_model_says_whether_it_is_ready(self, served: Served) -> None:
        assert served.inference.is_ready(served.target)
        served.set_ready(False)
        assert not served.inference.is_ready(served.target)
        with pytest.raises(OutsideUnavailable, match="cannot answer now") as busy:
            served.inference.predict(served.target, x((1.0, 1.0)))
        assert busy.value.retryable

    def test_a_model_tells_what_it_takes_and_gives(self, served: Served) -> None:
        assert served.inference.signature(served.target) == SIGNATURE

    def test_a_websocket_has_no_predictions(self, served: Served) -> None:
        with pytest.raises(DriverCannot, match="websocket"):
            served.inference.predict(replace(served.target, api_type=ApiType.WEBSOCKET), x((1.0, 1.0)))
