"""config/docker/router.py and the router's health check: what Envoy says is kept, how it ends is told, and what it answers counts."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "config/docker/router.py"
HEALTHY = ROOT / "config/docker/healthy.py"
PATIENCE_S = 20.0

RUN = f"""
import runpy, sys
from pathlib import Path
sys.exit(runpy.run_path({str(PROGRAM)!r})["run"](sys.argv[2:], Path(sys.argv[1])))
"""


def start(log: Path, script: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "include")}
    command = [sys.executable, "-c", RUN, str(log), "sh", "-c", script]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ)


def test_what_it_prints_is_in_the_containers_log_and_in_the_file(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "router.log"
    program = start(log, "echo one; echo two >&2; exit 3")

    assert (program.communicate(timeout=PATIENCE_S)[1], program.returncode) == ("one\ntwo\n", 3)
    assert log.read_text() == "one\ntwo\n"


def test_asked_to_end_it_asks_the_program_and_waits_for_it(tmp_path: Path) -> None:
    log = tmp_path / "router.log"
    program = start(log, "trap 'echo ending; exit 7' TERM; echo there; while :; do sleep 0.05; done")
    until = time.monotonic() + PATIENCE_S
    while not log.exists() or "there" not in log.read_text():
        assert time.monotonic() < until, "it did not start"
        time.sleep(0.02)
    program.terminate()

    assert (program.communicate(timeout=PATIENCE_S)[1], program.returncode) == ("there\nending\n", 7)


@contextmanager
def answering(status: int) -> Iterator[str]:
    """The address of a server that answers everything so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(PATIENCE_S)


def check(url: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    command = [sys.executable, "-IS", str(HEALTHY), "router", url]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        pytest.param(404, 0, "healthy", id="nobody's path is not found: it is the router"),
        pytest.param(503, 1, "answers 503", id="no route yet"),
        pytest.param(200, 1, "answers 200", id="somebody else has its port"),
    ],
)
def test_the_router_is_healthy_when_it_says_that_nobodys_path_is_nowhere(status: int, code: int, said: str) -> None:
    with answering(status) as url:
        done = check(url)

    assert (done.returncode, done.stdout) == (code, f"router: {said}\n"), done.stderr


def test_a_router_that_does_not_listen_is_not_healthy() -> None:
    with answering(404) as url:
        gone = url

    assert check(gone).returncode == 1
