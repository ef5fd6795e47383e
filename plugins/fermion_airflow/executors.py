"""The executor: Airflow's local one, which imports what tasks import once, before it forks."""

from __future__ import annotations

from importlib import import_module

from airflow.executors.local_executor import LocalExecutor

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
