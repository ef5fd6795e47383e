"""What goes into a model as people write it, and whether what comes out is an answer."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fermion.domain.serving.output_check import check_outputs
from fermion.domain.serving.tensors import (
    MAX_VALUES,
    Signature,
    Tensor,
    TensorSpec,
    read_inputs,
    signature_of,
)
from fermion.errors import RequestRefused

DIGITS = Signature(
    inputs=(TensorSpec(name="pixels", datatype="FP64", shape=(-1, 2)),),
    outputs=(
        TensorSpec(name="digit", datatype="INT64", shape=(-1,), low=0, high=9),
        TensorSpec(name="confidence", datatype="FP64", shape=(-1,), low=0, high=1),
    ),
)
WHOLE = {"inputs": [{"name": "pixels", "shape": [2, 2], "datatype": "FP64", "data": [0, 0.5, 1, 1]}]}


def make_tensor(**changes: Any) -> Tensor:
    """A digit and how sure the model is of it."""
    usual: dict[str, Any] = {"name": "digit", "datatype": "INT64", "shape": (2,), "data": (3, 9)}
    return Tensor(**{**usual, **changes})


SURE = make_tensor(name="confidence", datatype="FP64", data=(0.25, 1.0))


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "signature"),
    [
        pytest.param(WHOLE, None, id="the protocol's own"),
        pytest.param(WHOLE, DIGITS, id="the same, and what the model takes"),
        pytest.param({"pixels": [[0, 0.5], [1, 1]]}, DIGITS, id="values by name"),
        pytest.param([[0, 0.5], [1, 1]], DIGITS, id="values only"),
        pytest.param({"inputs": [{"data": [[0, 0.5], [1, 1]]}]}, DIGITS, id="an input without a name"),
        pytest.param(
            {"inputs": {"name": "pixels", "datatype": "FP64", "data": [[0, 0.5], [1, 1]]}}, None, id="no list"
        ),
    ],
)
def test_inputs_are_read_as_they_are_written(raw: object, signature: Signature | None) -> None:
    (tensor,) = read_inputs(raw, signature)
    assert tensor == Tensor(name="pixels", datatype="FP64", shape=(2, 2), data=(0, 0.5, 1, 1))
    assert read_inputs({"inputs": [tensor.to_payload()]}) == (tensor,)


@pytest.mark.parametrize(
    ("changes", "codes"),
    [
        pytest.param({"name": ""}, [("inputs.0.name", "missing")], id="no name"),
        pytest.param({"datatype": None}, [("inputs.0.datatype", "unknown_datatype")], id="no datatype"),
        pytest.param({"datatype": "FP8"}, [("inputs.0.datatype", "unknown_datatype")], id="another datatype"),
        pytest.param({"shape": [2, 3]}, [("inputs.0.data", "wrong_count")], id="too few values"),
        pytest.param({"shape": [-1, 4]}, [("inputs.0.shape", "bad_shape")], id="an open shape"),
        pytest.param({"shape": "wide"}, [("inputs.0.shape", "bad_shape")], id="no shape"),
        pytest.param({"data": [0, 1, 2, "3"]}, [("inputs.0.data", "wrong_values")], id="a text"),
        pytest.param({"data": [0, 1, 2, True]}, [("inputs.0.data", "wrong_values")], id="a truth"),
        pytest.param({"data": [0, 1, 2, None]}, [("inputs.0.data", "wrong_values")], id="a null"),
        pytest.param({"datatype": "INT64"}, [("inputs.0.data", "wrong_values")], id="a broken number"),
        pytest.param({"datatype": "BOOL", "data": [True, False, True, 1]}, [("inputs.0.data", "wrong_values")], id="1"),
        pytest.param({"datatype": "BYTES", "data": ["a", "b", "c", "d"]}, [], id="texts"),
        pytest.param({"shape": [2, 2], "data": [[0, 1], [2]]}, [("inputs.0.data", "wrong_count")], id="ragged"),
    ],
)
def test_what_is_wrong_with_an_input(changes: dict[str, Any], codes: list[tuple[str, str]]) -> None:
    raw = {"inputs": [{**WHOLE["inputs"][0], **changes}]}
    if not codes:
        assert read_inputs(raw)
        return
    with pytest.raises(RequestRefused) as refusal:
        read_inputs(raw)
    assert [(problem.field, problem.code) for problem in refusal.value.problems] == codes


def test_all_problems_of_all_inputs_are_told_at_once() -> None:
    with pytest.raises(RequestRefused) as refusal:
        read_inputs({"inputs": [{"name": "x", "data": []}, 7]}, DIGITS)
    assert [(problem.field, problem.code) for problem in refusal.value.problems] == [
        ("inputs.0.name", "unknown_input"),
        ("inputs.0.datatype", "unknown_datatype"),
    ]


@pytest.mark.parametrize("raw", [None, {}, {"inputs": []}])
def test_no_input_is_no_request(raw: object) -> None:
    with pytest.raises(RequestRefused, match="there is no input"):
        read_inputs(raw)


def test_a_request_may_hold_only_so_many_values() -> None:
    raw = {"inputs": [{"name": "a", "datatype": "INT8", "shape": [1 + MAX_VALUES], "data": [1] * (1 + MAX_VALUES)}]}
    with pytest.raises(RequestRefused, match="more than 1000000 values"):
        read_inputs(raw)


def test_a_signature_is_read_as_trainings_and_servers_write_it() -> None:
    found = signature_of(
        {
            "inputs": [{"name": "pixels", "dtype": "float64", "shape": [-1, 2]}],
            "outputs": [
                {"name": "digit", "dtype": "int64", "shape": [-1], "classes": [0, 9, 4]},
                {"name": "confidence", "datatype": "FP64", "shape": [-1], "range": [0, 1]},
            ],
        }
    )
    assert found == DIGITS


@pytest.mark.parametrize(
    "row",
    [
        1,
        {},
        {"name": "a", "shape": [1]},
        {"name": "a", "dtype": "complex64", "shape": [1]},
        {"name": "a", "dtype": "bool"},
    ],
)
def test_what_is_unusable_in_a_signature_is_left_out(row: object) -> None:
    assert signature_of({"inputs": [row], "outputs": 7}) == Signature()


# --- the check of outputs ---------------------------------------------------------------------------------------------


def test_an_answer_as_the_signature_says_passes() -> None:
    assert check_outputs([make_tensor(), SURE], DIGITS.outputs, rows=2) == ()
    assert check_outputs([SURE, make_tensor(name="more")], ()) == ()


@pytest.mark.parametrize(
    ("outputs", "rows", "words"),
    [
        pytest.param([SURE], None, "output 'digit' is missing; there is confidence", id="missing"),
        pytest.param([], None, "output 'digit' is missing; there is nothing", id="nothing at all"),
        pytest.param([make_tensor(datatype="INT32"), SURE], None, "is INT32, not INT64", id="datatype"),
        pytest.param(
            [make_tensor(shape=(2, 1)), SURE], None, r"has the shape [2, 1], not [-1]", id="one dimension more"
        ),
        pytest.param([make_tensor(), SURE], 3, r"has the shape [2], not [3]", id="another count than asked for"),
        pytest.param([make_tensor(data=(3,)), SURE], None, r"holds 1 values, and its shape says [2]", id="too few"),
        pytest.param([make_tensor(data=(3, 10)), SURE], None, "holds 10, which is not within 0 to 9", id="above"),
        pytest.param([make_tensor(data=(-1, 3)), SURE], None, "holds -1, which is not within 0 to 9", id="below"),
        pytest.param(
            [make_tensor(), make_tensor(name="confidence", datatype="FP64", data=(math.nan, 1.0))],
            None,
            "holds 1 of 2 values that are not finite (nan)",
            id="no number",
        ),
        pytest.param(
            [make_tensor(), SURE, make_tensor(name="extra", datatype="FP32", data=(math.inf, 1.0))],
            None,
            "output 'extra' holds 1 of 2 values that are not finite (inf)",
            id="infinite, where nothing is expected",
        ),
    ],
)
def test_what_is_no_answer(outputs: list[Tensor], rows: int | None, words: str) -> None:
    assert words in "\n".join(check_outputs(outputs, DIGITS.outputs, rows=rows))


def test_everything_wrong_is_told_at_once() -> None:
    found = check_outputs([make_tensor(datatype="INT8", shape=(2, 1), data=(11, 3))], DIGITS.outputs)
    assert len(found) == 4
