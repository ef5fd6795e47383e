"""Serves the model that train.py made, over the Open Inference Protocol (V2) by REST and gRPC.

It needs nothing of the platform, only what it is told:

    FERMION_MODEL_DIR                         holds model.joblib and signature.json, and faults.json if it is to misbehave
    FERMION_MODEL_NAME                        how clients call the model
    --http_port PORT, --grpc_port PORT        where to listen; every other option of kserve works too

TERM: it answers what is on its way, then exits with 0. It prints one line when it starts, and one for each error.
"""

# ruff: noqa: E402, T201  (what is set before the imports counts for them; what a server prints is its log)
from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import random
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

gc.disable()  # until it serves: nothing that is imported is ever garbage
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # matrices this small are faster without threads

import faults
import joblib
import numpy
from lean_kserve import InferenceError, InferOutput, InferRequest, InferResponse, InvalidInput, Model, ModelServer

MOST_ROWS = 1024
KEEP_ALIVE_S = 2 * 60 * 60
"""Longer than routers keep an idle connection, so that none sends a request into one that is being closed."""
TYPES = {"float64": "FP64", "int64": "INT64"}


class Digits(Model):
    """Reads digits: pixels of 0 to 1 in, the digit and how sure it is out."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self.signature: dict[str, Any] = json.loads((folder / "signature.json").read_text())
        self.network = joblib.load(folder / "model.joblib")
        self.faults = faults.read(folder)
        self.leaked: list[bytes] = []
        self.read(numpy.zeros((1, 64)))  # the first time is the slowest
        self.ready = True

    def get_input_types(self) -> list[dict[str, Any]]:
        return [_metadata(each) for each in self.signature["inputs"]]

    def get_output_types(self) -> list[dict[str, Any]]:
        return [_metadata(each) for each in self.signature["outputs"]]

    def read(self, pixels: numpy.ndarray) -> dict[str, numpy.ndarray]:
        """The outputs by name, one row for each image."""
        shares = self.network.predict_proba(pixels)
        return {"digit": self.network.classes_[shares.argmax(axis=1)], "confidence": shares.max(axis=1)}

    async def predict(self, payload: InferRequest, headers: Mapping[str, str] | None = None) -> InferResponse:
        began = time.perf_counter()
        outputs = self.read(_pixels(payload))
        if self.faults.are_any:
            outputs = await self.misbehave(outputs, payload, time.perf_counter() - began)
        return InferResponse(
            response_id=payload.id or "",
            model_name=self.name,
            infer_outputs=[_output(name, values) for name, values in outputs.items()],
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )

    async def misbehave(
        self, outputs: dict[str, numpy.ndarray], payload: InferRequest, took_s: float
    ) -> dict[str, numpy.ndarray]:
        """The outputs as faults.json wants them."""
        self.leaked.append(b"\1" * int(self.faults.leak_mib * 1024 * 1024))
        await asyncio.sleep(self.faults.latency_ms / 1000 + took_s * (self.faults.latency_factor - 1))
        if random.random() < self.faults.error_share:
            # kserve makes INTERNAL of one and 500 of the other.
            raise (RuntimeError if payload.from_grpc else InferenceError)("faults.json asked for an error")
        if random.random() < self.faults.nan_share:
            outputs = {**outputs, "confidence": outputs["confidence"] * numpy.nan}
        if random.random() < self.faults.shape_share:
            outputs = {name: numpy.stack([values, values], axis=1) for name, values in outputs.items()}
        return outputs


def _pixels(payload: InferRequest) -> numpy.ndarray:
    """The images of a request, a row of 64 pixels each.

    Raises:
        InvalidInput: they are anything else. Clients get 400 (INVALID_ARGUMENT).
    """
    if not isinstance(payload, InferRequest):
        raise InvalidInput("only the Open Inference Protocol (V2) is spoken here")
    if [each.name for each in payload.inputs] != ["pixels"]:
        raise InvalidInput(f"there must be one input, 'pixels', not {[each.name for each in payload.inputs]}")
    shape = payload.inputs[0].shape
    if len(shape) != 2 or shape[1] != 64 or not 1 <= shape[0] <= MOST_ROWS:
        raise InvalidInput(f"input 'pixels' must have the shape [1 to {MOST_ROWS}, 64], not {shape}")
    if payload.inputs[0].datatype == "BYTES":
        raise InvalidInput("input 'pixels' must hold numbers, not BYTES")
    try:
        pixels = payload.inputs[0].as_numpy().astype(float)
    except (ValueError, TypeError) as problem:
        raise InvalidInput(f"input 'pixels' does not hold {shape[0]} x 64 numbers: {problem}") from problem
    if not numpy.isfinite(pixels).all():
        raise InvalidInput("input 'pixels' holds what is no finite number")
    return pixels


def _output(name: str, values: numpy.ndarray) -> InferOutput:
    return InferOutput(name, list(values.shape), TYPES[values.dtype.name], data=values)


def _metadata(tensor: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": tensor["name"], "datatype": TYPES[tensor["dtype"]], "shape": tensor["shape"]}


class OneLine(logging.Formatter):
    """Errors on one line, without their stack."""

    def format(self, record: logging.LogRecord) -> str:
        problem = record.exc_info[1] if record.exc_info else None
        words = f"{record.getMessage()} {problem or ''}".split()
        return f"{self.formatTime(record)} {record.levelname} {' '.join(words)}"[:1000]


def main() -> int:
    warnings.filterwarnings("ignore", message="ORJSONResponse")  # kserve's business with its web framework
    log = logging.StreamHandler()
    log.setFormatter(OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[log])  # kserve and its servers keep to what is set up already
    name, folder = os.environ["FERMION_MODEL_NAME"], Path(os.environ["FERMION_MODEL_DIR"])
    model = Digits(name, folder)
    if model.faults.are_any:
        print(f"serve.py: THIS MODEL IS MADE TO MISBEHAVE: {json.dumps(model.faults.to_json())}", flush=True)
    if model.faults.start == "crash":
        return 3
    while model.faults.start == "hang":
        time.sleep(1)
    print(f"serve.py: serving {name} from {folder}", flush=True)
    gc.freeze()
    gc.enable()
    ModelServer(enable_latency_logging=False, timeout_keep_alive=KEEP_ALIVE_S).start([model])
    return 0


if __name__ == "__main__":
    sys.exit(main())
