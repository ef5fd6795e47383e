"""Tensors as the messages of the protocol, and back. Answers may hold their values typed, or raw as little-endian bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final

from fermion.adapters.inference import messages
from fermion.domain.serving.tensors import Signature, Tensor, TensorSpec, Value

CONTENTS: Final = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where the values of a datatype lie. The half floats have no such place: they are only ever raw."""

_FORMATS: Final = {
    "BOOL": "?",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}


def infer_request(model: str, inputs: Sequence[Tensor]) -> Any:
    """The message.

    Raises:
        ValueError: a value does not fit its datatype, or the datatype cannot be sent.
    """
    request = messages.ModelInferRequest(model_name=model)
    for tensor in inputs:
        if tensor.datatype not in CONTENTS:
            raise ValueError(f"input {tensor.name!r} is {tensor.datatype}, which is not sent; send FP32")
        added = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        values = [value.encode() if isinstance(value, str) else value for value in tensor.data]
        try:
            getattr(added.contents, CONTENTS[tensor.datatype]).extend(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"input {tensor.name!r} holds what is no {tensor.datatype}: {error}") from error
    return request


def outputs_of(response: Any) -> tuple[Tensor, ...]:
    """The outputs of an answer.

    Raises:
        ValueError: its values do not fill its shapes, or it has a datatype that the protocol has not.
    """
    raw = response.raw_output_contents
    if raw and len(raw) != len(response.outputs):
        raise ValueError(f"{len(response.outputs)} outputs, and {len(raw)} raw contents")
    return tuple(_tensor(output, raw[number] if raw else None) for number, output in enumerate(response.outputs))


def signature_of(response: Any) -> Signature:
    """What the metadata of a model say."""
    return Signature(inputs=tuple(_specs(response.inputs)), outputs=tuple(_specs(response.outputs)))


def _specs(rows: Any) -> Iterator[TensorSpec]:
    for row in rows:
        yield TensorSpec(name=row.name, datatype=row.datatype, shape=tuple(row.shape))


def _tensor(output: Any, raw: bytes | None) -> Tensor:
    values = _typed(output) if raw is None else tuple(_unpacked(output.datatype, raw))
    return Tensor(name=output.name, datatype=output.datatype, shape=tuple(output.shape), data=values)


def _typed(output: Any) -> tuple[Value, ...]:
    if output.datatype not in CONTENTS:
        raise ValueError(f"output {output.name!r} is {output.datatype!r} and not raw")
    values = getattr(output.contents, CONTENTS[output.datatype])
    return tuple(value.decode(errors="replace") if isinstance(value, bytes) else value for value in values)


def _unpacked(datatype: str, raw: bytes) -> Iterator[Value]:
    if datatype == "BYTES":
        yield from _texts(raw)
    elif datatype == "BF16":  # the upper half of an FP32
        for (half,) in _each("H", raw):
            yield struct.unpack("<f", struct.pack("<I", half << 16))[0]
    elif datatype in _FORMATS:
        for (value,) in _each(_FORMATS[datatype], raw):
            yield value
    else:
        raise ValueError(f"there is no datatype {datatype!r}")


def _each(kind: str, raw: bytes) -> Iterator[tuple[Any, ...]]:
    size = struct.calcsize(f"<{kind}")
    if len(raw) % size:
        raise ValueError(f"{len(raw)} bytes are no whole number of values of {size}")
    return struct.iter_unpack(f"<{kind}", raw)


def _texts(raw: bytes) -> Iterator[str]:
    """Each with its length before it."""
    at = 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise ValueError("a text's length is cut off")
        (length,) = struct.unpack_from("<I", raw, at)
        if at + 4 + length > len(raw):
            raise ValueError("a text is cut off")
        yield raw[at + 4 : at + 4 + length].decode(errors="replace")
        at += 4 + length
