"""What git traces for whoever debugs it is no message of ours, and no header of it reaches one."""

from __future__ import annotations

import base64
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from fermion.adapters.git.remotes import Rules
from fermion.adapters.git.repositories import Repositories
from fermion.errors import OutsideUnavailable

TOKEN = "t0p-s3cr3t-t0ken"
HEADER = base64.b64encode(f"robot:{TOKEN}".encode()).decode()


@pytest.fixture(params=["a caller that traces nothing", "a caller that traces everything"])
def traced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "a caller that traces nothing":
        return False
    names = ["GIT_CURL_VERBOSE", "GIT_TRACE", "GIT_TRACE2", "GIT_TRACE_CURL", "GIT_TRACE_PACKET", "GIT_TRACE_SETUP"]
    for name in names:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("GIT_TRACE_REDACT", "0")
    return True


def repositories(tmp_path: Path) -> Repositories:
    rules = Rules(hosts=["localhost"], embedded=True)
    return Repositories(tmp_path / "cache", rules=rules, credentials=lambda host: ("robot", TOKEN))


def test_a_closed_port_is_told_in_one_sentence(traced: bool, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: nobody else can take the port
        port = closed.getsockname()[1]
        code = Repositories(tmp_path / "cache", rules=Rules(hosts=[f"127.0.0.1:{port}"], embedded=True))
        with pytest.raises(OutsideUnavailable) as caught:
            code.resolve(f"https://127.0.0.1:{port}/digits.git", "main")

    told = caught.value.message
    assert told.startswith(
        f"the repository 'https://127.0.0.1:{port}/digits.git' cannot be read: fatal: unable to access"
    )
    assert told.endswith("Call again when it answers.")
    assert "Trying" not in told
    assert "trace" not in told


def test_no_header_of_a_failed_call_is_in_its_message(
    traced: bool, server: Any, repository: Any, tmp_path: Path
) -> None:
    repository.commit({"train.py": "1"})
    server.account = ("robot", TOKEN)

    def fail(request: Any) -> bool:
        if "Authorization" not in request.headers:
            return False
        request.send_response(500)
        request.send_header("Content-Length", "0")
        request.end_headers()
        return True

    server.behave = fail
    with pytest.raises(OutsideUnavailable, match="error: 500") as caught:
        repositories(tmp_path).resolve(f"{server.url}/digits.git", "main")

    told = caught.value.message
    assert [each for each in ("uthorization", HEADER, TOKEN) if each in told] == []
    assert told.count("fatal:") == 1


def test_a_git_that_prints_its_headers_all_the_same_gets_them_taken_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    chatty = bin_folder / "git"
    chatty.write_text(
        '#!/bin/sh\ncase "$*" in *ls-remote*|*fetch*) ;; *) exec /usr/bin/env PATH="$REAL_PATH" git "$@" ;; esac\n'
        f"echo '> authorization: Basic {HEADER}' >&2\necho '* user robot:{TOKEN} {HEADER}' >&2\n"
        "echo 'fatal: it broke' >&2\nexit 128\n"
    )
    chatty.chmod(0o755)
    monkeypatch.setenv("REAL_PATH", os.environ["PATH"])
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(OutsideUnavailable) as caught:
        repositories(tmp_path).resolve("https://localhost/digits.git", "main")

    assert "* user robot:*** *** fatal: it broke" in caught.value.message
    assert "uthorization" not in caught.value.message
