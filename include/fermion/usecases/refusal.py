"""Tell a person at the workflow engine's pages why a request was refused."""

from __future__ import annotations

import logging

from fermion.domain.counting import counted
from fermion.domain.problems import lines_of
from fermion.errors import FermionError, RequestRefused
from fermion.usecases.context import Context

log = logging.getLogger(__name__)

NOTE_CHARACTERS = 1000
"""What a workflow engine keeps of a note."""

FIELDS = 12
"""How many fields the heading of a note names."""


def tell_refusal(ctx: Context, refused: RequestRefused, *, dag_id: str, run_id: str, task_id: str) -> None:
    """A note on the run and on the task, with every problem. Best effort: the refusal stands without it."""
    if ctx.runs is None:
        return
    try:
        ctx.runs.note(dag_id, run_id, task_id, note_of(refused, task_id))
    except FermionError as error:
        log.warning("the refusal could not be noted on the run: %s", error)


def note_of(refused: RequestRefused, task_id: str) -> str:
    """The refusal in Markdown, one line a problem, with where the whole is found. Whole problems are left out, not halves."""
    fields = list(dict.fromkeys(each.field for each in refused.problems))
    named = ", ".join(fields[:FIELDS]) + (", …" if len(fields) > FIELDS else "")
    heading = (
        f"The request has {counted(len(refused.problems), 'problem')} (whole in the log of {task_id}), in {named}:\n"
    )
    told = zip(refused.problems, lines_of(refused.problems), strict=True)
    lines = [f"- **{problem.field}**{line.removeprefix(problem.field)}" for problem, line in told]
    kept: list[str] = []
    for line in lines:
        if sum(len(each) + 1 for each in (heading, *kept, line)) > NOTE_CHARACTERS - len(_more(len(lines))):
            break
        kept.append(line)
    left = len(lines) - len(kept)
    return "\n".join([heading, *kept, *([_more(left)] if left else [])])


def _more(count: int) -> str:
    return f"- and {counted(count, 'more problem')}."
