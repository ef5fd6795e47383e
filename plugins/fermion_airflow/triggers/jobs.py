"""Triggers that wait for a job. They may be stopped and started again at any time: all they know is the run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TaskFailedEvent, TaskSuccessEvent, TriggerEvent

from fermion_airflow.triggers.board import board


class _JobTrigger(BaseTrigger):
    """Waits for the job of one run."""

    def __init__(self, dag_id: str, run_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self.dag_id = dag_id
        self.run_id = run_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and the run."""
        return f"{type(self).__module__}.{type(self).__qualname__}", {"dag_id": self.dag_id, "run_id": self.run_id}


class GrantTrigger(_JobTrigger):
    """Fires when the job does not wait for GPUs any more; the task then goes on by itself."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event with the job's id."""
        job = await (await board()).until(self.dag_id, self.run_id, lambda job: not job.is_waiting)
        yield TriggerEvent({"job": job.id})


class TrainTrigger(_JobTrigger):
    """Ends its task when the training has ended and its lease is closed."""

    template_fields = ("dag_id", "run_id")

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Success when a model is left to publish, else failure; the job holds the reason."""
        job = await (await board()).until(self.dag_id, self.run_id, lambda job: not job.is_training)
        if job.is_failed:
            self.log.error("Job %s failed: %s", job.id, job.explanation.message)
            yield TaskFailedEvent()
        else:
            self.log.info("Job %s: %s", job.id, job.explanation.message)
            yield TaskSuccessEvent()
