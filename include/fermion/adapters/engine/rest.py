"""Runs over ``/api/v2``. Signs in with a name and a password, keeps the token until it is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import quote

import httpx

from fermion.domain.tasks import instance_name, instance_of
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
        path = _run_path(dag_id, run_id)
        answer = self._call("GET", path, expected={200, 404})
        if answer.status_code == 404:
            return SeenRun("absent")
        tasks = self._call("GET", f"{path}/taskInstances", expected={200, 404})
        found = tasks.json().get("task_instances", []) if tasks.status_code == 200 else []
        states = {instance_name(task["task_id"], task.get("map_index", -1)): str(task["state"]) for task in found}
        return SeenRun(str(answer.json()["state"]), states)

    def fail_task(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Mark one unfinished task failed."""
        self._end_task(dag_id, run_id, task_id, "failed")

    def skip_task(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Mark one unfinished task skipped."""
        self._end_task(dag_id, run_id, task_id, "skipped")

    def _end_task(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        path = f"{_run_path(dag_id, run_id)}/taskInstances/{_path_of(task_id)}"
        self._call("PATCH", path, json={"new_state": state}, expected={200})

    def answer(self, dag_id: str, run_id: str, task_id: str, option: str, more: Mapping[str, object]) -> bool:
        """Answer a human-in-the-loop task; False where it asks nothing, or was answered."""
        body = {"chosen_options": [option], "params_input": dict(more)}
        name, number = instance_of(task_id)
        path = f"{_run_path(dag_id, run_id)}/taskInstances/{quote(name)}/{number}/hitlDetails"
        return self._call("PATCH", path, json=body, expected={200, 404, 409}).status_code == 200

    def fail_run(self, dag_id: str, run_id: str) -> None:
        """Set an ended run's state to failed."""
        self._call("PATCH", _run_path(dag_id, run_id), json={"state": "failed"}, expected={200})

    def note(self, dag_id: str, run_id: str, task_id: str, text: str) -> None:
        """Airflow keeps a note of at most 1,000 characters."""
        body = {"note": text if len(text) <= NOTE_CHARACTERS else text[: NOTE_CHARACTERS - 1] + "…"}
        run = _run_path(dag_id, run_id)
        self._call("PATCH", run, json=body, expected={200})
        self._call("PATCH", f"{run}/taskInstances/{_path_of(task_id)}", json=body, expected={200})

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
                f"Airflow at {self._server} does not answer ({type(error).__name__}).", what="airflow"
            ) from error

    def _signed_in(self) -> str:
        if self._token is None:
            user, password = self._credentials()
            answer = self._client.post("/auth/token", json={"username": user, "password": password})
            if answer.status_code != 201:
                raise NotPermitted(f"Airflow refused the sign-in of {user!r} ({answer.status_code}).", what="airflow")
            self._token = str(answer.json()["access_token"])
        return self._token


def _run_path(dag_id: str, run_id: str) -> str:
    return f"/api/v2/dags/{quote(dag_id)}/dagRuns/{quote(run_id, safe='')}"


def _path_of(task: str) -> str:
    """A task, or one instance of it, in a path."""
    task_id, number = instance_of(task)
    return quote(task_id) if number < 0 else f"{quote(task_id)}/{number}"


def _detail(answer: httpx.Response) -> str:
    try:
        detail = answer.json().get("detail", "")
    except (ValueError, AttributeError):
        return answer.text[:200]
    found = [_finding(each) for each in detail] if isinstance(detail, list) else [str(detail)]
    return "; ".join(found)[:500]


def _finding(each: object) -> str:
    """One of FastAPI's findings: where, and what, without the name that pydantic gives to its kind."""
    if not isinstance(each, Mapping):
        return str(each)
    where = ".".join(str(part) for part in each.get("loc", ()))
    return f"{where}: {str(each.get('msg', '')).removeprefix('Value error, ')}"
