"""Asks model servers by whichever of the two ways their service speaks. Every answer is bounded in size and in time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from fermion.adapters.inference.over_grpc import GrpcAsking
from fermion.adapters.inference.over_rest import RestAsking
from fermion.domain.serving.services import ApiType
from fermion.domain.serving.tensors import Signature, Target, Tensor
from fermion.errors import DriverCannot, NotFound, OutsideUnavailable, RequestRefused

MAX_BYTES: Final = 16 * 1024 * 1024


class ProtocolInference:
    """Open Inference Protocol (V2). ``timeout`` bounds each call as a whole, ``max_bytes`` each request and each answer."""

    def __init__(self, *, timeout: timedelta = timedelta(seconds=10), max_bytes: int = MAX_BYTES) -> None:
        self._rest = RestAsking(timeout_s=timeout.total_seconds(), max_bytes=max_bytes)
        self._grpc = GrpcAsking(timeout_s=timeout.total_seconds(), max_bytes=max_bytes)

    def predict(self, target: Target, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """See ``ports.Inference``."""
        return self._asking(target).predict(target, inputs)

    def is_ready(self, target: Target) -> bool:
        """See ``ports.Inference``."""
        asking = self._asking(target)
        try:
            return asking.says_ready(target)
        except (OutsideUnavailable, NotFound, RequestRefused):
            return False

    def signature(self, target: Target) -> Signature:
        """See ``ports.Inference``."""
        return self._asking(target).signature(target)

    def close(self) -> None:
        """Close what is kept open between calls."""
        self._rest.close()

    def _asking(self, target: Target) -> RestAsking | GrpcAsking:
        if target.api_type is ApiType.GRPC:
            return self._grpc
        if target.api_type is ApiType.REST:
            return self._rest
        raise DriverCannot(
            f"a service that speaks {target.api_type} has no predictions in the Open Inference Protocol; use a client of its own",
            what=target.address,
        )
