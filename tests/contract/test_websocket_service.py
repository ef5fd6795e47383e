"""A service that speaks WebSocket: a ``command`` of somebody's own under the process driver, behind a real Envoy."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from replicas_contract import grant
from router_contract import LIMIT_S, until
from test_envoy_router import Envoy
from test_process_replicas import ProcessBench
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from builders import make_replica, make_revision, make_service, make_service_spec
from fermion.domain.serving import engines
from fermion.domain.serving.replicas import ReplicaSeen, ReplicaState
from fermion.domain.serving.services import ApiType, Replica, Revision
from fermion.usecases.serving.routes import table_of

SERVICE = make_service(api_type=ApiType.WEBSOCKET, stable=1, weights={"1": 100})
SPEC = make_service_spec(engine="command", command=("python", "websocket_server.py"), api_type=ApiType.WEBSOCKET)


class Chat:
    """The service: replicas as the driver starts them, routed as the platform routes them."""

    def __init__(self, root: Path, envoy: Envoy) -> None:
        self.bench = ProcessBench(root)
        self.envoy = envoy
        self.rows: list[Replica] = []
        self.revisions: list[Revision] = []

    def start(self, number: int) -> Revision:
        """One replica of that revision, once it is ready."""
        revision = make_revision(number, spec=SPEC)
        row = make_replica(1, revision=revision.id)
        spec = replace(
            self.bench.spec(),
            name=row.name,
            revision=revision.id,
            log=self.bench.replicas.log_location(row.name),
            argv=engines.argv_of(SPEC),
            ports=engines.ports_of(SPEC),
            probes=engines.probes_of(SPEC),
            environment={**engines.environment_of(SPEC, "process"), "NAME": f"r{number}"},
        )
        self.bench.replicas.prepare(spec)
        self.bench.replicas.resume(row.name, grant())
        self.rows.append(row)
        self.revisions.append(revision)
        until(lambda: self.seen(row).state is ReplicaState.READY)
        return revision

    def seen(self, row: Replica) -> ReplicaSeen:
        return self.bench.replicas.look(row.name)

    def route(self, weights: dict[str, int]) -> None:
        """All of the service's requests go there now."""
        service = replace(SERVICE, weights=weights)
        seen = {row.name: self.seen(row) for row in self.rows}
        self.envoy.router.apply(table_of([service], self.revisions, self.rows, seen))

    def connect(self) -> contextlib.AbstractContextManager[ClientConnection]:
        """A client at the service's address on the shared port."""
        return connect(f"ws://127.0.0.1:{self.envoy.port}{SERVICE.prefix}/chat", open_timeout=LIMIT_S, proxy=None)


@pytest.fixture
def chat() -> Iterator[Chat]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "router").mkdir()
        (Path(folder) / "work").mkdir()
        envoy = Envoy(Path(folder) / "router")
        envoy.start()
        made = Chat(Path(folder) / "work", envoy)
        try:
            yield made
        finally:
            made.bench.clean()
            envoy.kill()


def said(client: ClientConnection, text: str) -> str:
    client.send(text)
    return str(client.recv(timeout=LIMIT_S))


def test_clients_talk_to_a_command_through_the_router_and_stay_where_they_are_when_another_revision_serves(
    chat: Chat,
) -> None:
    first, second = chat.start(1), chat.start(2)
    chat.route({"1": 100})
    with chat.connect() as early:
        assert said(early, "hello") == "r1: hello"
        assert said(early, "x" * 100_000) == "r1: " + "x" * 100_000
        chat.route({"2": 100})
        assert chat.envoy.router.applied()[SERVICE.name].weights == {second.id: 100}
        with chat.connect() as late:
            assert said(late, "hello") == "r2: hello"
            assert said(early, "still here?") == "r1: still here?"
    until(lambda: [ended(chat, each) for each in (first, second)] == [1, 1])


def ended(chat: Chat, revision: Revision) -> int:
    """How many of its WebSockets were counted, which they are once, when they end."""
    return chat.envoy.router.counters([revision.id])[revision.id].by_class.get("1xx", 0)


def test_without_a_replica_that_is_ready_a_client_is_told_so(chat: Chat) -> None:
    chat.start(1)
    chat.bench.replicas.stop(chat.rows[0].name, grace=timedelta(seconds=0), why="gone")
    until(lambda: chat.seen(chat.rows[0]).is_gone)
    chat.route({"1": 100})
    with pytest.raises(InvalidStatus) as refused, chat.connect():
        pass
    assert refused.value.response.status_code == 503


def test_a_client_whose_server_is_killed_sees_the_end_and_comes_back_to_the_next_process(chat: Chat) -> None:
    chat.start(1)
    chat.route({"1": 100})
    with chat.connect() as client:
        assert said(client, "hello") == "r1: hello"
        os.kill(chat.bench.pid(chat.rows[0].name), signal.SIGKILL)
        with pytest.raises(ConnectionClosedError):
            client.recv(timeout=LIMIT_S)
    until(lambda: chat.seen(chat.rows[0]).state is ReplicaState.READY and chat.seen(chat.rows[0]).starts == 2)
    chat.route({"1": 100})
    with chat.connect() as again:
        assert said(again, "hello") == "r1: hello"
