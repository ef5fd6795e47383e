"""The Open Inference Protocol (V2) as JSON over HTTP."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, cast
from urllib.parse import quote

import httpx

from fermion.adapters.inference import verdicts
from fermion.domain.serving.tensors import DATATYPES, FLOATS, Signature, Target, Tensor, Value, flat, signature_of

_BUSY = frozenset({429, 502, 503, 504})


class RestAsking:
    """One HTTP client for all servers, made at the first question."""

    def __init__(self, *, timeout_s: float, max_bytes: int) -> None:
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._client: httpx.Client | None = None

    def predict(self, target: Target, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The model's outputs."""
        body = json.dumps({"inputs": [tensor.to_payload() for tensor in inputs]}, allow_nan=True).encode()
        if len(body) > self._max_bytes:
            raise verdicts.too_large(target, self._max_bytes)
        answer = self._answer(target, "POST", "/infer", body)
        outputs = answer.get("outputs")
        if not isinstance(outputs, list):
            raise verdicts.unusable(target, "it has no list of outputs")
        return tuple(_tensor(target, each) for each in outputs)

    def says_ready(self, target: Target) -> bool:
        """Whether the model says that it takes requests."""
        status, content = self._ask(target, "GET", "/ready", None)
        return status == 200 and b'"ready":false' not in content.replace(b" ", b"")

    def signature(self, target: Target) -> Signature:
        """What the server says that the model takes and gives."""
        return signature_of(self._answer(target, "GET", "", None))

    def close(self) -> None:
        """Close idle connections."""
        if self._client is not None:
            self._client.close()
            self._client = None

    # -- inside

    def _answer(self, target: Target, method: str, path: str, body: bytes | None) -> Mapping[str, Any]:
        status, content = self._ask(target, method, path, body)
        if status != 200:
            _refuse(target, status, content)
        try:
            answer = json.loads(content)
        except ValueError as error:
            raise verdicts.unusable(target, f"no JSON ({error})") from error
        if not isinstance(answer, Mapping):
            raise verdicts.unusable(target, "no JSON object")
        return answer

    def _ask(self, target: Target, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Status and content; as a whole within the timeout, however slowly it drips."""
        url = f"{target.address.rstrip('/')}/v2/models/{quote(target.model, safe='')}{path}"
        headers = {"content-type": "application/json"} if body is not None else {}
        if target.service is not None:
            headers["fermion-service"] = target.service
        deadline = time.monotonic() + self._timeout_s
        try:
            with self._connected().stream(method, url, content=body, headers=headers) as response:
                content = b""
                for piece in response.iter_bytes():
                    content += piece
                    if len(content) > self._max_bytes:
                        raise verdicts.unusable(target, f"it is larger than {self._max_bytes} bytes")
                    if time.monotonic() > deadline:
                        raise verdicts.late(target, self._timeout_s)
                return response.status_code, content
        except httpx.TimeoutException as error:
            raise verdicts.late(target, self._timeout_s) from error
        except httpx.DecodingError as error:
            raise verdicts.unusable(target, str(error)) from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise verdicts.unreachable(target, str(error) or type(error).__name__) from error

    def _connected(self) -> httpx.Client:
        if self._client is None:
            # Proxies of the environment are for the outside world; servers and router are ours.
            self._client = httpx.Client(timeout=self._timeout_s, trust_env=False)
        return self._client


def _refuse(target: Target, status: int, content: bytes) -> NoReturn:
    words = _words(content)
    if status == 404:
        raise verdicts.unknown(target, words)
    if status in _BUSY:
        raise verdicts.busy(target, status, words)
    if 400 <= status < 500:
        raise verdicts.refused(target, status, words)
    if status >= 500:
        raise verdicts.failed(target, status, words)
    raise verdicts.unusable(target, f"status {status}")


def _words(content: bytes) -> str:
    """The server's own words: what it calls its error, else all that it said."""
    text = content[:10_000].decode(errors="replace")
    try:
        said = json.loads(text)
    except ValueError:
        return text
    told = (said.get("error") or said.get("detail") or said) if isinstance(said, Mapping) else said
    return told if isinstance(told, str) else json.dumps(told)


def _tensor(target: Target, raw: object) -> Tensor:
    if not isinstance(raw, Mapping):
        raise verdicts.unusable(target, "an output is no object")
    name, datatype, shape = raw.get("name"), raw.get("datatype"), raw.get("shape")
    if not isinstance(name, str) or datatype not in DATATYPES or not isinstance(raw.get("data"), list):
        raise verdicts.unusable(target, "an output lacks its name, its datatype or its data")
    if not isinstance(shape, list) or not all(isinstance(size, int) for size in shape):
        raise verdicts.unusable(target, f"output {name!r} has no shape")
    _, values = flat(raw["data"])
    # JSON has no NaN: some servers write null for it.
    told = [
        math.nan if value is None else float(cast(float, value)) if _is_float(datatype, value) else value
        for value in values
    ]
    if not all(isinstance(value, int | float | str) for value in told):
        raise verdicts.unusable(target, f"output {name!r} holds what is no value")
    return Tensor(name=name, datatype=str(datatype), shape=tuple(shape), data=cast(tuple[Value, ...], tuple(told)))


def _is_float(datatype: object, value: object) -> bool:
    return datatype in FLOATS and isinstance(value, int | float)
