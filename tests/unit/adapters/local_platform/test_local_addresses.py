"""Which ports the embedded installation takes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fermion.adapters.local_platform.addresses import Addresses, choose, holder_of, is_free, read, scrape_port, write
from fermion.errors import Conflict


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        yield server


def test_the_first_start_takes_the_default_ports() -> None:
    addresses, note = choose(wanted_http=None, kept=None, is_free=lambda _: True)

    assert (addresses, note) == (Addresses(http=8080, postgres=25432, router=8090), None)
    assert addresses.url == "http://127.0.0.1:8080"


def test_a_taken_default_moves_to_the_next_free_port_and_says_so() -> None:
    addresses, note = choose(wanted_http=None, kept=None, is_free=lambda port: port not in {8080, 8081, 25432})

    assert addresses == Addresses(http=8082, postgres=25433)
    assert note is not None
    assert "8080 is taken" in note
    assert "8082" in note
    assert "FERMION_PORT" in note


def test_kept_ports_are_used_again() -> None:
    kept = Addresses(http=9000, postgres=26000, router=9500)

    assert choose(wanted_http=None, kept=kept, is_free=lambda _: True) == (kept, None)


def test_a_kept_port_that_somebody_else_took_is_given_up_with_a_note() -> None:
    addresses, note = choose(
        wanted_http=None, kept=Addresses(http=9000, postgres=26000), is_free=lambda port: port != 9000
    )

    assert addresses == Addresses(http=9001, postgres=26000)
    assert note is not None
    assert "9000 is taken" in note


def test_the_router_gets_nobody_elses_port() -> None:
    addresses, note = choose(wanted_http=8090, kept=None, is_free=lambda _: True)

    assert (addresses, note) == (Addresses(http=8090, postgres=25432, router=8091), None)


def test_a_routers_port_that_somebody_else_took_is_given_up_with_a_note() -> None:
    """Those who ask the services must be told where they are now."""
    kept = Addresses(http=9000, postgres=26000, router=9500)

    addresses, note = choose(wanted_http=None, kept=kept, is_free=lambda port: port != 9500, holder=lambda _: "nginx")

    assert addresses == Addresses(http=9000, postgres=26000, router=9501)
    assert note == "the router's port 9500 is taken by nginx; services are at 9501 now"


def test_both_notes_are_said_at_once() -> None:
    kept = Addresses(http=9000, postgres=26000, router=9500)

    _, note = choose(wanted_http=None, kept=kept, is_free=lambda port: port not in {9000, 9500})

    assert note is not None
    assert "using 9001" in note
    assert "9501" in note


def test_a_wanted_port_is_used_even_when_another_one_was_kept() -> None:
    addresses, note = choose(wanted_http=9100, kept=Addresses(http=9000, postgres=26000), is_free=lambda _: True)

    assert (addresses.http, note) == (9100, None)


def test_a_wanted_port_that_is_taken_is_refused_with_its_holder_and_what_to_do(listener: socket.socket) -> None:
    port = listener.getsockname()[1]

    with pytest.raises(Conflict, match=rf"FERMION_PORT={port} is taken by .*\(pid \d+\).*leave FERMION_PORT unset"):
        choose(wanted_http=port, kept=None, is_free=is_free, holder=holder_of)


def test_no_free_port_in_the_whole_range_is_refused() -> None:
    with pytest.raises(Conflict, match="none of the ports 25432 to 25531 is free"):
        choose(wanted_http=None, kept=None, is_free=lambda _: False)


def test_the_configured_scrape_port_is_taken_as_it_is_or_not_at_all() -> None:
    here = Addresses(http=8080, postgres=25432, router=8090)
    assert scrape_port(None, here, is_free=lambda port: False) is None
    assert scrape_port(9464, here, is_free=lambda port: True) == 9464
    with pytest.raises(Conflict, match=r"scrape_port 8090 is taken by the router; stop"):
        scrape_port(8090, here, is_free=lambda port: True)
    with pytest.raises(Conflict, match=r"scrape_port 9464 is taken by nginx \(pid 12\); stop"):
        scrape_port(9464, here, is_free=lambda port: False, holder=lambda port: "nginx (pid 12)")


def test_a_port_with_a_listener_is_not_free_and_is_free_again_afterwards() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        port = server.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    write(tmp_path / "ports.json", Addresses(http=1, postgres=2, router=3))

    assert read(tmp_path / "ports.json") == Addresses(http=1, postgres=2, router=3)


def test_ports_from_before_there_was_a_router_are_read_and_it_gets_its_default(tmp_path: Path) -> None:
    (tmp_path / "ports.json").write_text('{"http": 8081, "postgres": 25433, "url": "http://127.0.0.1:8081"}')

    assert read(tmp_path / "ports.json") == Addresses(http=8081, postgres=25433, router=8090)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"http": 8080}', '{"http": "x", "postgres": 1}'])
def test_a_file_that_holds_no_ports_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "ports.json").write_text(text)

    assert read(tmp_path / "ports.json") is None
