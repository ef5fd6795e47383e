"""Ports that belong to an installation while nobody listens there."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fermion.adapters.local_platform.claims import FRESH_S, Claims

NOBODY = Path("/nonexistent/supervisor.sock")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ports"


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen(8)
        yield path


def claim(folder: Path, state: str, *ports: int, supervisor: Path = NOBODY) -> Claims:
    claims = Claims(Path(state), folder=folder)
    with claims.choosing():
        claims.claim(ports, supervisor=supervisor)
    return claims


def make_old(folder: Path, port: int) -> None:
    past = time.time() - FRESH_S - 1
    os.utime(folder / str(port), (past, past))


def test_a_port_of_an_installation_that_is_just_starting_is_not_given_to_another(folder: Path) -> None:
    claim(folder, "/one/run", 8080)

    assert Claims(Path("/two/run"), folder=folder).holder(8080) == "/one/run"


def test_ones_own_port_is_free_to_oneself(folder: Path) -> None:
    assert claim(folder, "/one/run", 8080).holder(8080) is None


def test_a_port_nobody_noted_is_free(folder: Path) -> None:
    assert claim(folder, "/one/run", 8080).holder(8081) is None


def test_an_old_note_holds_while_the_supervisor_answers(folder: Path, supervisor: Path) -> None:
    claim(folder, "/one/run", 8080, supervisor=supervisor)
    make_old(folder, 8080)

    assert Claims(Path("/two/run"), folder=folder).holder(8080) == "/one/run"


def test_an_old_note_of_a_dead_installation_holds_nothing(folder: Path) -> None:
    claim(folder, "/one/run", 8080)
    make_old(folder, 8080)

    assert Claims(Path("/two/run"), folder=folder).holder(8080) is None


def test_a_new_claim_gives_up_the_ports_of_the_last_one_and_nobody_elses(folder: Path) -> None:
    claim(folder, "/one/run", 8080, 25432)
    claim(folder, "/two/run", 8081)
    claim(folder, "/one/run", 8090)
    third = Claims(Path("/three/run"), folder=folder)

    assert [third.holder(port) for port in (8080, 25432, 8081, 8090)] == [None, None, "/two/run", "/one/run"]


def test_withdrawn_ports_are_free_at_once(folder: Path) -> None:
    claim(folder, "/one/run", 8080).withdraw()

    assert Claims(Path("/two/run"), folder=folder).holder(8080) is None


def test_withdrawing_from_nothing_is_fine_and_makes_nothing(folder: Path) -> None:
    Claims(Path("/one/run"), folder=folder).withdraw()

    assert not folder.exists()


def test_a_torn_note_holds_nothing(folder: Path) -> None:
    claim(folder, "/one/run", 8080)
    (folder / "8080").write_text('{"state": ')

    assert Claims(Path("/two/run"), folder=folder).holder(8080) is None
