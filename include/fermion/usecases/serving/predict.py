"""Ask a service as a client would: through the router, in the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Sequence

from fermion.domain.serving.tensors import Target, Tensor, read_inputs
from fermion.errors import DriverCannot, OutsideUnavailable
from fermion.usecases.context import Context
from fermion.usecases.serving.queries import service_state


def predict(ctx: Context, name: str, raw: object) -> Sequence[Tensor]:
    """The outputs of the service's model for these inputs.

    Raises:
        NotFound: there is no such service.
        RequestRefused: the inputs cannot be read, or the server does not take them.
        OutsideUnavailable: the service does not answer now.
        DriverCannot: nothing here can ask services.
    """
    if ctx.inference is None:
        raise DriverCannot("this installation has no client for model servers.", what="inference")
    state = service_state(ctx, name, traffic_of=())
    if state.endpoint is None:
        raise OutsideUnavailable(f"the router of service {name!r} does not answer; `fermion ps` shows it.", what=name)
    service = state.service
    target = Target(address=state.endpoint, model=service.name, api_type=service.api_type, service=service.name)
    return ctx.inference.predict(target, read_inputs(raw, ctx.inference.signature(target)))
