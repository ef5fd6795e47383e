"""Whether a start has arrived: every part healthy, every DAG file read, no program that keeps ending."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from fermion.adapters.local_platform import health
from fermion.adapters.local_platform.health import AirflowApi
from fermion.adapters.local_platform.supervision import ProgramState, Supervisor

FAILED_STARTS = 3
"""So many ends of one program within one start of the platform: it will not come."""

YOUNG = timedelta(seconds=30)
"""After that a program that could not make what it needs would have ended."""

CULPRITS = (
    ("router", "router"),
    ("scheduler", "scheduler"),
    ("dag-processor", "dag processor"),
    ("triggerer", "triggerer"),
    ("dag-processor", "DAG files"),
)


class Readiness:
    """Looks again at each call of ``look``. ``import_errors`` (DAG file to the end of its traceback) is what it saw last.

    ``router`` says what is wrong with the router of a supervisor with these programs.
    """

    def __init__(
        self,
        api: AirflowApi,
        supervisor: Supervisor,
        *,
        files: Collection[str],
        router: Callable[[Sequence[ProgramState]], list[str]] = lambda _: [],
    ) -> None:
        self._api = api
        self._supervisor = supervisor
        self._files = files
        self._router = router
        self._first_beat: str | None = None
        self._starts: dict[str, set[datetime]] = {}
        self.import_errors: Mapping[str, str] = {}

    def look(self) -> list[str]:
        """What is still missing, one sentence each; empty when all is there.

        1. The health page, and the router. 2. A second heartbeat of a young scheduler: it gives the first one before it
        has made its executor. 3. The DAG files.
        """
        states = self._supervisor.states() or ()
        started = started_components(states)
        seen = self._api.health()
        missing = [*self._router(states), *health.problems(seen, started=started)]
        if missing or seen is None:
            return missing
        if _is_young(started.get("scheduler")) and not self._has_second_beat(seen):
            return ["the scheduler has given one sign of life only"]
        return self._missing_files()

    def failing(self) -> str | None:
        """The program that ended ``FAILED_STARTS`` times since the first look, or that the supervisor gave up."""
        for state in self._supervisor.states() or ():
            if state.started_at:
                self._starts.setdefault(state.name, set()).add(state.started_at)
            if state.state == "FATAL" or len(self._starts.get(state.name, ())) > FAILED_STARTS:
                return state.name
        return None

    def culprit(self, missing: Collection[str]) -> str:
        """Whose log tells most: the program that ended most often, else the one that the sentences speak of."""
        if restarted := {name: len(starts) for name, starts in self._starts.items() if len(starts) > 1}:
            return max(restarted, key=lambda name: restarted[name])
        for program, word in CULPRITS:
            if any(word in sentence for sentence in missing):
                return program
        return "api-server"

    def _has_second_beat(self, seen: Mapping[str, Any]) -> bool:
        beat = str(seen["scheduler"]["latest_scheduler_heartbeat"])
        if self._first_beat is None:
            self._first_beat = beat
        return beat != self._first_beat

    def _missing_files(self) -> list[str]:
        dags, errors = self._api.dags(), self._api.import_errors()
        if dags is None or errors is None:
            return ["the API server does not list the DAGs"]
        self.import_errors = {file: trace.strip().splitlines()[-1] for file, trace in errors.items() if trace.strip()}
        unread = health.unread(self._files, dags=dags, errors=errors)
        return [f"DAG files not read yet: {', '.join(unread)}"] if unread else []


def started_components(states: Sequence[ProgramState]) -> Mapping[str, datetime]:
    """The health page's name of each component to the start of its process."""
    return {state.name.replace("-", "_"): state.started_at for state in states if state.started_at}


def _is_young(started_at: datetime | None) -> bool:
    return started_at is not None and datetime.now(UTC) - started_at < YOUNG
