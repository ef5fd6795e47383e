"""The messages of ``inference.GRPCInferenceService`` (Open Inference Protocol V2), as far as they are needed here.

Names and numbers are the protocol's; fields that are left out are skipped when they come. The classes are made from this
table in a pool of their own, so that they stand beside any other copy of the protocol in the same process.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE: Final = "inference.GRPCInferenceService"

_PACKAGE: Final = "inference"
_KINDS: Final = {
    "string": 9,
    "bool": 8,
    "bytes": 12,
    "int32": 5,
    "int64": 3,
    "uint32": 13,
    "uint64": 4,
    "float": 2,
    "double": 1,
}
_MESSAGE: Final = 11
_OPTIONAL, _REPEATED = 1, 3

_MESSAGES: Final[dict[str, str]] = {
    "ModelReadyRequest": "name=1 string, version=2 string",
    "ModelReadyResponse": "ready=1 bool",
    "ModelMetadataRequest": "name=1 string, version=2 string",
    "TensorMetadata": "name=1 string, datatype=2 string, shape=3 *int64",
    "ModelMetadataResponse": "name=1 string, versions=2 *string, platform=3 string, inputs=4 *TensorMetadata, "
    "outputs=5 *TensorMetadata",
    "InferTensorContents": "bool_contents=1 *bool, int_contents=2 *int32, int64_contents=3 *int64, uint_contents=4 *uint32, "
    "uint64_contents=5 *uint64, fp32_contents=6 *float, fp64_contents=7 *double, bytes_contents=8 *bytes",
    "InferTensor": "name=1 string, datatype=2 string, shape=3 *int64, contents=5 InferTensorContents",
    "ModelInferRequest": "model_name=1 string, model_version=2 string, id=3 string, inputs=5 *InferTensor, "
    "raw_input_contents=7 *bytes",
    "ModelInferResponse": "model_name=1 string, model_version=2 string, id=3 string, outputs=5 *InferTensor, "
    "raw_output_contents=6 *bytes",
}
"""Message to its fields, ``*`` for a list. Tensors have one name for both directions; on the wire they have none."""


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="open_inference_v2.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields.split(", "):
            told, _, kind = field.partition(" ")
            label = _REPEATED if kind.startswith("*") else _OPTIONAL
            kind = kind.removeprefix("*")
            word, _, number = told.partition("=")
            made = message.field.add(name=word, number=int(number), label=label, type=_KINDS.get(kind, _MESSAGE))
            if kind not in _KINDS:
                made.type_name = f".{_PACKAGE}.{kind}"
    return file


_pool = descriptor_pool.DescriptorPool()
_pool.Add(_file())


def _class(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


ModelReadyRequest: Final = _class("ModelReadyRequest")
ModelReadyResponse: Final = _class("ModelReadyResponse")
ModelMetadataRequest: Final = _class("ModelMetadataRequest")
ModelMetadataResponse: Final = _class("ModelMetadataResponse")
ModelInferRequest: Final = _class("ModelInferRequest")
ModelInferResponse: Final = _class("ModelInferResponse")
