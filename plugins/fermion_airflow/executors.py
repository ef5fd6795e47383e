"""The executor: Airflow's local one, which imports what tasks import once, before it forks, and whose workers end with it."""

from __future__ import annotations

import multiprocessing
import os
import stat
from importlib import import_module
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from airflow.executors.local_executor import LocalExecutor, _run_worker

TASK_MODULES = (
    "airflow.dag_processing.bundles.local",
    "airflow.sdk.definitions.connection",
    "airflow.sdk.execution_time.request_handlers",
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.task_runner",
    "fermion_airflow.forms",
    "fermion_airflow.operators.retraining",
    "fermion_airflow.operators.training",
    "fermion_airflow.operators.upkeep",
)
"""What each task's process would import for itself, besides the platform."""


class PreloadingExecutor(LocalExecutor):
    """A task starts in a third of the time, because the processes of tasks are forks of one that has imported everything.

    They run the code that was there when the scheduler started: after an upgrade, restart it.
    """

    def start(self) -> None:
        """Import, then fork the workers. A broken configuration is left for the tasks to tell."""
        from fermion.errors import SettingsInvalid
        from fermion.wiring import preload

        for name in TASK_MODULES:
            import_module(name)
        try:
            preload()
        except SettingsInvalid as error:
            self.log.error("tasks start slowly, and fail until this is mended and the scheduler restarted: %s", error)
        super().start()

    def _spawn_worker(self) -> None:
        """As Airflow's, but for what the worker inherits: it must not outlive its scheduler, nor hold on to what was its."""
        worker = multiprocessing.Process(
            target=_run_worker_alone,
            kwargs={
                "logger_name": self.log.name,
                "input": self.activity_queue,
                "output": self.result_queue,
                "unread_messages": self._unread_messages,
                "team_conf": self.conf,
            },
        )
        worker.start()
        assert worker.pid is not None
        self.workers[worker.pid] = worker


def _run_worker_alone(*, input: SimpleQueue[Any], **given: Any) -> None:  # noqa: A002  # the name is Airflow's
    """A worker that ends when the scheduler was killed, after the task that it runs.

    Every worker has a copy of the queue's end for writing, so that none would ever see it closed; and a copy of the
    scheduler's connections, so that the database would keep the transaction of a scheduler that is gone, with its locks.
    """
    input._writer.close()  # type: ignore[attr-defined]  # there is no public way to close one end
    _leave_sockets()
    _run_worker(input=input, **given)


def _leave_sockets() -> None:
    """Put nothing in the place of each inherited socket: whoever believes to have it closes that, and tells nobody."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for name in list(Path("/dev/fd").iterdir()):
        number = int(name.name)
        try:
            if number > 2 and stat.S_ISSOCK(os.fstat(number).st_mode):
                os.dup2(nothing, number, inheritable=False)
        except OSError:  # the one that listed the folder
            continue
    os.close(nothing)
