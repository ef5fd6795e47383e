"""The gRPC health check as bytes: what is asked, and how an answer is understood wherever it is cut."""

from __future__ import annotations

import pytest

from fermion.adapters.process.runner.grpc_health import HealthCheck

SERVING = b"\x00\x00\x00\x00\x02\x08\x01"
END = 0x1


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 1) -> bytes:
    """One frame of HTTP/2."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def ask(service: str = "") -> HealthCheck:
    """A call whose request was sent already."""
    check = HealthCheck("127.0.0.1:20000", service)
    check.outgoing = b""
    return check


def test_the_request_is_a_preface_settings_headers_and_one_message() -> None:
    sent = HealthCheck("127.0.0.1:20000", "digits").outgoing
    assert sent.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, stream=0))
    assert b"/grpc.health.v1.Health/Check" in sent
    assert sent.endswith(frame(0, b"\x00\x00\x00\x00\x08\x0a\x06digits", flags=END))


@pytest.mark.parametrize("size", [126, 127, 128, 300])
def test_long_words_have_longer_lengths(size: int) -> None:
    authority = "h" * size
    sent = HealthCheck(authority).outgoing
    length = bytes((size,)) if size < 127 else bytes((127, size - 127)) if size < 255 else bytes((127, 0xAD, 0x01))
    assert length + authority.encode() in sent


@pytest.mark.parametrize("piece", [1, 2, 5, 9, 1000])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(frame(1, b"x", flags=4) + frame(0, SERVING), (True, "SERVING"), id="serving"),
        pytest.param(frame(0, SERVING[:3]) + frame(0, SERVING[3:]), (True, "SERVING"), id="a message in two frames"),
        pytest.param(frame(0, b"\x02" + SERVING + b"\0\0", flags=8), (True, "SERVING"), id="padded"),
        pytest.param(frame(0, b"\0\0\0\0\x02\x08\x02"), (False, "NOT_SERVING"), id="not serving"),
        pytest.param(frame(0, b"\0\0\0\0\0"), (False, "UNKNOWN"), id="an absent field is unknown"),
        pytest.param(frame(0, b"\1\0\0\0\x02xx"), (False, "compressed"), id="compressed"),
        pytest.param(frame(1, b"x", flags=4 | END), (False, "does it serve"), id="a refusal without a message"),
        pytest.param(frame(0, b"", flags=END), (False, "without a status"), id="an end without a message"),
        pytest.param(frame(3, b"\0\0\0\x07"), (False, "code 7"), id="a reset"),
        pytest.param(frame(7, b"\0\0\0\0\0\0\0\x0b", stream=0), (False, "code 11"), id="a farewell"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 0x485454, (False, "health check"), id="HTTP/1"),
    ],
)
def test_answers_are_understood_wherever_they_are_cut(answer: bytes, expected: tuple[bool, str], piece: int) -> None:
    check = ask()
    greeting = frame(4, stream=0) + frame(8, b"\0\0\xff\xff", stream=0)
    stream = greeting + answer if not answer.startswith(b"HTTP") else answer
    step = piece if len(stream) < 10_000 else 100_000
    verdict = None
    for start in range(0, len(stream), step):
        verdict = verdict or check.feed(stream[start : start + step])
    assert verdict is not None
    assert verdict[0] is expected[0]
    assert expected[1] in verdict[1]


def test_settings_and_pings_are_acknowledged_and_their_acknowledgements_are_not() -> None:
    check = ask()
    assert check.feed(frame(4, stream=0) + frame(6, b"12345678", stream=0)) is None
    assert check.outgoing == frame(4, flags=1, stream=0) + frame(6, b"12345678", flags=1, stream=0)
    check.outgoing = b""
    assert check.feed(frame(4, flags=1, stream=0) + frame(6, b"12345678", flags=1, stream=0)) is None
    assert check.outgoing == b""


def test_a_closed_connection_is_no_answer() -> None:
    ok, words = ask().end()
    assert not ok
    assert "does it speak gRPC" in words
