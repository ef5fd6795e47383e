"""The process driver: trainings and model servers as detached child processes of this machine. It isolates nothing.

Made for a laptop, CI and the first five minutes; ``build`` refuses production.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from fermion.adapters.process.environments import About, ProcessImages
from fermion.adapters.process.layout import Layout
from fermion.adapters.process.nodes import ProcessNodes
from fermion.adapters.process.replicas import ProcessReplicas
from fermion.adapters.process.space import ProcessSpace
from fermion.adapters.process.workloads import ProcessWorkloads
from fermion.errors import DriverCannot
from fermion.ports import Clock, Code, Datasets, ModelCache, Router


@dataclass(frozen=True, slots=True)
class ProcessDriver:
    """One cluster that is this machine; keeps the ``Driver`` port."""

    nodes: ProcessNodes
    images: ProcessImages
    datasets: Datasets
    code: Code
    workloads: ProcessWorkloads
    space: ProcessSpace
    replicas: ProcessReplicas
    models: ModelCache
    router: Router
    kind: str = "process"


def build(
    *,
    cluster: str,
    root: Path,
    clock: Clock,
    datasets: Datasets,
    code: Code,
    models: ModelCache,
    router: Router,
    locks: Mapping[str, Path],
    about: Mapping[str, About] | None = None,
    declared_slots: int = 0,
    measure_devices: bool = True,
    production: bool = False,
    environments_limit_bytes: int | None = None,
    pull_timeout: timedelta = timedelta(minutes=30),
) -> ProcessDriver:
    """The driver over one location root. ``locks`` maps an image's name to its locked requirements file.

    Raises:
        DriverCannot: asked for in production, where trainings must be isolated from each other and from the platform.
    """
    if production:
        raise DriverCannot(
            f"cluster {cluster!r} is of kind 'process', which isolates nothing: every training runs with the platform's own "
            "rights. It is refused with 'environment: production'; use a docker or kubernetes cluster.",
            what=cluster,
        )
    nodes = ProcessNodes(cluster, clock, declared_slots=declared_slots, measure=measure_devices)
    return ProcessDriver(
        nodes=nodes,
        images=ProcessImages(root, locks, about=about, limit_bytes=environments_limit_bytes, timeout=pull_timeout),
        datasets=datasets,
        code=code,
        workloads=ProcessWorkloads(root, clock, device_use=nodes.device_use),
        space=ProcessSpace(root),
        replicas=ProcessReplicas(Layout(root).serving, clock, device_use=nodes.device_use),
        models=models,
        router=router,
    )
