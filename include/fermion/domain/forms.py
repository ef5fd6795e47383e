"""A spec as the fields of the training form: what a run's ``conf`` holds, so that the form can show it again."""

from __future__ import annotations

import shlex
from datetime import timedelta

from fermion.domain.jobs import JobSpec


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
        "hyperparameters": dict(spec.hyperparameters),
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


def _duration(duration: timedelta | None) -> str | None:
    return None if duration is None else f"{duration.total_seconds():g}s"
