"""Triggers that wait for a deployment. They may be stopped and started again at any time: all they know is run and stage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from fermion_airflow.triggers.board import service_board


class DeploymentTrigger(BaseTrigger):
    """Fires when the deployment of the run has reached the stage, or is over; the task then looks for itself."""

    def __init__(self, *, stage: str, step: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stage, self.step = stage, step

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The class path and the stage, and the step where only one counts."""
        of_step = {} if self.step is None else {"step": self.step}
        return f"{type(self).__module__}.{type(self).__qualname__}", {"stage": self.stage, **of_step}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """One event with the revision's id."""
        from fermion.usecases.serving.queries import has_reached

        task = self.task_instance
        if task is None:
            raise RuntimeError("this trigger waits for a run's deployment and must be started for a task of that run")
        found = await (await service_board()).until(
            task.dag_id, task.run_id, lambda found: has_reached(found, self.stage, step=self.step)
        )
        yield TriggerEvent({"revision": found.revision.id})
