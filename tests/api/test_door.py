"""The door of new runs: what Airflow could not keep is refused with words, all else passes byte for byte."""

from __future__ import annotations

import asyncio
import json

import pytest
from fastapi.testclient import TestClient
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Scope

from fermion_airflow.api.door import MOST_BYTES, Door

RUNS = "/api/v2/dags/train_model/dagRuns"
CONF = {
    "name": "digits",
    "pool": "local/declared",
    "image": "digits:1",
    "repository": "https://git.example/digits",
    "entrypoint": "python train.py",
    "output_model": "digits",
}


@pytest.fixture
def client() -> TestClient:
    """The door before an app that repeats what reached it."""

    async def repeat(request: Request) -> Response:
        return PlainTextResponse(await request.body())

    app = Starlette(routes=[Route("/{path:path}", repeat, methods=["GET", "POST"])], middleware=[Middleware(Door)])
    return TestClient(app)


def body(text: str = "", **conf: object) -> bytes:
    """A request whose conf holds ``"a": text`` as it is written here."""
    written = json.dumps({"logical_date": None, "conf": {**CONF, "hyperparameters": {"a": "@"}, **conf}})
    return written.replace('"@"', text or "1").encode()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        pytest.param("NaN", "not_finite", id="NaN"),
        pytest.param("-Infinity", "not_finite", id="infinity"),
        pytest.param("1e999", "not_finite", id="a number that is too large for any"),
        pytest.param("1e20", "too_large", id="a float of which its database makes a whole number"),
        pytest.param("9223372036854775808", "too_large", id="one more than 64 bits hold"),
        pytest.param(r'"a\u0000b"', "control_character", id="NUL"),
        pytest.param(r'"a\ud800b"', "control_character", id="half a character"),
    ],
)
def test_a_hyperparameter_that_airflow_could_not_keep_is_refused_by_its_name(
    client: TestClient, text: str, code: str
) -> None:
    answer = client.post(RUNS, content=body(text))
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    (problem,) = answer.json()["problems"]
    assert (problem["field"], problem["code"]) == ("hyperparameters.a", code)
    assert answer.json()["problems"][0]["message"] in answer.json()["detail"]


def test_all_else_that_the_request_says_wrongly_is_in_the_same_answer(client: TestClient) -> None:
    answer = client.post(RUNS, content=body("NaN", gpus=0, name="a\x00b", output_model="../x", team=["\x00"]))
    found = {each["field"]: each["code"] for each in answer.json()["problems"]}
    assert found == {
        "hyperparameters.a": "not_finite",
        "gpus": "out_of_range",
        "name": "bad_name",
        "output_model": "dot_segment",
        "team": "not_text",
        "team.0": "control_character",
    }


def test_what_is_not_of_a_training_is_named_by_its_place(client: TestClient) -> None:
    for path in (RUNS.replace("train_model", "deploy_service"), RUNS.replace("train_model", "another"), RUNS + "/"):
        answer = client.post(path, content=b'{"note": "\\u0000", "conf": {"\\ud800": NaN}}')
        assert answer.status_code == 400
        assert {"note", "\ufffd"} <= {each["field"] for each in answer.json()["problems"]}, path


def test_everything_else_passes_as_it_came(client: TestClient) -> None:
    for content in (
        body("9223372036854775807"),
        body("-1e18"),
        body(gpus=0),
        b"{broken",
        b"[" * 100_000,
        b"",
        "{}é".encode(),
        b"\xff",
        b"[NaN",
    ):
        assert client.post(RUNS, content=content).content == content

    for path in ("/api/v2/dags/train_model", RUNS + "/list", "/elsewhere"):
        assert client.post(path, content=body("NaN")).content == body("NaN"), path
    assert client.get(RUNS).status_code == 200


def test_a_body_that_comes_in_parts_is_read_whole(client: TestClient) -> None:
    parts = [body("NaN")[:50], body("NaN")[50:]]
    assert client.post(RUNS, content=iter(parts)).status_code == 400
    assert client.post(RUNS, content=iter([body()[:50], body()[50:]])).content == body()


def test_a_body_longer_than_anybody_needs_is_not_read_to_its_end() -> None:
    read = 0

    async def receive() -> Message:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b" " * 1024 * 1024, "more_body": True}

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def unreached(*_: object) -> None:
        raise AssertionError("it was passed on")

    scope: Scope = {"type": "http", "method": "POST", "path": RUNS, "headers": []}
    asyncio.run(Door(unreached)(scope, receive, send))
    assert (sent[0]["status"], read) == (413, MOST_BYTES // 1024 // 1024 + 1)
    assert json.loads(sent[1]["body"])["code"] == "request_too_long"


def test_an_answer_names_a_few_places_however_many_there_are(client: TestClient) -> None:
    answer = client.post(RUNS.replace("train_model", "another"), content=json.dumps({"conf": [float("nan")] * 10_000}))
    assert len(answer.json()["problems"]) == 20
