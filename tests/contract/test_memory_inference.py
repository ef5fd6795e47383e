"""The memory adapter keeps the contract of ``Inference``."""

from __future__ import annotations

import pytest
from inference_contract import SIGNATURE, InferenceContract, add

from fermion.adapters.memory.inference import MemoryInference, MemoryModel
from fermion.domain.serving.tensors import Target


class MemoryServed:
    """A function."""

    def __init__(self) -> None:
        self.inference = MemoryInference()
        self.target = Target(address="http://adder", model="adder")
        self.nobody = Target(address="http://nobody", model="adder")
        self.model = MemoryModel(answer=add, signature=SIGNATURE)
        self.inference.models[self.target.address, self.target.model] = self.model

    def set_ready(self, is_ready: bool) -> None:
        self.model.is_ready = is_ready


class TestMemoryInference(InferenceContract):
    """Asks a function."""

    @pytest.fixture
    def served(self) -> MemoryServed:
        return MemoryServed()
