"""A spec as the fields of the training form: what a run's ``conf`` holds, so that the form can show it again.

A workflow engine keeps a ``conf`` as PostgreSQL's ``jsonb``, which writes ``1e16`` as a whole number and forgets the sign of
``-0.0``; whole numbers of more than 64 bits reach no task at all. Read back, the fields mean the same spec all the same.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from datetime import timedelta
from typing import Final

from fermion.domain.jobs import JobSpec

_FIRST_WHOLE: Final = 1e16
"""From here on a float is written with an exponent, and ``jsonb`` makes a whole number of it."""


def to_form(spec: JobSpec) -> dict[str, object]:
    """The fields with the form's types (one string for the entrypoint, durations as ``90s``). The owner is not among them."""
    return {
        "name": spec.name,
        "pool": spec.pool,
        "image": spec.image,
        "datasets": list(spec.datasets),
        "repository": spec.repository,
        "ref": spec.ref,
        "entrypoint": shlex.join(spec.entrypoint),
        "hyperparameters": _hyperparameters(spec.hyperparameters),
        "output_model": spec.output_model,
        "gpus_per_node": spec.gpus_per_node,
        "nodes": spec.nodes,
        "priority": spec.priority,
        "team": spec.team,
        "memory_mib": spec.memory_mib,
        "preemptible": spec.preemptible,
        "queue_timeout": _duration(spec.queue_timeout),
        "max_runtime": _duration(spec.max_runtime),
        "checkpoint": spec.checkpoint,
    }


def _hyperparameters(values: Mapping[str, str | int | float | bool]) -> dict[str, object] | str:
    """As an object, or as the text of one where that would not arrive as it is."""
    return dict(values) if all(map(_arrives, values.values())) else json.dumps(dict(values))


def _arrives(value: object) -> bool:
    if not isinstance(value, float):
        return True
    return abs(value) < _FIRST_WHOLE and (value != 0 or math.copysign(1, value) > 0)


def _duration(duration: timedelta | None) -> str | None:
    if duration is None:
        return None
    return f"{duration.total_seconds():.6f}".rstrip("0").rstrip(".") + "s"
