"""Serves a model over the Open Inference Protocol (V2) with Python's standard library, and over gRPC with grpcio.

Only for tests: it speaks as much of the protocol as they need, and knows how to answer wrongly.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from inference_contract import SIGNATURE, add

from fermion.adapters.inference import messages, wire
from fermion.domain.serving.tensors import Tensor, TensorSpec, read_inputs

MODEL = "adder"


@dataclass
class Puppet:
    """One server. ``raw`` replaces an answer (over gRPC: is all that it holds), ``status`` goes with it."""

    is_ready: bool = True
    late_s: float = 5.0
    raw: bytes | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    inputs: tuple[Tensor, ...] = ()
    ended: threading.Event = field(default_factory=threading.Event)

    def infer(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The model's answer, late if it should be."""
        self.inputs = inputs
        try:
            return add(inputs)
        except TimeoutError:
            self.ended.wait(self.late_s)
            return ()


@contextmanager
def rest(puppet: Puppet) -> Iterator[str]:
    """The base URL of a REST server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(puppet))
    server.daemon_threads = True
    with _threaded(server):
        yield f"http://127.0.0.1:{server.server_port}"
        puppet.ended.set()


@contextmanager
def over_grpc(puppet: Puppet) -> Iterator[str]:
    """``host:port`` of a gRPC server."""
    server = grpc.server(ThreadPoolExecutor(4))
    calls = {
        "ModelInfer": _method(puppet, _infer, messages.ModelInferRequest),
        "ModelReady": _method(puppet, _ready, messages.ModelReadyRequest),
        "ModelMetadata": _method(puppet, _metadata, messages.ModelMetadataRequest),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(messages.SERVICE, calls)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        puppet.ended.set()
        server.stop(0).wait(5)


@contextmanager
def _threaded(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


# --- REST -------------------------------------------------------------------------------------------------------------


def _handler(puppet: Puppet) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(_get, b"")

        def do_POST(self) -> None:
            self._answer(_post, self.rfile.read(int(self.headers["content-length"])))

        def _answer(self, answer: Callable[[Puppet, str, bytes], tuple[int, object]], body: bytes) -> None:
            puppet.headers = {name.lower(): value for name, value in self.headers.items()}
            status, said = answer(puppet, self.path, body)
            content = json.dumps(said).encode()
            if puppet.raw is not None:
                status, content = puppet.status, puppet.raw
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _get(puppet: Puppet, path: str, _: bytes) -> tuple[int, object]:
    if path == f"/v2/models/{MODEL}/ready":
        return (200, {"name": MODEL, "ready": True}) if puppet.is_ready else (503, {"error": "not ready"})
    if path == f"/v2/models/{MODEL}":
        told = {"inputs": _told(SIGNATURE.inputs), "outputs": _told(SIGNATURE.outputs)}
        return 200, {"name": MODEL, "platform": "", **told}
    return 404, {"error": f"there is no {path}"}


def _post(puppet: Puppet, path: str, body: bytes) -> tuple[int, object]:
    if path != f"/v2/models/{MODEL}/infer":
        return 404, {"error": f"there is no {path}"}
    if not puppet.is_ready:
        return 503, {"error": "not ready"}
    try:
        outputs = puppet.infer(read_inputs(json.loads(body)))
    except ValueError as error:
        return 400, {"error": str(error)}
    except RuntimeError as error:
        return 500, {"error": str(error)}
    return 200, {"model_name": MODEL, "outputs": [_nulled(output) for output in outputs]}


def _nulled(output: Tensor) -> Mapping[str, Any]:
    """JSON has no NaN."""
    return {**output.to_payload(), "data": [None if value != value else value for value in output.data]}


def _told(specs: tuple[TensorSpec, ...]) -> list[dict[str, object]]:
    return [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]


# --- gRPC -------------------------------------------------------------------------------------------------------------


def _method(puppet: Puppet, answer: Callable[[Puppet, Any, Any], Any], request: Any) -> Any:
    def call(asked: Any, context: Any) -> Any:
        puppet.headers = dict(context.invocation_metadata())
        return answer(puppet, asked, context)

    return grpc.unary_unary_rpc_method_handler(
        call, request_deserializer=request.FromString, response_serializer=lambda message: message.SerializeToString()
    )


def _ready(puppet: Puppet, asked: Any, context: Any) -> Any:
    if asked.name != MODEL:
        context.abort(grpc.StatusCode.NOT_FOUND, f"there is no {asked.name}")
    return messages.ModelReadyResponse(ready=puppet.is_ready)


def _metadata(puppet: Puppet, asked: Any, context: Any) -> Any:
    if asked.name != MODEL:
        context.abort(grpc.StatusCode.NOT_FOUND, f"there is no {asked.name}")
    answer = messages.ModelMetadataResponse(name=MODEL)
    for specs, rows in ((SIGNATURE.inputs, answer.inputs), (SIGNATURE.outputs, answer.outputs)):
        for spec in specs:
            rows.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    return answer


def _infer(puppet: Puppet, asked: Any, context: Any) -> Any:
    if asked.model_name != MODEL:
        context.abort(grpc.StatusCode.NOT_FOUND, f"there is no {asked.model_name}")
    if not puppet.is_ready:
        context.abort(grpc.StatusCode.UNAVAILABLE, "not ready")
    try:
        # Inputs and outputs look alike on the wire.
        seen = messages.ModelInferResponse.FromString(asked.SerializeToString())
        outputs = puppet.infer(wire.outputs_of(seen))
    except ValueError as error:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    except RuntimeError as error:
        context.abort(grpc.StatusCode.INTERNAL, str(error))
    if puppet.raw is not None:
        outputs = (Tensor(name="y", datatype="BYTES", shape=(1,), data=(puppet.raw.decode(),)),)
    made = wire.infer_request(MODEL, outputs)
    return messages.ModelInferResponse.FromString(made.SerializeToString())
