"""Ask one replica a plan's output checks, past the router, so that what it answers is its own and no client's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fermion.domain.rollout.looks import CheckReading
from fermion.domain.rollout.plan import OutputCheck, Plan
from fermion.domain.serving.output_check import seen_of
from fermion.domain.serving.replicas import ReplicaSeen, ReplicaState
from fermion.domain.serving.routing import ApiType
from fermion.domain.serving.services import Service
from fermion.domain.serving.tensors import Target
from fermion.errors import FermionError, NotFound, OutsideBroken, RequestRefused
from fermion.usecases.context import Context
from fermion.usecases.serving.routes import port_of

log = logging.getLogger(__name__)

MOST_OUTPUTS: Final = 100
"""Of one answer: what came is stored with the look."""

_MOST_WORDS: Final = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Whom to ask: replica and address."""

    replica: str
    target: Target


def ask_checks(
    ctx: Context, service: Service, plan: Plan, states: Sequence[ReplicaSeen], *, turn: int
) -> tuple[CheckReading, ...]:
    """What came of each check. Ready replicas are asked in turn; after one that cannot be asked the rest is not waited for."""
    if not plan.output_checks:
        return ()
    asked = _whom(service, states, turn)
    if asked is None:
        return tuple(CheckReading(check=check.name) for check in plan.output_checks)
    found: list[CheckReading] = []
    for check in plan.output_checks:
        error = found[-1].error if found else None
        found.append(
            _ask(ctx, asked, check)
            if error is None
            else CheckReading(check=check.name, replica=asked.replica, error=error)
        )
    return tuple(found)


def _whom(service: Service, states: Sequence[ReplicaSeen], turn: int) -> Asked | None:
    port = port_of(service)
    ready = sorted(
        (seen for seen in states if seen.state is ReplicaState.READY and port in seen.endpoints),
        key=lambda seen: seen.name,
    )
    if not ready:
        return None
    chosen = ready[turn % len(ready)]
    place = f"{chosen.endpoints[port].host}:{chosen.endpoints[port].port}"
    address = place if service.api_type is ApiType.GRPC else f"http://{place}"
    return Asked(replica=chosen.name, target=Target(address=address, model=service.name, api_type=service.api_type))


def _ask(ctx: Context, asked: Asked, check: OutputCheck) -> CheckReading:
    if ctx.inference is None:
        return CheckReading(
            check=check.name, replica=asked.replica, error="this installation has no client for model servers"
        )
    try:
        outputs = ctx.inference.predict(asked.target, check.inputs)
    except (RequestRefused, NotFound, OutsideBroken) as error:  # it did answer, and not with outputs
        return CheckReading(check=check.name, replica=asked.replica, refused=_words(error))
    except FermionError as error:
        log.warning("output check %s could not be asked of %s: %s", check.name, asked.replica, error)
        return CheckReading(check=check.name, replica=asked.replica, error=_words(error))
    if len(outputs) > MOST_OUTPUTS:
        told = f"its answer holds {len(outputs)} outputs; at most {MOST_OUTPUTS} are looked at"
        return CheckReading(check=check.name, replica=asked.replica, refused=told)
    return CheckReading(check=check.name, replica=asked.replica, outputs=tuple(map(seen_of, outputs)))


def _words(error: FermionError) -> str:
    told = error.problems[0].message if isinstance(error, RequestRefused) and error.problems else error.message
    text = " ".join(told.split())
    return text if len(text) <= _MOST_WORDS else f"{text[:_MOST_WORDS]} …"
