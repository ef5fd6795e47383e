"""The ``Inference`` port without servers: models are functions, by address and name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fermion.domain.problems import Problem
from fermion.domain.serving.services import ApiType
from fermion.domain.serving.tensors import Signature, Target, Tensor
from fermion.errors import DriverCannot, NotFound, OutsideBroken, OutsideUnavailable, RequestRefused

Answer = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass
class MemoryModel:
    """A model. Its answer may raise ``ValueError`` (it does not take the inputs), ``RuntimeError`` (it fails over them)

    or ``TimeoutError`` (it answers too late).
    """

    answer: Answer
    signature: Signature = field(default_factory=Signature)
    is_ready: bool = True


class MemoryInference:
    """Asks the models in ``models``; an address that none of them has is one where nobody answers."""

    def __init__(self) -> None:
        self.models: dict[tuple[str, str], MemoryModel] = {}
        self.asked: list[Target] = []

    def predict(self, target: Target, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """See ``ports.Inference``."""
        self.asked.append(target)
        model = self._model(target)
        if not model.is_ready:
            raise OutsideUnavailable(f"{target.address} cannot answer now: not ready", what=target.address)
        try:
            return tuple(model.answer(inputs))
        except ValueError as error:
            problem = Problem(field="inputs", code="refused_by_model", message=f"{error}.", fix="See its metadata.")
            raise RequestRefused([problem], what=f"prediction request to model {target.model!r}") from error
        except TimeoutError as error:
            raise OutsideUnavailable(f"{target.address} did not answer within 10 s", what=target.address) from error
        except RuntimeError as error:
            raise OutsideBroken(f"the server of model {target.model!r} failed: {error}", what=target.address) from error

    def is_ready(self, target: Target) -> bool:
        """See ``ports.Inference``."""
        model = self.models.get((target.address, target.model))
        return model is not None and model.is_ready

    def signature(self, target: Target) -> Signature:
        """See ``ports.Inference``."""
        return self._model(target).signature

    def _model(self, target: Target) -> MemoryModel:
        if target.api_type not in (ApiType.REST, ApiType.GRPC):
            raise DriverCannot(f"a service that speaks {target.api_type} has no predictions", what=target.address)
        if all(address != target.address for address, _ in self.models):
            raise OutsideUnavailable(f"nobody answers at {target.address}", what=target.address)
        if (target.address, target.model) not in self.models:
            raise NotFound(f"{target.address} knows no model {target.model!r}", what=target.model)
        return self.models[target.address, target.model]
