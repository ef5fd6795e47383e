"""What goes into a model and what comes out of it, in the words of the Open Inference Protocol (V2): named tensors.

Values lie flat, row by row. Reading what a person or program wrote is here too; sending it is the ``Inference`` port's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fermion.domain.problems import Problem
from fermion.domain.serving.routing import ApiType
from fermion.errors import RequestRefused

FLOATS: Final = frozenset({"FP16", "BF16", "FP32", "FP64"})
INTEGERS: Final = frozenset({"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"})
DATATYPES: Final = FLOATS | INTEGERS | {"BOOL", "BYTES"}

MAX_VALUES: Final = 1_000_000
"""Of one request."""

_MAX_DEPTH: Final = 8
_NUMPY: Final = {
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bool": "BOOL",
    "str": "BYTES",
    "object": "BYTES",
} | {f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}

Value = float | int | bool | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """Values by name; as many as the product of ``shape``. A null of the server's is NaN here."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: tuple[Value, ...]

    def to_payload(self) -> dict[str, Any]:
        """The tensor as the protocol's JSON."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape), "data": list(self.data)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """What a tensor must be. -1 in ``shape``: any size. ``low`` and ``high`` bound every value; None: nothing does."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a model takes and gives. Empty: the server does not say."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Whom to ask: a URL for REST (a route's prefix included), ``host:port`` for gRPC.

    ``service`` goes along as ``fermion-service``, by which the router knows whose a gRPC call is; None: no router between.
    """

    address: str
    model: str
    api_type: ApiType = ApiType.REST
    service: str | None = None


def signature_of(raw: Mapping[str, Any]) -> Signature:
    """The signature that a training wrote beside its model (``signature.json``); what is unusable in it is left out."""
    return Signature(inputs=_specs(raw.get("inputs")), outputs=_specs(raw.get("outputs")))


def datatype_of(word: object) -> str | None:
    """A datatype of the protocol, also by numpy's word for it; None where it is neither."""
    found = _NUMPY.get(word, word) if isinstance(word, str) else None
    return found if found in DATATYPES else None


def spec_of(row: Mapping[str, Any]) -> TensorSpec | None:
    """One tensor of a signature: ``datatype`` as the protocol has it or numpy's ``dtype``; None where it is unusable."""
    name, shape = row.get("name"), row.get("shape")
    datatype = datatype_of(row.get("datatype") or row.get("dtype"))
    if not isinstance(name, str) or not isinstance(shape, list | tuple) or datatype is None:
        return None
    if not all(isinstance(size, int) for size in shape):
        return None
    low, high = _range(row)
    return TensorSpec(name=name, datatype=datatype, shape=tuple(shape), low=low, high=high)


def read_inputs(raw: object, signature: Signature | None = None) -> tuple[Tensor, ...]:
    """The tensors that were meant: the protocol's ``{"inputs": […]}``, or only values, nested as they are shaped.

    Only values (``[[0, 0.5]]``, or ``{"pixels": [[0, 0.5]]}``) need the model's signature.

    Raises:
        RequestRefused: it has problems; all of them are listed.
    """
    specs = {spec.name: spec for spec in signature.inputs} if signature is not None else {}
    problems: list[Problem] = []
    tensors = [_tensor(f"inputs.{number}", each, specs, problems) for number, each in enumerate(_listed(raw, specs))]
    if not tensors:
        problems.append(
            _problem(
                "inputs", "missing", "there is no input.", 'Write {"inputs": [{"name", "shape", "datatype", "data"}]}.'
            )
        )
    if sum(len(tensor.data) for tensor in tensors) > MAX_VALUES:
        problems.append(_problem("inputs", "too_many", f"there are more than {MAX_VALUES} values.", "Ask in parts."))
    if problems:
        raise RequestRefused(problems, what="prediction request")
    return tuple(tensors)


def flat(values: object) -> tuple[tuple[int, ...], list[object]]:
    """The shape that nested lists have, and their values; a ragged list's values do not fill its shape."""
    if not isinstance(values, list | tuple):
        return (), [values]
    shape, found = _shape(values), list(_values(values, 0))
    return shape, found


# --- inside -----------------------------------------------------------------------------------------------------------


def _specs(raw: object) -> tuple[TensorSpec, ...]:
    rows = raw if isinstance(raw, list) else []
    return tuple(spec for row in rows if isinstance(row, Mapping) and (spec := spec_of(row)) is not None)


def _range(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """``range: [low, high]``, or the least and the greatest of ``classes``."""
    told = row.get("range", row.get("classes"))
    numbers = (
        told
        if isinstance(told, list | tuple) and told and all(isinstance(each, int | float) for each in told)
        else None
    )
    return (None, None) if numbers is None else (min(numbers), max(numbers))


def _listed(raw: object, specs: Mapping[str, TensorSpec]) -> list[Any]:
    """One raw input after the other."""
    if isinstance(raw, Mapping) and "inputs" in raw:
        inputs = raw["inputs"]
        return inputs if isinstance(inputs, list) else [inputs]
    if isinstance(raw, Mapping):
        return [{"name": name, "data": data} for name, data in raw.items()]
    return [] if raw is None else [{"name": next(iter(specs), ""), "data": raw}]


def _tensor(field: str, raw: object, specs: Mapping[str, TensorSpec], problems: list[Problem]) -> Tensor:
    given = raw if isinstance(raw, Mapping) else {"data": raw}
    name = given.get("name") or (next(iter(specs)) if len(specs) == 1 else "")
    if not name or not isinstance(name, str):
        problems.append(_problem(f"{field}.name", "missing", "it has no name.", "Name it as the model does."))
    spec = specs.get(str(name))
    if specs and name and spec is None:
        fix = f"It takes {', '.join(specs)}."
        problems.append(_problem(f"{field}.name", "unknown_input", f"the model takes no input {name!r}.", fix))
    datatype = given.get("datatype") or (spec.datatype if spec else "")
    if datatype not in DATATYPES:
        told = f"{datatype!r} is no datatype." if datatype else "it has no datatype."
        problems.append(
            _problem(f"{field}.datatype", "unknown_datatype", told, f"Take one of {', '.join(sorted(DATATYPES))}.")
        )
    nested, values = flat(given.get("data", []))
    shape = given.get("shape", nested)
    if not isinstance(shape, list | tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
        problems.append(_problem(f"{field}.shape", "bad_shape", f"{shape!r} is no shape.", "Write sizes, as [1, 64]."))
        shape = nested
    problems.extend(_problems_of_values(field, str(datatype), tuple(shape), values))
    return Tensor(name=str(name), datatype=str(datatype), shape=tuple(shape), data=tuple(values))  # type: ignore[arg-type]


def _problems_of_values(field: str, datatype: str, shape: Sequence[int], values: Sequence[object]) -> Iterator[Problem]:
    if len(values) != math.prod(shape):
        told = f"there are {len(values)} values, and the shape {list(shape)} holds {math.prod(shape)}."
        yield _problem(f"{field}.data", "wrong_count", told, "Give as many values as the shape holds.")
    wanted: tuple[type, ...] = (int, float)
    if datatype in INTEGERS:
        wanted = (int,)
    if datatype in ("BOOL", "BYTES"):
        wanted = (bool,) if datatype == "BOOL" else (str,)
    wrong = [
        each for each in values if not isinstance(each, wanted) or (isinstance(each, bool) != (datatype == "BOOL"))
    ]
    if datatype in DATATYPES and wrong:
        told = f"{len(wrong)} of {len(values)} values are no {datatype}, the first is {str(wrong[0])[:40]!r}."
        yield _problem(f"{field}.data", "wrong_values", told, "Give values of that datatype.")


def _shape(values: object) -> tuple[int, ...]:
    sizes: list[int] = []
    while isinstance(values, list | tuple) and len(sizes) < _MAX_DEPTH:
        sizes.append(len(values))
        values = values[0] if values else None
    return tuple(sizes)


def _values(values: object, depth: int) -> Iterator[object]:
    if not isinstance(values, list | tuple) or depth >= _MAX_DEPTH:
        yield values
        return
    for each in values:
        yield from _values(each, depth + 1)


def _problem(field: str, code: str, message: str, fix: str) -> Problem:
    return Problem(field=field, code=code, message=message, fix=fix)
