"""Whether a model's answer is one: the check of outputs that a rollout's plan may ask for. Right or wrong it cannot tell.

What came is first brought to numbers that are small enough to be kept (``seen_of``); the verdict follows from those alone, so it
can be given again from what was stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fermion.domain.serving.tensors import Tensor, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSeen:
    """What came of one output: ``values`` of them, ``not_finite`` of which are no finite numbers, the first one as text.

    ``low`` and ``high`` are the ends of the finite ones; None where there is no number.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: int
    not_finite: int = 0
    first_not_finite: str = ""
    low: float | None = None
    high: float | None = None


def seen_of(output: Tensor) -> OutputSeen:
    """The output in a few numbers."""
    wrong = [value for value in output.data if isinstance(value, float) and not math.isfinite(value)]
    numbers = [value for value in output.data if not isinstance(value, str) and math.isfinite(value)]
    return OutputSeen(
        name=output.name,
        datatype=output.datatype,
        shape=output.shape,
        values=len(output.data),
        not_finite=len(wrong),
        first_not_finite=str(wrong[0]) if wrong else "",
        low=min(numbers, default=None),
        high=max(numbers, default=None),
    )


def check_outputs(
    outputs: Sequence[Tensor], expected: Sequence[TensorSpec], *, rows: int | None = None
) -> tuple[str, ...]:
    """A sentence for each thing wrong with an answer; empty: nothing is. ``check_seen`` says what is asked."""
    return check_seen([seen_of(output) for output in outputs], expected, rows=rows)


def check_seen(
    outputs: Sequence[OutputSeen], expected: Sequence[TensorSpec], *, rows: int | None = None
) -> tuple[str, ...]:
    """A sentence for each thing wrong with what came; empty: nothing is.

    There must be an output, every number be finite, every tensor hold as many values as its shape says, and each expected one
    be there with its datatype, shape and range. ``rows`` is how many were asked for: an expected shape that begins with -1
    must begin with it.
    """
    by_name = {output.name: output for output in outputs}
    found = [problem for output in outputs for problem in _problems_of(output)]
    if not outputs and not expected:
        found.append("there is no output")
    for spec in expected:
        output = by_name.get(spec.name)
        if output is None:
            there = ", ".join(by_name) or "nothing"
            found.append(f"output {spec.name!r} is missing; there is {there}")
        else:
            found.extend(_differences(output, spec, rows))
    return tuple(found)


def _problems_of(output: OutputSeen) -> Iterator[str]:
    if output.values != math.prod(output.shape):
        yield f"output {output.name!r} holds {output.values} values, and its shape says {list(output.shape)}"
    if output.not_finite:
        share = f"{output.not_finite} of {output.values}"
        yield f"output {output.name!r} holds {share} values that are not finite ({output.first_not_finite})"


def _differences(output: OutputSeen, spec: TensorSpec, rows: int | None) -> Iterator[str]:
    if output.datatype != spec.datatype:
        yield f"output {spec.name!r} is {output.datatype}, not {spec.datatype}"
    shape = (rows, *spec.shape[1:]) if rows is not None and spec.shape[:1] == (-1,) else spec.shape
    fits = len(shape) == len(output.shape) and all(
        size in (-1, seen) for size, seen in zip(shape, output.shape, strict=True)
    )
    if not fits:
        yield f"output {spec.name!r} has the shape {list(output.shape)}, not {list(shape)}"
    outside = [end for end in (output.low, output.high) if end is not None and not _is_within(end, spec)]
    if outside:
        yield f"output {spec.name!r} holds {outside[0]:g}, which is not within {_shown(spec)}"


def _is_within(value: float, spec: TensorSpec) -> bool:
    return (spec.low is None or value >= spec.low) and (spec.high is None or value <= spec.high)


def _shown(spec: TensorSpec) -> str:
    low = "-inf" if spec.low is None else f"{spec.low:g}"
    high = "inf" if spec.high is None else f"{spec.high:g}"
    return f"{low} to {high}"
