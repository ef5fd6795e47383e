"""The Open Inference Protocol (V2) over gRPC, without TLS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import grpc

from fermion.adapters.inference import messages, verdicts, wire
from fermion.domain.serving.tensors import Signature, Target, Tensor

_REFUSED = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
)
_BUSY = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED, grpc.StatusCode.CANCELLED)


class GrpcAsking:
    """A connection for each question: nothing is kept that a fork could break."""

    def __init__(self, *, timeout_s: float, max_bytes: int) -> None:
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes

    def predict(self, target: Target, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The model's outputs."""
        try:
            request = wire.infer_request(target.model, inputs)
        except ValueError as error:
            raise verdicts.refused(target, "nothing yet", str(error)) from error
        if request.ByteSize() > self._max_bytes:
            raise verdicts.too_large(target, self._max_bytes)
        answer = self._ask(target, "ModelInfer", request, messages.ModelInferResponse)
        try:
            return wire.outputs_of(answer)
        except ValueError as error:
            raise verdicts.unusable(target, str(error)) from error

    def says_ready(self, target: Target) -> bool:
        """Whether the model says that it takes requests."""
        request = messages.ModelReadyRequest(name=target.model)
        return bool(self._ask(target, "ModelReady", request, messages.ModelReadyResponse).ready)

    def signature(self, target: Target) -> Signature:
        """What the server says that the model takes and gives."""
        request = messages.ModelMetadataRequest(name=target.model)
        return wire.signature_of(self._ask(target, "ModelMetadata", request, messages.ModelMetadataResponse))

    # -- inside

    def _ask(self, target: Target, method: str, request: Any, answer: Any) -> Any:
        options = [
            ("grpc.max_receive_message_length", self._max_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        metadata = () if target.service is None else (("fermion-service", target.service),)
        with grpc.insecure_channel(target.address, options=options) as channel:
            call: Callable[..., Any] = channel.unary_unary(
                f"/{messages.SERVICE}/{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=answer.FromString,
            )
            try:
                return call(request, timeout=self._timeout_s, metadata=metadata)
            except grpc.RpcError as error:
                self._refuse(target, error)

    def _refuse(self, target: Target, error: Any) -> NoReturn:
        code, words = error.code(), error.details() or ""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise verdicts.late(target, self._timeout_s) from error
        if code is grpc.StatusCode.UNAVAILABLE:
            known = verdicts.unreachable(target, words) if _is_ours(words) else verdicts.busy(target, code.name, words)
            raise known from error
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in words:
            raise verdicts.unusable(target, f"it is larger than {self._max_bytes} bytes") from error
        if code is grpc.StatusCode.NOT_FOUND:
            raise verdicts.unknown(target, words) from error
        if code is grpc.StatusCode.UNIMPLEMENTED:
            raise verdicts.unusable(target, f"it does not speak the protocol: {words}") from error
        if code in _REFUSED:
            raise verdicts.refused(target, code.name, words) from error
        if code in _BUSY:
            raise verdicts.busy(target, code.name, words) from error
        raise verdicts.failed(target, code.name, words) from error


def _is_ours(words: str) -> bool:
    """Whether the words are the client's own: no server was there to say them."""
    return any(part in words for part in ("failed to connect", "DNS", "Connection reset", "Socket closed", "GOAWAY"))
