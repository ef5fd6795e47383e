"""Output checks from what a person wrote in a plan, or all that is wrong with them. Pure.

An input is as the Open Inference Protocol has it, with one liberty: a single value as ``data`` fills the whole ``shape``. An
output is as a training writes it into ``signature.json``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from fermion.domain.fields import Fields, number_of, shown
from fermion.domain.problems import Problem
from fermion.domain.rollout.plan import OutputCheck
from fermion.domain.serving.tensors import DATATYPES, Tensor, TensorSpec, datatype_of, read_inputs, spec_of
from fermion.errors import RequestRefused

MAX_CHECKS: Final = 10
MAX_SAMPLE_VALUES: Final = 20_000
"""Of one sample: it is stored with every plan."""

_CHECK: Final = {name: name for name in ("name", "inputs", "outputs")}
_OUTPUT: Final = {
    **{name: name for name in ("name", "datatype", "shape", "range")},
    "dtype": "datatype",
    "classes": "range",
}


def read_checks(plan: Fields) -> tuple[OutputCheck, ...]:
    """The plan's output checks, as far as they can be read; what cannot is blamed."""
    raw = plan.items("output_checks", [])
    if len(raw) > MAX_CHECKS:
        plan.refuse("output_checks", "too_many", f"there are {len(raw)}; at most {MAX_CHECKS}.", "Leave some out.")
    found = [_check(plan, number, each) for number, each in enumerate(raw[:MAX_CHECKS])]
    names = [check.name for check in found]
    for name in dict.fromkeys(each for each in names if names.count(each) > 1):
        message = f"{name[:60]!r} is there {names.count(name)} times."
        plan.refuse("output_checks", "duplicate", message, "Give each check a name of its own.")
    return tuple(found)


def _check(plan: Fields, number: int, raw: object) -> OutputCheck:
    path = f"output_checks.{number}"
    given = Fields(path, raw, _CHECK, plan.problems)
    name = given.text("name", "") if "name" in given.values else f"sample-{number + 1}"
    if not isinstance(raw, Mapping):
        return OutputCheck(name=name, inputs=())
    outputs = [_output(given, place, each) for place, each in enumerate(given.items("outputs", []))]
    return OutputCheck(
        name=name, inputs=_inputs(given), outputs=tuple(output for output in outputs if output is not None)
    )


def _inputs(given: Fields) -> tuple[Tensor, ...]:
    raw = given.values.get("inputs")
    if raw is None:
        fix = "Write a sample request: [{name, datatype, shape, data}]; one value as data fills the shape."
        given.refuse("inputs", "missing", "there is no sample to ask with.", fix)
        return ()
    rows = raw if isinstance(raw, list | tuple) else [raw]
    size = sum(_size(row) for row in rows)
    if size > MAX_SAMPLE_VALUES:
        message = f"the sample holds {size} values; at most {MAX_SAMPLE_VALUES}."
        given.refuse("inputs", "too_many", message, "Ask with a smaller one.")
        return ()
    try:
        return read_inputs({"inputs": [_filled(row) for row in rows]})
    except RequestRefused as refusal:
        given.problems.extend(replace(problem, field=f"{given.path}.{problem.field}") for problem in refusal.problems)
        return ()


def _size(row: object) -> int:
    """How many values an input holds, or would hold if one fills it."""
    data = row.get("data") if isinstance(row, Mapping) else row
    shape = row.get("shape") if isinstance(row, Mapping) else None
    if not isinstance(data, list | tuple):
        return _product(shape)
    stack, count = list(data), 0
    while stack and count <= MAX_SAMPLE_VALUES:
        each = stack.pop()
        if isinstance(each, list | tuple):
            stack.extend(each)
        else:
            count += 1
    return count


def _product(shape: object) -> int:
    if not isinstance(shape, list | tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
        return 1
    return math.prod(shape)


def _filled(row: object) -> object:
    if not isinstance(row, Mapping) or "data" not in row or isinstance(row["data"], list | tuple | Mapping):
        return row
    count = _product(row.get("shape"))
    return {**row, "data": [row["data"]] * count}


def _output(check: Fields, number: int, raw: object) -> TensorSpec | None:
    given = Fields(f"{check.path}.outputs.{number}", raw, _OUTPUT, check.problems)
    if not isinstance(raw, Mapping):
        return None
    problems = list(_problems_of(given))
    check.problems.extend(problems)
    return None if problems else spec_of(given.values)


def _problems_of(given: Fields) -> Iterator[Problem]:
    name, datatype = given.values.get("name"), given.values.get("datatype")
    if not isinstance(name, str) or len(name) > 100:
        yield _problem(given, "name", "missing" if name is None else "not_text", "it has no name.", "Name the output.")
    if datatype_of(datatype) is None:
        told = "it has no datatype." if datatype is None else f"{shown(datatype)} is no datatype."
        yield _problem(given, "datatype", "unknown_datatype", told, f"Take one of {', '.join(sorted(DATATYPES))}.")
    shape = given.values.get("shape")
    sizes = shape if isinstance(shape, list | tuple) and len(shape) <= 8 else None
    if sizes is None or not all(isinstance(size, int) and not isinstance(size, bool) and size >= -1 for size in sizes):
        told = "it has no shape." if shape is None else f"{shown(shape)} is no shape."
        yield _problem(given, "shape", "bad_shape", told, "Write sizes, as [1, 10]; -1 is any size.")
    ends = given.values.get("range")
    if ends is not None and not (isinstance(ends, list | tuple) and ends and all(map(_is_number, ends))):
        yield _problem(given, "range", "bad_range", f"{shown(ends)} is no range.", "Write the least and the greatest.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and number_of(value) is not None


def _problem(given: Fields, name: str, code: str, message: str, fix: str) -> Problem:
    return Problem(field=f"{given.path}.{name}", code=code, message=message, fix=fix)
