"""Look-outs of a triggerer: one tends all open jobs, one all services, several times a second, and tells each trigger its own.

A hundred waiting triggers cost one query a tick, not a hundred.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakKeyDictionary

from fermion_airflow.hooks.fermion import FermionHook

if TYPE_CHECKING:
    from fermion.domain.jobs import Job
    from fermion.usecases.context import Context as Platform
    from fermion.usecases.serving.queries import Deployment

log = logging.getLogger(__name__)

TICK_S = 0.2
"""Between two rounds: the GPUs of a training that ended are free at most this much later, plus one round's work."""

Carried = TypeVar("Carried")
"""What a run carries."""


class Board(Generic[Carried]):
    """Rounds run while somebody waits.

    ``tend`` is a round; it may answer what it saw, by key, so that ``key_of`` finds what a run carries without asking.
    ``load`` reads what a run carries, and raises when it carries nothing.
    """

    def __init__(
        self,
        *,
        tend: Callable[[], Mapping[str, Carried]],
        load: Callable[[str, str], Carried],
        key_of: Callable[[Carried], str],
    ) -> None:
        self._tend, self._read, self._key_of = tend, load, key_of
        self._changed = asyncio.Condition()
        self._seen: Mapping[str, Carried] = {}
        self._waiting = 0
        self._loop: asyncio.Task[None] | None = None

    async def until(self, dag_id: str, run_id: str, is_reached: Callable[[Carried], bool]) -> Carried:
        """What the run carries as soon as ``is_reached`` holds.

        Raises:
            NotFound: the run carries nothing.
        """
        self._waiting += 1
        self._start()
        try:
            found = await self._load(dag_id, run_id)
            while found is None or not is_reached(found):
                async with self._changed:
                    await self._changed.wait()
                seen = None if found is None else self._seen.get(self._key_of(found))
                found = seen if seen is not None else await self._load(dag_id, run_id)
            return found
        finally:
            self._waiting -= 1

    async def _load(self, dag_id: str, run_id: str) -> Carried | None:
        """What the run carries; None while the database does not answer, which must not end anybody's wait."""
        from fermion.errors import FermionError

        try:
            return await asyncio.to_thread(self._read, dag_id, run_id)
        except FermionError as error:
            if not error.retryable:
                raise
            log.warning("What run %s carries cannot be read this time: %s", run_id, error)
            return None

    def _start(self) -> None:
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self._waiting:
            try:
                self._seen = await asyncio.to_thread(self._tend)
            except Exception:
                log.exception("A round failed; the next one is due in %s s.", TICK_S)
                await asyncio.sleep(1)
            async with self._changed:
                self._changed.notify_all()
            await asyncio.sleep(TICK_S)


def job_board(platform: Platform) -> Board[Job]:
    """A board that tends all open jobs."""
    from fermion.usecases.queries import job_of_run
    from fermion.usecases.tend import Tender

    return Board(
        tend=Tender(platform).round,
        load=lambda dag_id, run_id: job_of_run(platform, dag_id, run_id),
        key_of=lambda job: job.id,
    )


def _service_board(platform: Platform) -> Board[Deployment]:
    from fermion.usecases.serving.queries import deployment_of_run
    from fermion.usecases.serving.tend import ServiceTender

    tender = ServiceTender(platform)

    def tend() -> Mapping[str, Deployment]:
        tender.round()
        return {}

    return Board(
        tend=tend,
        load=lambda dag_id, run_id: deployment_of_run(platform, dag_id, run_id),
        key_of=lambda found: found.revision.id,
    )


_boards: WeakKeyDictionary[asyncio.AbstractEventLoop, Board[Job]] = WeakKeyDictionary()
_service_boards: WeakKeyDictionary[asyncio.AbstractEventLoop, Board[Deployment]] = WeakKeyDictionary()
_opening: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


async def board() -> Board[Job]:
    """This event loop's board of jobs; opened by whoever asks first."""
    return await _opened(_boards, job_board)


async def service_board() -> Board[Deployment]:
    """This event loop's board of deployments; opened by whoever asks first."""
    return await _opened(_service_boards, _service_board)


async def _opened(
    boards: WeakKeyDictionary[asyncio.AbstractEventLoop, Board[Carried]],
    make: Callable[[Platform], Board[Carried]],
) -> Board[Carried]:
    loop = asyncio.get_running_loop()
    async with _opening.setdefault(loop, asyncio.Lock()):
        if loop not in boards:
            boards[loop] = make(await FermionHook().aplatform())
    return boards[loop]
