"""One look-out per triggerer: it tends all open jobs, several times a second, and tells each trigger of its own.

A hundred waiting triggers cost one query a tick, not a hundred.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from fermion_airflow.hooks.fermion import FermionHook

if TYPE_CHECKING:
    from fermion.domain.jobs import Job
    from fermion.usecases.context import Context as Platform

log = logging.getLogger(__name__)

TICK_S = 0.2
"""Between two rounds: the GPUs of a training that ended are free at most this much later, plus one round's work."""


class Board:
    """Rounds run while somebody waits; each round's jobs are told to all."""

    def __init__(self, platform: Platform) -> None:
        from fermion.usecases.tend import Tender

        self._platform = platform
        self._tender = Tender(platform)
        self._changed = asyncio.Condition()
        self._jobs: Mapping[str, Job] = {}
        self._waiting = 0
        self._loop: asyncio.Task[None] | None = None

    async def until(self, dag_id: str, run_id: str, is_reached: Callable[[Job], bool]) -> Job:
        """The run's job as soon as ``is_reached`` holds.

        Raises:
            NotFound: the run carries no job.
        """
        self._waiting += 1
        self._start()
        try:
            job = await self._load(dag_id, run_id)
            while job is None or not is_reached(job):
                async with self._changed:
                    await self._changed.wait()
                if job is not None and job.id in self._jobs:
                    job = self._jobs[job.id]
                else:
                    job = await self._load(dag_id, run_id)
            return job
        finally:
            self._waiting -= 1

    async def _load(self, dag_id: str, run_id: str) -> Job | None:
        """The run's job; None while the database does not answer, which must not end anybody's wait."""
        from fermion.errors import FermionError
        from fermion.usecases.queries import job_of_run

        try:
            return await asyncio.to_thread(job_of_run, self._platform, dag_id, run_id)
        except FermionError as error:
            if not error.retryable:
                raise
            log.warning("The job of run %s cannot be read this time: %s", run_id, error)
            return None

    def _start(self) -> None:
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._waiting:
            try:
                self._jobs = await asyncio.to_thread(self._tender.round)
            except Exception:
                log.exception("A round over the open jobs failed; the next one is due in %s s.", TICK_S)
                await asyncio.sleep(1)
            async with self._changed:
                self._changed.notify_all()
            await asyncio.sleep(TICK_S)


_boards: WeakKeyDictionary[asyncio.AbstractEventLoop, Board] = WeakKeyDictionary()
_opening: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


async def board() -> Board:
    """This event loop's board; opened by whoever asks first."""
    loop = asyncio.get_running_loop()
    async with _opening.setdefault(loop, asyncio.Lock()):
        if loop not in _boards:
            _boards[loop] = Board(await FermionHook().aplatform())
    return _boards[loop]
