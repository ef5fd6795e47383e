"""How a task of a run is called where the run has several instances of it: ``<task id>[<number>]``, from 0. Pure."""

from __future__ import annotations


def instance_name(task_id: str, number: int) -> str:
    """The instance's name; a task that has no instances (a number below 0) keeps its own."""
    return task_id if number < 0 else f"{task_id}[{number}]"


def instance_of(name: str) -> tuple[str, int]:
    """The task's id and the instance's number, -1 where it has none. The way back from ``instance_name``."""
    task_id, bracket, number = name.removesuffix("]").partition("[")
    return task_id, int(number) if bracket else -1
