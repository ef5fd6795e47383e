"""A workflow engine that runs nothing. Keeps ``ports.Runs``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from fermion.adapters.memory.jsonlike import as_jsonb
from fermion.adapters.memory.outages import Line
from fermion.errors import NotFound

_FINISHED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})


@dataclass(frozen=True, slots=True)
class SeenRun:
    """What the engine says of one run."""

    state: str
    tasks: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Run:
    conf: Mapping[str, object]
    state: str = "queued"
    tasks: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    answers: dict[str, Mapping[str, object]] = field(default_factory=dict)


class MemoryRuns:
    """Runs as triggered; ``put_task``, ``end`` and ``delete`` move them."""

    def __init__(self) -> None:
        self.line = Line("the workflow engine")
        self._runs: dict[tuple[str, str], _Run] = {}

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, object]) -> bool:
        """Queued; False when it exists already."""
        self.line.answer()
        if (dag_id, run_id) in self._runs:
            return False
        self._runs[dag_id, run_id] = _Run(as_jsonb(conf))
        return True

    def state(self, dag_id: str, run_id: str) -> SeenRun:
        """The run and its tasks; ``absent`` when there is none."""
        self.line.answer()
        run = self._runs.get((dag_id, run_id))
        return SeenRun("absent") if run is None else SeenRun(run.state, MappingProxyType(dict(run.tasks)))

    def fail_task(self, dag_id: str, run_id: str, task_id: str) -> None:
        """A finished task stays as it is.

        Raises:
            NotFound: no such run or task.
        """
        self._end_task(dag_id, run_id, task_id, "failed")

    def skip_task(self, dag_id: str, run_id: str, task_id: str) -> None:
        """A finished task stays as it is.

        Raises:
            NotFound: no such run or task.
        """
        self._end_task(dag_id, run_id, task_id, "skipped")

    def _end_task(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        self.line.answer()
        run = self._runs.get((dag_id, run_id))
        if run is None or task_id not in run.tasks:
            raise NotFound(f"run {run_id!r} of {dag_id!r} has no task {task_id!r}", what="run")
        if run.tasks[task_id] not in _FINISHED:
            run.tasks[task_id] = state

    def answer(self, dag_id: str, run_id: str, task_id: str, option: str, more: Mapping[str, object]) -> bool:
        """A task that awaits input goes on with it."""
        self.line.answer()
        run = self._runs.get((dag_id, run_id))
        if run is None or run.tasks.get(task_id) != "awaiting_input":
            return False
        run.tasks[task_id], run.answers[task_id] = "scheduled", {"chosen_options": [option], "params_input": dict(more)}
        return True

    def fail_run(self, dag_id: str, run_id: str) -> None:
        """The run's state is failed now.

        Raises:
            NotFound: no such run.
        """
        self.line.answer()
        if (dag_id, run_id) not in self._runs:
            raise NotFound(f"there is no run {run_id!r} of {dag_id!r}", what="run")
        self._runs[dag_id, run_id].state = "failed"

    def note(self, dag_id: str, run_id: str, task_id: str, text: str) -> None:
        """Kept whole.

        Raises:
            NotFound: no such run.
        """
        self.line.answer()
        if (dag_id, run_id) not in self._runs:
            raise NotFound(f"there is no run {run_id!r} of {dag_id!r}", what="run")
        self._runs[dag_id, run_id].notes[task_id] = text

    # --- levers -----------------------------------------------------------------------------------------------------

    def conf(self, dag_id: str, run_id: str) -> Mapping[str, object]:
        """What it was triggered with."""
        return self._runs[dag_id, run_id].conf

    def notes(self, dag_id: str, run_id: str) -> Mapping[str, str]:
        """Task id to what was noted on it."""
        return dict(self._runs[dag_id, run_id].notes)

    def answers(self, dag_id: str, run_id: str) -> Mapping[str, Mapping[str, object]]:
        """Task id to the answer that it was given."""
        return dict(self._runs[dag_id, run_id].answers)

    def put_task(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """The task is in that state now; the run runs."""
        run = self._runs[dag_id, run_id]
        run.state = "running"
        run.tasks[task_id] = state

    def end(self, dag_id: str, run_id: str, state: str = "success") -> None:
        """The run is over."""
        self._runs[dag_id, run_id].state = state

    def delete(self, dag_id: str, run_id: str) -> None:
        """Somebody deleted it."""
        del self._runs[dag_id, run_id]


if TYPE_CHECKING:
    from fermion.ports import Runs

    def _keeps_the_port(kept: MemoryRuns) -> Runs:
        return kept
