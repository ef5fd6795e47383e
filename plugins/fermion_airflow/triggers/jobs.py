"""Triggers that wait for a job. They may be stopped and started again at any time: all they know is the run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent

from fermion_airflow.triggers.board import board

if TYPE_CHECKING:
    from fermion.domain.jobs import Job


class _JobTrigger(BaseTrigger):
    """Waits for the job of the run that its task belongs to; the triggerer injects that task at every start."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path; nothing else is needed."""
        return f"{type(self).__module__}.{type(self).__qualname__}", {}

    async def until(self, is_reached: Callable[[Job], bool]) -> Job:
        """The run's job as soon as ``is_reached`` holds."""
        task = self.task_instance
        if task is None:
            raise RuntimeError("this trigger waits for a run's job and must be started for a task of that run")
        return await (await board()).until(task.dag_id, task.run_id, is_reached)


class GrantTrigger(_JobTrigger):
    """Fires when the job does not wait for GPUs any more; the task then goes on by itself."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event with the job's id."""
        job = await self.until(lambda job: not job.is_waiting)
        yield TriggerEvent({"job": job.id})


class TrainTrigger(_JobTrigger):
    """Ends its task when the training has ended and its lease is closed."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Success, without a worker, when a model is left to publish. A failure goes through the task's own method: only
        there can it be said that trying again is no use."""
        job = await self.until(lambda job: not job.is_training)
        if job.is_failed:
            yield TriggerEvent({"error": f"job {job.id} failed: {job.explanation.message}"})
        else:
            self.log.info("Job %s: %s", job.id, job.explanation.message)
            yield TaskSuccessEvent()
