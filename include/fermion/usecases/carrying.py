"""Whether a run of the workflow engine still carries what it was started for: a job, or a revision of a service."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

from fermion.errors import FermionError
from fermion.usecases.context import Context

log = logging.getLogger(__name__)

RUN_GRACE = timedelta(seconds=20)
"""How long something may be at rest before its run is asked for: long enough for a teardown that has just begun."""

START_GRACE = timedelta(minutes=10)
"""How long something new may have no run yet: whoever launches it first checks it, which can mean reading a large dataset."""


class Carried(Protocol):
    """What a run carries, as far as that matters here."""

    @property
    def run(self) -> tuple[str, str] | None: ...

    @property
    def changed_at(self) -> datetime: ...


Thing = TypeVar("Thing", bound=Carried)


def uncarried(ctx: Context, those: Iterable[Thing], *, is_new: Callable[[Thing], bool]) -> Iterator[tuple[Thing, str]]:
    """Those that no run carries any more, and why: their run is ``absent``, or ended (``success``, ``failed``) and left them.

    Nothing is concluded where the engine does not tell, or nobody can ask it.
    """
    if ctx.runs is None:
        return
    for each in those:
        rest = ctx.clock.now() - each.changed_at
        if each.run is None or rest < RUN_GRACE:
            continue
        try:
            state = ctx.runs.state(*each.run).state
        except FermionError as error:
            log.warning("the engine did not tell about the runs: %s", error)
            return
        if state == "absent" and is_new(each) and rest < START_GRACE:
            continue
        if state in {"absent", "success", "failed"}:
            yield each, state
