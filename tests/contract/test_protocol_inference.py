"""The Open Inference Protocol keeps the contract over REST and gRPC; then what only real connections can show."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from inference_contract import InferenceContract, x
from inference_server import MODEL, Puppet, over_grpc, rest

from fermion.adapters.inference import ProtocolInference, messages, wire
from fermion.domain.serving.services import ApiType
from fermion.domain.serving.tensors import Target, Tensor
from fermion.errors import NotFound, OutsideBroken, OutsideUnavailable, RequestRefused

TIMEOUT = timedelta(seconds=3)
SHORT = timedelta(seconds=0.7)
"""Only where the answer is late at once: on a busy machine a timely one takes longer."""


def free_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class RealServed:
    """A server of the protocol."""

    def __init__(self, inference: ProtocolInference, puppet: Puppet, target: Target) -> None:
        self.inference = inference
        self.puppet = puppet
        self.target = target
        self.nobody = replace(target, address=target.address.rpartition(":")[0] + f":{free_port()}")

    def set_ready(self, is_ready: bool) -> None:
        self.puppet.is_ready = is_ready


@contextmanager
def serving(api_type: ApiType, **limits: int) -> Iterator[RealServed]:
    puppet = Puppet()
    inference = ProtocolInference(timeout=TIMEOUT, **limits)
    with (rest if api_type is ApiType.REST else over_grpc)(puppet) as address:
        yield RealServed(inference, puppet, Target(address=address, model=MODEL, api_type=api_type, service="adder"))
    inference.close()


@pytest.fixture(params=[ApiType.REST, ApiType.GRPC])
def served(request: pytest.FixtureRequest) -> Iterator[RealServed]:
    with serving(request.param) as found:
        yield found


@pytest.fixture
def over_rest() -> Iterator[RealServed]:
    with serving(ApiType.REST) as found:
        yield found


class TestProtocolInference(InferenceContract):
    """Asks real servers."""


def test_the_router_is_told_whose_the_call_is(served: RealServed) -> None:
    served.inference.predict(served.target, x((1.0, 1.0)))
    assert served.puppet.headers["fermion-service"] == "adder"
    served.inference.predict(replace(served.target, service=None), x((1.0, 1.0)))
    assert "fermion-service" not in served.puppet.headers


@pytest.mark.parametrize("api_type", [ApiType.REST, ApiType.GRPC])
def test_what_is_larger_than_the_limit_is_neither_sent_nor_taken(api_type: ApiType) -> None:
    with serving(api_type, max_bytes=10_000) as served:
        with pytest.raises(RequestRefused, match="larger than 10000 bytes"):
            served.inference.predict(served.target, x(*[(1.25, 1.0)] * 2000))
        assert served.puppet.inputs == ()
        served.puppet.raw = b" " * 20_000
        with pytest.raises(OutsideBroken, match="larger than 10000 bytes"):
            served.inference.predict(served.target, x((1.0, 1.0)))


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        pytest.param(404, NotFound, "knows no model", id="404"),
        pytest.param(422, RequestRefused, "answered 422: no such field", id="422"),
        pytest.param(401, RequestRefused, "answered 401", id="401"),
        pytest.param(429, OutsideUnavailable, "cannot answer now", id="429"),
        pytest.param(500, OutsideBroken, r"failed \(500\): no such field", id="500"),
        pytest.param(502, OutsideUnavailable, "cannot answer now", id="502"),
        pytest.param(503, OutsideUnavailable, "cannot answer now", id="503"),
        pytest.param(504, OutsideUnavailable, "cannot answer now", id="504"),
        pytest.param(302, OutsideBroken, "status 302", id="a redirection is not followed"),
    ],
)
def test_what_a_status_means(over_rest: RealServed, status: int, error: type[Exception], words: str) -> None:
    over_rest.puppet.raw, over_rest.puppet.status = b'{"detail": "no such field"}', status
    with pytest.raises(error, match=words) as found:
        over_rest.inference.predict(over_rest.target, x((1.0, 1.0)))
    assert type(found.value) is error


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        pytest.param(b"", "no JSON", id="nothing"),
        pytest.param(b"\xff\xfe{", "no JSON", id="no text"),
        pytest.param(b"[1]", "no JSON object", id="a list"),
        pytest.param(b"{}", "no list of outputs", id="no outputs"),
        pytest.param(b'{"outputs": [1]}', "no object", id="an output that is a number"),
        pytest.param(b'{"outputs": [{"name": "y"}]}', "lacks its name", id="an output without data"),
        pytest.param(b'{"outputs": [{"name": "y", "datatype": "INT64", "data": [1]}]}', "no shape", id="no shape"),
        pytest.param(
            b'{"outputs": [{"name": "y", "datatype": "FP64", "shape": [1], "data": [{}]}]}', "no value", id="no value"
        ),
    ],
)
def test_an_answer_that_is_none_is_broken(over_rest: RealServed, raw: bytes, words: str) -> None:
    over_rest.puppet.raw = raw
    with pytest.raises(OutsideBroken, match=words):
        over_rest.inference.predict(over_rest.target, x((1.0, 1.0)))


def test_nested_data_are_flat_afterwards(over_rest: RealServed) -> None:
    over_rest.puppet.raw = (
        b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2], [3, null]]}]}'
    )
    (output,) = over_rest.inference.predict(over_rest.target, x((1.0, 1.0)))
    assert output.data[:3] == (1.0, 2.0, 3.0)
    assert output.data[3] != output.data[3]


def test_a_ready_answer_may_be_a_no(over_rest: RealServed) -> None:
    over_rest.puppet.raw = b'{"ready": false}'
    assert not over_rest.inference.is_ready(over_rest.target)


def dripping(sock: socket.socket, ended: threading.Event) -> None:
    """An answer of which a byte comes now and then."""
    connection, _ = sock.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        while not ended.wait(0.1):
            try:
                connection.sendall(b" ")
            except OSError:
                return


def hanging_up(sock: socket.socket, ended: threading.Event) -> None:
    """A connection that is reset in the middle of an answer."""
    connection, _ = sock.accept()
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@contextmanager
def listening(serve: Callable[[socket.socket, threading.Event], None]) -> Iterator[Target]:
    ended = threading.Event()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        thread = threading.Thread(target=serve, args=(sock, ended), daemon=True)
        thread.start()
        yield Target(address=f"http://127.0.0.1:{sock.getsockname()[1]}", model=MODEL)
        ended.set()
        thread.join(5)


def test_an_answer_that_drips_is_late_as_a_whole() -> None:
    with listening(dripping) as target:
        began = time.monotonic()
        with pytest.raises(OutsideUnavailable, match=r"did not answer within 0\.7 s"):
            ProtocolInference(timeout=SHORT).predict(target, x((1.0, 1.0)))
        assert time.monotonic() - began < 15


def test_a_connection_that_breaks_is_unavailable() -> None:
    with listening(hanging_up) as target, pytest.raises(OutsideUnavailable, match="nobody answers") as found:
        ProtocolInference(timeout=TIMEOUT).predict(target, x((1.0, 1.0)))
    assert found.value.retryable


@pytest.mark.parametrize("address", ["http://", "no url", "http://[", "ftp://127.0.0.1"])
def test_an_address_that_is_none_is_where_nobody_answers(address: str) -> None:
    with pytest.raises(OutsideUnavailable, match="nobody answers"):
        ProtocolInference(timeout=TIMEOUT).predict(Target(address=address, model=MODEL), x((1.0, 1.0)))


def test_nothing_is_made_before_the_first_question(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nor is a proxy of the environment asked
    with serving(ApiType.REST) as served:
        assert served.inference.is_ready(served.target)


# --- the wire ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("datatype", "raw", "values"),
    [
        pytest.param("BOOL", b"\x01\x00", (True, False), id="BOOL"),
        pytest.param("INT8", b"\xff", (-1,), id="INT8"),
        pytest.param("UINT16", b"\x01\x02", (513,), id="UINT16"),
        pytest.param("INT32", b"\xfe\xff\xff\xff", (-2,), id="INT32"),
        pytest.param("INT64", struct.pack("<q", 2**40), (2**40,), id="INT64"),
        pytest.param("FP16", b"\x00\x3c", (1.0,), id="FP16"),
        pytest.param("BF16", b"\x80\x3f", (1.0,), id="BF16"),
        pytest.param("FP32", struct.pack("<f", 0.5), (0.5,), id="FP32"),
        pytest.param("FP64", struct.pack("<d", 0.1), (0.1,), id="FP64"),
        pytest.param("BYTES", b"\x02\x00\x00\x00ab\x00\x00\x00\x00", ("ab", ""), id="BYTES"),
    ],
)
def test_raw_contents_are_read(datatype: str, raw: bytes, values: tuple[object, ...]) -> None:
    answer = messages.ModelInferResponse(raw_output_contents=[raw])
    answer.outputs.add(name="y", datatype=datatype, shape=[len(values)])
    (output,) = wire.outputs_of(answer)
    assert output.data == values


@pytest.mark.parametrize(
    ("datatype", "raw"),
    [
        pytest.param("FP64", b"\0" * 7, id="cut off"),
        pytest.param("BYTES", b"\x05\x00\x00\x00ab", id="a text cut off"),
        pytest.param("BYTES", b"\x05\x00", id="a length cut off"),
        pytest.param("FP8", b"\0", id="no datatype"),
    ],
)
def test_raw_contents_that_do_not_fit_are_an_error(datatype: str, raw: bytes) -> None:
    answer = messages.ModelInferResponse(raw_output_contents=[raw])
    answer.outputs.add(name="y", datatype=datatype, shape=[1])
    with pytest.raises(ValueError, match=r"cut off|no whole number|no datatype"):
        wire.outputs_of(answer)


def test_every_output_needs_its_raw_contents() -> None:
    answer = messages.ModelInferResponse(raw_output_contents=[b"", b""])
    answer.outputs.add(name="y", datatype="FP64", shape=[0])
    with pytest.raises(ValueError, match="1 outputs, and 2 raw"):
        wire.outputs_of(answer)


@pytest.mark.parametrize("datatype", sorted(wire.CONTENTS))
def test_what_is_sent_typed_comes_back_the_same(datatype: str) -> None:
    value = {"BOOL": True, "BYTES": "ä"}.get(datatype, 7)
    sent = Tensor(name="x", datatype=datatype, shape=(1,), data=(value,))
    request = wire.infer_request(MODEL, [sent])
    assert wire.outputs_of(messages.ModelInferResponse.FromString(request.SerializeToString())) == (sent,)


@pytest.mark.parametrize(("datatype", "value"), [("INT32", 2**40), ("UINT64", -1), ("FP16", 1.0), ("INT64", "a")])
def test_what_does_not_fit_its_datatype_is_refused_before_it_is_sent(datatype: str, value: float | str) -> None:
    target = Target(address="127.0.0.1:1", model=MODEL, api_type=ApiType.GRPC)
    with pytest.raises(RequestRefused, match=r"input 'x'"):
        ProtocolInference().predict(target, [Tensor(name="x", datatype=datatype, shape=(1,), data=(value,))])
