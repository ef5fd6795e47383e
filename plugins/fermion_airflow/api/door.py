"""The door of ``POST /api/v2/dags/…/dagRuns``: a request that Airflow could not keep is refused with words.

Airflow alone answers such a request with "Value rejected by database", or takes it and can start no task of its run. Every
other request passes as it came: a run's first task answers it. What would have to be looked up is not asked about here,
because nobody has signed in yet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fermion.domain.problems import Problem, lines_of
from fermion.domain.request import read_request
from fermion.domain.serving.request import read_service
from fermion.domain.unstorable import problems_of
from fermion_airflow.api.answers import problem_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_RUNS = re.compile(r"/api/v2/dags/(?P<dag>[^/]+)/dagRuns/?")
_READERS: Mapping[str, Callable[[Any], Any]] = {"train_model": read_request, "deploy_service": read_service}


MOST_BYTES = 8 * 1024 * 1024
"""Of a request's body. What a run may say is limited to far less, item by item."""


class TooLong(Exception):
    """A body has more bytes than anybody needs; the rest of it is not read."""


class Door:
    """A root middleware of Airflow's API server."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on what was received."""
        opened = _RUNS.search(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if opened is None or opened.end() != len(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            messages = await _received(receive)
        except TooLong:
            await _too_long()(scope, receive, send)
            return
        problems = refusal_of(opened["dag"], b"".join(message.get("body", b"") for message in messages))
        if problems:
            await _answer(problems)(scope, receive, send)
            return
        await self._app(scope, _again(messages, receive), send)


def refusal_of(dag_id: str, body: bytes) -> Sequence[Problem]:
    """Why the run cannot be kept, and all else that its request says wrongly; empty when it can be, and when it is no JSON."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return ()  # Airflow says so
    if not isinstance(asked, Mapping):
        return problems_of(asked)
    conf = asked.get("conf")
    problems = problems_of({key: value for key, value in asked.items() if key != "conf"}) + problems_of(conf)
    if not problems or dag_id not in _READERS or not isinstance(conf, Mapping):
        return problems
    read = [problem for problem in _READERS[dag_id](conf).problems if not problems_of(problem.to_payload())]
    known = {problem.field for problem in read}
    return [*(problem for problem in problems if problem.field not in known), *read]


async def _received(receive: Receive) -> list[Message]:
    messages = [await receive()]
    length = len(messages[0].get("body", b""))
    while messages[-1].get("more_body", False) and length <= MOST_BYTES:
        messages.append(await receive())
        length += len(messages[-1].get("body", b""))
    if length > MOST_BYTES:
        raise TooLong
    return messages


def _again(messages: list[Message], receive: Receive) -> Receive:
    """The same messages once more, then whatever comes."""
    left = iter(messages)

    async def receive_again() -> Message:
        message = next(left, None)
        return await receive() if message is None else message

    return receive_again


def _answer(problems: Sequence[Problem]) -> ASGIApp:
    told = "\n- ".join(["The request was refused; no run was made:", *lines_of(problems)])
    more = {"problems": [problem.to_payload() for problem in problems]}
    return problem_response(400, "The request cannot be kept", told, "request_refused", **more)


def _too_long() -> ASGIApp:
    told = (
        f"The request has more than {MOST_BYTES // 1024 // 1024} MiB; no run was made. Put data in a dataset or in the repository,"
        " and name it in the request."
    )
    return problem_response(413, "The request is too long", told, "request_too_long")
