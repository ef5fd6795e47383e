"""What Airflow's REST API answers, in our words. The API itself is asked in tests/e2e."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from fermion.adapters.engine import RestRuns
from fermion.errors import OutsideBroken, OutsideUnavailable


class _Airflow(BaseHTTPRequestHandler):
    answer: ClassVar[tuple[int, object]] = (200, {})
    asked: ClassVar[list[tuple[str, str, object]]] = []

    def do_PATCH(self) -> None:
        self.do_POST()

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"null")
        self.asked.append((self.command, self.path, body))
        status, body = (201, {"access_token": "x"}) if self.path == "/auth/token" else self.answer
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def airflow() -> Iterator[RestRuns]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Airflow)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield RestRuns(f"http://127.0.0.1:{server.server_address[1]}", lambda: ("admin", "word"))
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("detail", "said"),
    [
        pytest.param(
            [
                {"type": "value_error", "loc": ["body", "dag_run_id"], "msg": "Value error, it has spaces", "ctx": {}},
                {"type": "missing", "loc": ["body", "conf"], "msg": "Field required"},
            ],
            "body.dag_run_id: it has spaces; body.conf: Field required",
            id="findings",
        ),
        pytest.param("The DAG is not there", "The DAG is not there", id="a sentence"),
        pytest.param(["odd"], "odd", id="something else"),
    ],
)
def test_a_refusal_is_told_in_words(
    airflow: RestRuns, monkeypatch: pytest.MonkeyPatch, detail: object, said: str
) -> None:
    monkeypatch.setattr(_Airflow, "answer", (422, {"detail": detail}))
    with pytest.raises(OutsideBroken) as broken:
        airflow.trigger("train_model", "a b", {})
    assert broken.value.message.endswith(f" answered 422. {said}")


def test_one_that_does_not_answer_leaves_the_advice_to_who_knows_how_it_is_started() -> None:
    runs = RestRuns("http://127.0.0.1:1", lambda: ("admin", "word"))
    with pytest.raises(OutsideUnavailable) as silent:
        runs.state("train_model", "-")
    assert silent.value.message == "Airflow at http://127.0.0.1:1 does not answer (ConnectError)."
    assert silent.value.what == "airflow"


@pytest.mark.parametrize(("status", "was_open"), [(200, True), (404, False), (409, False)])
def test_a_question_is_answered_by_one_of_its_options_if_it_is_open(
    airflow: RestRuns, monkeypatch: pytest.MonkeyPatch, status: int, was_open: bool
) -> None:
    monkeypatch.setattr(_Airflow, "answer", (status, {"detail": "there is none"}))
    assert airflow.answer("deploy_service", "a/b", "approve", "Approve", {"note": "fine"}) is was_open
    path = "/api/v2/dags/deploy_service/dagRuns/a%2Fb/taskInstances/approve/-1/hitlDetails"
    assert _Airflow.asked[-1] == ("PATCH", path, {"chosen_options": ["Approve"], "params_input": {"note": "fine"}})


def test_an_instance_of_a_task_is_called_by_its_number(airflow: RestRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [
        {"task_id": "approve", "map_index": 1, "state": "deferred"},
        {"task_id": "canary", "map_index": -1, "state": "success"},
    ]
    monkeypatch.setattr(_Airflow, "answer", (200, {"state": "running", "task_instances": tasks}))
    assert airflow.state("deploy_service", "a").tasks == {"approve[1]": "deferred", "canary": "success"}
    run = "/api/v2/dags/deploy_service/dagRuns/a/taskInstances"
    airflow.skip_task("deploy_service", "a", "approve[1]")
    assert _Airflow.asked[-1] == ("PATCH", f"{run}/approve/1", {"new_state": "skipped"})
    airflow.note("deploy_service", "a", "approve[1]", "text")
    assert _Airflow.asked[-1] == ("PATCH", f"{run}/approve/1", {"note": "text"})
    airflow.answer("deploy_service", "a", "approve[1]", "Reject", {})
    assert _Airflow.asked[-1][1] == f"{run}/approve/1/hitlDetails"
