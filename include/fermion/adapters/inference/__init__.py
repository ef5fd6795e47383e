"""The ``Inference`` port: the Open Inference Protocol (V2) over REST and gRPC."""

from fermion.adapters.inference.client import ProtocolInference

__all__ = ["ProtocolInference"]
