"""The model servers themselves, as data: command line, ports, probes, metrics, model layout, and where they really serve.

Every option, environment variable, path and metric named here is checked against what the engine publishes
(``tests/fixtures/engines``, each with source, version and date).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Final

from fermion.domain.serving.replicas import Probe, ProbeKind, Probes
from fermion.domain.serving.services import ApiType

PROCESS: Final = "process"
"""The kind of the driver that runs replicas as processes of its own machine."""

COMMAND: Final = "command"
"""The engine that is any server."""

GPUS: Final = "{gpus}"
"""Stands for the GPUs of one replica in ``several_gpus``."""

_EVERYWHERE = frozenset({PROCESS, "docker", "kubernetes"})
_IMAGES_ONLY = frozenset({"docker", "kubernetes"})


class Dialect(StrEnum):
    """What requests for a prediction look like."""

    V2 = "v2"  # the Open Inference Protocol
    OPENAI = "openai"  # OpenAI's completions
    TENSORFLOW = "tensorflow"  # TensorFlow Serving's predict
    OWN = "own"  # whatever the server takes


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMetrics:
    """Where an engine shows its own metrics (Prometheus text), and their names there; None: it has none of that.

    ``port`` names the replica's port. ``off`` says what turns them on where they are off.
    """

    path: str | None = None
    port: str = "http"
    requests: str | None = None
    failures: str | None = None
    latency: str | None = None
    queue: str | None = None
    gpu_cache: str | None = None
    off: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedFile:
    """A file that the model must hold: a regular expression of its path (NAME: the model's name), and its words."""

    pattern: str
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One model server.

    ``argv`` and ``environment`` hold the places that ``ReplicaSpec`` fills. ``several_gpus`` is added for more than one.
    ``local_environment`` is for the process driver, where others reach the machine's ports too. ``own_code``: its program
    comes from the service's repository. ``files`` must be in the model, unless ``instead_of_files`` are in the environment.
    ``elsewhere`` is why it does not serve on a driver outside ``drivers``.
    """

    name: str
    about: str
    dialect: Dialect
    api_types: tuple[ApiType, ...]
    ports: tuple[str, ...]
    layout: str
    argv: tuple[str, ...] = ()
    several_gpus: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    local_environment: Mapping[str, str] = field(default_factory=dict)
    probes: Probes = field(default_factory=Probes)
    metrics: EngineMetrics = EngineMetrics()
    files: tuple[WantedFile, ...] = ()
    instead_of_files: tuple[str, ...] = ()
    own_code: bool = False
    needs_gpu: bool = False
    drivers: frozenset[str] = _EVERYWHERE
    elsewhere: str = ""


def _probes(ready: str, alive: str) -> Probes:
    """Ready is looked at every second, alive every five: a busy server is no dead one."""
    is_ready = Probe(kind=ProbeKind.HTTP, path=ready, timeout=timedelta(seconds=2))
    return Probes(
        startup=is_ready,
        readiness=is_ready,
        liveness=Probe(
            kind=ProbeKind.HTTP,
            path=alive,
            period=timedelta(seconds=5),
            timeout=timedelta(seconds=5),
            failure_threshold=6,
        ),
    )


_V2_PROBES = _probes("/v2/models/{model_name}/ready", "/v2/health/live")

TRITON: Final = Engine(
    name="triton",
    about="NVIDIA Triton: models of many frameworks on GPUs, with batching",
    dialect=Dialect.V2,
    api_types=(ApiType.REST, ApiType.GRPC),
    ports=("http", "grpc", "metrics"),
    argv=(
        "tritonserver",
        "--model-repository={model_dir}",
        "--http-port={port:http}",
        "--grpc-port={port:grpc}",
        "--metrics-port={port:metrics}",
        "--strict-readiness=true",
        "--exit-timeout-secs=30",
    ),
    probes=_V2_PROBES,
    metrics=EngineMetrics(
        path="/metrics",
        port="metrics",
        requests="nv_inference_request_success",
        failures="nv_inference_request_failure",
        latency="nv_inference_request_duration_us",
        queue="nv_inference_pending_request_count",
    ),
    layout="a folder of the model's name with config.pbtxt and one numbered folder a version, each with the model's files.",
    files=(
        WantedFile(pattern=r"NAME/config\.pbtxt", words="NAME/config.pbtxt"),
        WantedFile(pattern=r"NAME/[1-9][0-9]*/.+", words="NAME/1/ with the model's files"),
    ),
    drivers=_IMAGES_ONLY,
    elsewhere="PyPI has no package with the server in it; it comes as NVIDIA's container image.",
)

VLLM: Final = Engine(
    name="vllm",
    about="vLLM: large language models behind OpenAI's interface",
    dialect=Dialect.OPENAI,
    api_types=(ApiType.REST,),
    ports=("http",),
    argv=("vllm", "serve", "{model_dir}", "--served-model-name", "{model_name}", "--port", "{port:http}"),
    several_gpus=("--tensor-parallel-size", GPUS),
    probes=_probes("/health", "/health"),
    metrics=EngineMetrics(
        path="/metrics",
        requests="vllm:request_success",
        latency="vllm:e2e_request_latency_seconds",
        queue="vllm:num_requests_waiting",
        gpu_cache="vllm:kv_cache_usage_perc",
    ),
    layout="a Hugging Face model folder: config.json, tokenizer files and weights as *.safetensors.",
    files=(
        WantedFile(pattern=r"config\.json", words="config.json"),
        WantedFile(pattern=r".+\.(safetensors|bin|pt)", words="weights (*.safetensors)"),
    ),
    needs_gpu=True,
    drivers=_IMAGES_ONLY,
    elsewhere="its packages need the CUDA of the machine, and its build for CPUs dies on processors without AVX-512; it comes as "
    "a container image.",
)

TENSORFLOW_SERVING: Final = Engine(
    name="tensorflow-serving",
    about="TensorFlow Serving: SavedModels of TensorFlow",
    dialect=Dialect.TENSORFLOW,
    api_types=(ApiType.REST, ApiType.GRPC),
    ports=("http", "grpc"),
    argv=(
        "tensorflow_model_server",
        "--rest_api_port={port:http}",
        "--port={port:grpc}",
        "--model_name={model_name}",
        "--model_base_path={model_dir}",
        "--enable_grpc_healthcheck_service=true",
    ),
    probes=_probes("/v1/models/{model_name}", "/v1/models/{model_name}"),
    metrics=EngineMetrics(
        path="/monitoring/prometheus/metrics",
        requests=":tensorflow:serving:request_count",
        latency=":tensorflow:serving:request_latency",
        queue=":tensorflow:serving:batching_session:queuing_latency",
        off="A command of one's own with --monitoring_config_file turns them on.",
    ),
    layout="one numbered folder a version, each a SavedModel: 1/saved_model.pb and 1/variables/.",
    files=(WantedFile(pattern=r"[1-9][0-9]*/saved_model\.pb", words="1/saved_model.pb"),),
    drivers=_IMAGES_ONLY,
    elsewhere="PyPI has no package with the server in it; it comes as a Debian package of its own archive or a container image.",
)

MLSERVER: Final = Engine(
    name="mlserver",
    about="Seldon's MLServer: models of scikit-learn, XGBoost and others without code",
    dialect=Dialect.V2,
    api_types=(ApiType.REST, ApiType.GRPC),
    ports=("http", "grpc", "metrics"),
    argv=("mlserver", "start", "{model_dir}"),
    environment={
        "MLSERVER_HTTP_PORT": "{port:http}",
        "MLSERVER_GRPC_PORT": "{port:grpc}",
        "MLSERVER_METRICS_PORT": "{port:metrics}",
        "MLSERVER_MODEL_NAME": "{model_name}",
        "MLSERVER_PARALLEL_WORKERS": "0",
        "MLSERVER_DEBUG": "false",
    },
    local_environment={"MLSERVER_HOST": "127.0.0.1"},
    probes=_V2_PROBES,
    metrics=EngineMetrics(
        path="/metrics",
        port="metrics",
        requests="model_infer_request_success",
        failures="model_infer_request_failure",
        latency="model_infer_request_duration",
        queue="parallel_request_queue",
    ),
    layout="model-settings.json beside the model's files, naming the model and its implementation.",
    files=(WantedFile(pattern=r"(.+/)?model-settings\.json", words="model-settings.json"),),
    instead_of_files=("MLSERVER_MODEL_IMPLEMENTATION", "MLSERVER_MODEL_URI"),
)

KSERVE: Final = Engine(
    name="kserve",
    about="KServe's Python server with a model class of your own: serve.py in your repository",
    dialect=Dialect.V2,
    api_types=(ApiType.REST, ApiType.GRPC),
    ports=("http", "grpc"),
    argv=("serve.py", "--http_port", "{port:http}", "--grpc_port", "{port:grpc}", "--model_name", "{model_name}"),
    probes=_V2_PROBES,
    metrics=EngineMetrics(path="/metrics", latency="request_predict_seconds"),
    layout="whatever serve.py loads from $FERMION_MODEL_DIR.",
    own_code=True,
)

ANY_COMMAND: Final = Engine(
    name=COMMAND,
    about="any server that listens on $PORT ($GRPC_PORT for gRPC), websockets included",
    dialect=Dialect.OWN,
    api_types=(ApiType.REST, ApiType.GRPC, ApiType.WEBSOCKET),
    ports=("http",),
    layout="whatever the command loads from $FERMION_MODEL_DIR.",
)

ENGINES: Final[Mapping[str, Engine]] = {
    engine.name: engine for engine in (KSERVE, MLSERVER, TRITON, VLLM, TENSORFLOW_SERVING, ANY_COMMAND)
}
"""All of them by name, those that serve everywhere first."""
