"""Runs over ``/api/v2``. Signs in with a name and a password, keeps the token until it is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import quote

import httpx

from fermion.errors import NotFound, NotPermitted, OutsideBroken, OutsideUnavailable

TIMEOUT_S = 30.0
NOTE_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class SeenRun:
    """What the engine says of one run."""

    state: str
    tasks: Mapping[str, str] = field(default_factory=dict)


class RestRuns:
    """Keeps ``ports.Runs``. ``credentials`` is asked only when a token is needed; nothing is logged of it."""

    def __init__(self, server: str, credentials: Callable[[], tuple[str, str]]) -> None:
        self._credentials = credentials
        self._server = server.rstrip("/")
        self._token: str | None = None

    @cached_property
    def _client(self) -> httpx.Client:
        # Made at the first call: reading the machine's certificates takes longer than most tasks' own work.
        return httpx.Client(base_url=self._server, timeout=TIMEOUT_S)

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, object]) -> bool:
        """Start a run; False when it exists already."""
        body = {"dag_run_id": run_id, "logical_date": None, "conf": dict(conf)}
        answer = self._call("POST", f"/api/v2/dags/{quote(dag_id)}/dagRuns", json=body, expected={200, 409})
        return answer.status_code != 409

    def state(self, dag_id: str, run_id: str) -> SeenRun:
        """The run and its tasks; ``absent`` when there is no such run."""
        path = f"/api/v2/dags/{quote(dag_id)}/dagRuns/{quote(run_id, safe='')}"
        answer = self._call("GET", path, expected={200, 404})
        if answer.status_code == 404:
            return SeenRun("absent")
        tasks = self._call("GET", f"{path}/taskInstances", expected={200, 404})
        found = tasks.json().get("task_instances", []) if tasks.status_code == 200 else []
        return SeenRun(str(answer.json()["state"]), {task["task_id"]: str(task["state"]) for task in found})

    def fail_task(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Mark one unfinished task failed."""
        path = f"/api/v2/dags/{quote(dag_id)}/dagRuns/{quote(run_id, safe='')}/taskInstances/{quote(task_id)}"
        self._call("PATCH", path, json={"new_state": "failed"}, expected={200})

    def note(self, dag_id: str, run_id: str, task_id: str, text: str) -> None:
        """Airflow keeps a note of at most 1,000 characters."""
        body = {"note": text if len(text) <= NOTE_CHARACTERS else text[: NOTE_CHARACTERS - 1] + "…"}
        run = f"/api/v2/dags/{quote(dag_id)}/dagRuns/{quote(run_id, safe='')}"
        self._call("PATCH", run, json=body, expected={200})
        self._call("PATCH", f"{run}/taskInstances/{quote(task_id)}", json=body, expected={200})

    def _call(self, method: str, path: str, *, expected: set[int], json: object = None) -> httpx.Response:
        answer = self._send(method, path, json)
        if answer.status_code == 401:
            self._token = None
            answer = self._send(method, path, json)
        if answer.status_code in expected:
            return answer
        where = f"{method} {path} on {self._server}"
        if answer.status_code == 403:
            raise NotPermitted(f"{where}: you may not do this. {_detail(answer)}", what=path)
        if answer.status_code == 404:
            raise NotFound(f"{where}: not found. {_detail(answer)}", what=path)
        if answer.status_code >= 500:
            raise OutsideUnavailable(f"{where} answered {answer.status_code}. {_detail(answer)}", what=path)
        raise OutsideBroken(f"{where} answered {answer.status_code}. {_detail(answer)}", what=path)

    def _send(self, method: str, path: str, json: object) -> httpx.Response:
        try:
            headers = {"Authorization": f"Bearer {self._signed_in()}"}
            return self._client.request(method, path, json=json, headers=headers)
        except httpx.HTTPError as error:
            raise OutsideUnavailable(
                f"Airflow at {self._server} does not answer ({type(error).__name__}). Is the platform up? `make up` starts it.",
                what="airflow",
            ) from error

    def _signed_in(self) -> str:
        if self._token is None:
            user, password = self._credentials()
            answer = self._client.post("/auth/token", json={"username": user, "password": password})
            if answer.status_code != 201:
                raise NotPermitted(f"Airflow refused the sign-in of {user!r} ({answer.status_code}).", what="airflow")
            self._token = str(answer.json()["access_token"])
        return self._token


def _detail(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("detail", ""))[:500]
    except ValueError:
        return answer.text[:200]
