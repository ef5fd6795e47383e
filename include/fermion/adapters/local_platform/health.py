"""Whether the running platform is healthy: what its own health page says, and whether every DAG file was read."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

COMPONENTS = ("scheduler", "dag_processor", "triggerer")
ANSWER_S = 5.0
PAGE = 100


def problems(health: Mapping[str, Any] | None, *, started: Mapping[str, datetime]) -> list[str]:
    """What is wrong, one sentence each; empty when all is well. ``started``: component to the start of its process.

    1. No answer. 2. The metadata database. 3. Each component: its status, and a heartbeat since its start (an older one
    was left by its predecessor).
    """
    if health is None:
        return ["the API server does not answer yet"]
    found = []
    if _part(health, "metadatabase").get("status") != "healthy":
        found.append("Airflow's database is not healthy")
    for component in COMPONENTS:
        part = _part(health, component)
        beat = part.get(f"latest_{component}_heartbeat")
        if part.get("status") != "healthy":
            found.append(f"the {component.replace('_', ' ')} is {part.get('status') or 'not there'}")
        elif component in started and (beat is None or datetime.fromisoformat(beat) < started[component]):
            found.append(f"the {component.replace('_', ' ')} has not given a sign of life since its start")
    return found


def unread(files: Collection[str], *, dags: Sequence[Mapping[str, Any]], errors: Collection[str]) -> list[str]:
    """The DAG files that neither gave a DAG nor an import error yet."""
    read = {str(dag.get("relative_fileloc")) for dag in dags if not dag.get("is_stale")}
    return sorted(file for file in files if file not in read and file not in errors)


class AirflowApi:
    """The few calls that tell how Airflow is. None stands for: no usable answer."""

    def __init__(self, url: str, *, user: str, password: str, answer_s: float = ANSWER_S) -> None:
        self._answer_s = answer_s
        self._url = url
        self._user = user
        self._password = password
        self._token: str | None = None
        # Loopback never goes through a proxy.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def health(self) -> Mapping[str, Any] | None:
        """The health page."""
        return self._request("/api/v2/monitor/health")

    def dags(self) -> Sequence[Mapping[str, Any]] | None:
        """All DAGs that were read."""
        return self._all("/api/v2/dags", "dags")

    def import_errors(self) -> Mapping[str, str] | None:
        """DAG file to the traceback that its import ended with."""
        errors = self._all("/api/v2/importErrors", "import_errors")
        if errors is None:
            return None
        return {str(error["filename"]): str(error["stack_trace"]) for error in errors}

    def _all(self, path: str, key: str) -> Sequence[Mapping[str, Any]] | None:
        rows: list[Mapping[str, Any]] = []
        while True:
            page = self._signed_in(f"{path}?limit={PAGE}&offset={len(rows)}")
            if page is None:
                return None
            rows.extend(page[key])
            if not page[key] or len(rows) >= page["total_entries"]:
                return rows

    def _signed_in(self, path: str) -> Mapping[str, Any] | None:
        if self._token is None:
            answer = self._request("/auth/token", {"username": self._user, "password": self._password})
            self._token = answer.get("access_token") if answer else None
        if self._token is None:
            return None
        return self._request(path)

    def _request(self, path: str, body: Mapping[str, str] | None = None) -> Mapping[str, Any] | None:
        request = urllib.request.Request(
            self._url + path,
            data=json.dumps(body).encode() if body else None,
            headers={"Content-Type": "application/json", "Accept": "application/json"},
        )
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        try:
            with self._opener.open(request, timeout=self._answer_s) as answer:
                return cast("Mapping[str, Any]", json.load(answer))
        except urllib.error.HTTPError as error:
            if error.code == 401:
                self._token = None
            return None
        except (OSError, ValueError):
            return None


def _part(health: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = health.get(name)
    return part if isinstance(part, Mapping) else {}
