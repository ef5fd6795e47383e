"""Tell a person at the workflow engine's pages why a request was refused."""

from __future__ import annotations

import logging

from fermion.errors import FermionError, RequestRefused
from fermion.usecases.context import Context

log = logging.getLogger(__name__)


def tell_refusal(ctx: Context, refused: RequestRefused, *, dag_id: str, run_id: str, task_id: str) -> None:
    """A note on the run and on the task, with every problem. Best effort: the refusal stands without it."""
    if ctx.runs is None:
        return
    try:
        ctx.runs.note(dag_id, run_id, task_id, note_of(refused, task_id))
    except FermionError as error:
        log.warning("the refusal could not be noted on the run: %s", error)


def note_of(refused: RequestRefused, task_id: str) -> str:
    """The refusal in Markdown, one line a problem. It begins with where the whole is found: a note may be cut."""
    count = len(refused.problems)
    fields = ", ".join(dict.fromkeys(each.field for each in refused.problems))
    lines = "\n".join(f"- **{each.field}**: {each.message} {each.fix}" for each in refused.problems)
    heading = (
        f"The request has {count} problem{'s' if count != 1 else ''} (whole in the log of {task_id}), in {fields}:"
    )
    return f"{heading}\n\n{lines}"
