"""What a deployment adds to a server's own start: trigger to the end of ``wait_ready``, less that start, against stock Airflow.

The baseline is a chain of eleven trivial tasks on an Airflow at its stock settings, with its own database in the same
server. Both stand beside each other and take turns; the medians are compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

from tests.benchmarks.lines import Line
from tests.benchmarks.services import DEPLOYED_WITHIN_S, Serving, serving_platform, task_end
from tests.benchmarks.stock_airflow import stock_airflow, take_turns
from tests.e2e.live import wait_until

from fermion.domain.serving.services import SERVICE_DAG, Revision
from fermion.usecases.serving.queries import service_state
from fermion.usecases.serving.tend import ServiceTender
from fermion.usecases.serving.wishes import close

TASKS = 11


def main(given: argparse.Namespace) -> Iterator[Line]:
    """One line."""
    with (
        serving_platform(slots=2) as serving,
        stock_airflow(serving.live, serving.live.folder / "stock", tasks=TASKS) as stock,
    ):
        compared = take_turns(lambda name: _deploy(serving, name), stock, short=given.short)
    yield compared.line("deploy_overhead", part="server_start_s")


def _deploy(serving: Serving, name: str) -> tuple[float, float]:
    """Seconds from the request to the end of ``wait_ready``, and from the server's execution to its first good answer."""
    began = time.time()
    made = serving.deploy(name)
    run = made.run
    assert run is not None
    ready = task_end(serving.live, *run, "wait_ready")
    start = _server_start(serving, made)
    serving.wait_until_serving(made)
    task_end(serving.live, SERVICE_DAG, run[1], "write_verdict")
    close(serving.live.ctx, name, by="tester")
    wait_until(lambda: _is_closed(serving, made), within_s=DEPLOYED_WITHIN_S, what=f"the end of service {name}")
    return ready - began, start


def _is_closed(serving: Serving, made: Revision) -> bool:
    """Looked after from here: no run waits for it, and the sync comes every 30 s."""
    ServiceTender(serving.live.ctx).round()
    return not service_state(serving.live.ctx, made.service_id).service.is_open


def _server_start(serving: Serving, made: Revision) -> float:
    (seen,) = [each for _, each in service_state(serving.live.ctx, made.service_id).replicas]
    if seen is None or seen.exec_at is None or seen.ready_at is None:
        raise RuntimeError(f"the replica of {made.id} does not say when it was ready")
    return (seen.ready_at - seen.exec_at).total_seconds()
