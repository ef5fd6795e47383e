"""Engines: every word of a preset is one that the engine publishes; what a request gets; every problem at once."""

from __future__ import annotations

import json
import re
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from fermion.domain.rollout.plan import Plan
from fermion.domain.serving.engine_presets import COMMAND, ENGINES, Engine
from fermion.domain.serving.engines import (
    argv_of,
    engine_of,
    environment_of,
    layout_problems,
    metric_names,
    port_of,
    ports_of,
    probes_of,
    problems_of,
)
from fermion.domain.serving.replicas import Probe, ProbeKind, Probes
from fermion.domain.serving.services import ApiType, ServiceSpec
from fermion.errors import NotFound

FIXTURES = Path(__file__).resolve().parents[3] / "fixtures" / "engines"
PUBLISHED = [engine for name, engine in ENGINES.items() if name != COMMAND]
IDS = [engine.name for engine in PUBLISHED]
DRIVERS = ("process", "docker", "kubernetes")


def published(engine: Engine) -> dict[str, Any]:
    """What the engine publishes, as read on a day."""
    found: dict[str, Any] = json.loads((FIXTURES / f"{engine.name}.json").read_text())
    return found


def make_spec(**changes: Any) -> ServiceSpec:
    """A service that any driver takes."""
    usual: dict[str, Any] = {
        "name": "digits",
        "model": "digits",
        "engine": "kserve",
        "image": "digits-server:1",
        "pool": "local/declared",
        "plan": Plan(steps=(), metrics=()),
        "repository": "file:///code.git",
    }
    return ServiceSpec(**{**usual, **changes})


def codes(spec: ServiceSpec, driver: str = "process") -> list[tuple[str, str]]:
    return [(problem.field, problem.code) for problem in problems_of(spec, driver)]


# --- against what is published ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", PUBLISHED, ids=IDS)
def test_what_was_read_has_a_source_a_version_and_a_day(engine: Engine) -> None:
    found = published(engine)
    assert found["engine"] == engine.name
    assert found["source"]
    assert found["version"]
    assert date.fromisoformat(found["read"])


@pytest.mark.parametrize("engine", PUBLISHED, ids=IDS)
def test_a_preset_uses_only_options_that_the_engine_publishes(engine: Engine) -> None:
    found = published(engine)
    program, *words = (*engine.argv, *engine.several_gpus)
    assert program == found["program"]
    options = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert options <= set(found["options"])
    assert set(engine.environment) | set(engine.local_environment) <= set(found["environment"])
    assert set(engine.instead_of_files) <= set(found["environment"])


@pytest.mark.parametrize("engine", PUBLISHED, ids=IDS)
def test_a_preset_asks_only_paths_and_metrics_that_the_engine_publishes(engine: Engine) -> None:
    found = published(engine)
    probes = (engine.probes.startup, engine.probes.readiness, engine.probes.liveness)
    assert {probe.path for probe in probes if probe is not None} <= set(found["paths"])
    assert engine.metrics.path in found["paths"]
    assert set(metric_names(engine).values()) <= set(found["metrics"])


def test_an_option_that_is_not_published_would_be_found() -> None:
    options = published(ENGINES["triton"])["options"]
    assert "--http-port" in options
    assert "--http_port" not in options


@pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))
def test_a_preset_names_only_places_that_are_filled_in(engine: Engine) -> None:
    told = {"{model_dir}", "{model_name}", "{model_version}", *(f"{{port:{port}}}" for port in engine.ports)}
    probes = [probe for probe in (engine.probes.startup, engine.probes.readiness, engine.probes.liveness) if probe]
    words = (*engine.argv, *engine.environment.values(), *(probe.path for probe in probes))
    assert {place for word in words for place in re.findall(r"\{[^{}]*\}", word)} <= told
    assert {probe.port for probe in probes} <= set(engine.ports)
    assert engine.metrics.path is None or engine.metrics.port in engine.ports
    assert bool(engine.elsewhere) == (engine.drivers != set(DRIVERS))


def test_the_manual_has_a_row_for_every_engine_with_what_it_speaks() -> None:
    manual = (Path(__file__).resolve().parents[4] / "docs" / "engines.md").read_text()
    for engine in ENGINES.values():
        (row,) = re.findall(rf"^\| `{engine.name}` \| [^|]* \| (rest[^|]*) \| ([^|]*) \|", manual, re.MULTILINE)
        assert row == (", ".join(engine.api_types), ", ".join(name for name in DRIVERS if name in engine.drivers))


# --- what a request gets ----------------------------------------------------------------------------------------------


def test_a_command_of_ones_own_takes_the_place_of_the_engines() -> None:
    assert argv_of(make_spec())[:3] == ("serve.py", "--http_port", "{port:http}")
    assert argv_of(make_spec(command=("python", "other.py"))) == ("python", "other.py")


@pytest.mark.parametrize(
    ("gpus", "last"), [pytest.param(1, "{port:http}", id="one"), pytest.param(2, "2", id="several")]
)
def test_vllm_spreads_a_model_over_the_gpus_of_a_replica(gpus: int, last: str) -> None:
    argv = argv_of(make_spec(engine="vllm", gpus_per_replica=gpus))
    assert argv[-1] == last
    assert ("--tensor-parallel-size" in argv) == (gpus > 1)


def test_the_environment_of_a_request_wins_and_only_a_shared_machine_is_told_to_listen_locally() -> None:
    spec = make_spec(engine="mlserver", environment={"MLSERVER_DEBUG": "true"})
    here, there = environment_of(spec, "process"), environment_of(spec, "docker")
    assert here["MLSERVER_HOST"] == "127.0.0.1"
    assert "MLSERVER_HOST" not in there
    assert (here["MLSERVER_DEBUG"], here["MLSERVER_HTTP_PORT"]) == ("true", "{port:http}")


@pytest.mark.parametrize(
    ("api_type", "command", "ports"),
    [
        pytest.param(ApiType.REST, ("python", "s.py"), ("http",), id="rest"),
        pytest.param(ApiType.GRPC, ("python", "s.py"), ("grpc",), id="grpc is the only port, so $PORT too"),
        pytest.param(ApiType.WEBSOCKET, ("s", "{port:http}", "{port:admin}"), ("http", "admin"), id="one more"),
    ],
)
def test_a_command_has_the_port_that_is_served_and_those_it_names(
    api_type: ApiType, command: tuple[str, ...], ports: tuple[str, ...]
) -> None:
    spec = make_spec(engine="command", command=command, api_type=api_type)
    assert ports_of(spec) == ports
    assert port_of(spec) == ports[0]
    probes = probes_of(spec)
    assert probes.readiness is not None
    assert (probes.readiness.kind, probes.readiness.port) == (ProbeKind.TCP, ports[0])
    assert probes.liveness is None


def test_a_start_may_take_as_long_as_the_request_lets_it() -> None:
    startup = probes_of(make_spec(ready_timeout=timedelta(seconds=90))).startup
    assert startup is not None
    assert startup.failure_threshold * startup.period == timedelta(seconds=90)
    own = Probes(readiness=Probe(kind=ProbeKind.TCP))
    assert probes_of(make_spec(probes=own)) == own


def test_an_engine_that_is_not_there_is_not_found() -> None:
    with pytest.raises(NotFound, match="there is no engine 'torchserve'; there are kserve, mlserver"):
        engine_of("torchserve")


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))
def test_an_engine_serves_where_it_says_and_elsewhere_tells_why_not(engine: Engine, driver: str) -> None:
    found = problems_of(make_spec(engine=engine.name, command=("python", "s.py")), driver)
    if driver in engine.drivers:
        assert found == []
    else:
        (problem,) = found
        assert (problem.field, problem.code) == ("engine", "engine_not_here")
        assert engine.elsewhere in problem.message
        assert "kserve, mlserver, command" in problem.fix


def test_the_process_driver_really_serves_three_engines() -> None:
    assert [name for name, engine in ENGINES.items() if "process" in engine.drivers] == [
        "kserve",
        "mlserver",
        "command",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, [], id="nothing"),
        pytest.param({"engine": "torchserve"}, [("engine", "unknown_engine")], id="no such engine"),
        pytest.param({"api_type": ApiType.WEBSOCKET}, [("api_type", "engine_speaks_otherwise")], id="no websockets"),
        pytest.param({"engine": "command"}, [("command", "command_missing")], id="no command"),
        pytest.param({"repository": None}, [("repository", "code_missing")], id="no code"),
        pytest.param({"repository": None, "command": ("a",)}, [], id="the image holds the code"),
        pytest.param({"command": ("a", "{port:admin}")}, [("command", "unknown_port")], id="no such port"),
        pytest.param({"command": ("a", "{model_path}")}, [("command", "unknown_place")], id="no such place"),
        pytest.param({"command": ("a", '{"a": {"b": 1}}')}, [], id="JSON is no place"),
        pytest.param(
            {"probes": Probes(liveness=Probe(kind=ProbeKind.HTTP, port="admin"))},
            [("probes.liveness.port", "unknown_port")],
            id="a probe of no port",
        ),
        pytest.param({"probes": Probes(liveness=Probe(kind=ProbeKind.EXEC, port="x"))}, [], id="a command has no port"),
        pytest.param(
            {"engine": "mlserver", "environment": {"MLSERVER_HTTP_PORT": "80"}},
            [("environment.MLSERVER_HTTP_PORT", "set_by_engine")],
            id="a port that the engine sets",
        ),
        pytest.param({"engine": "mlserver", "environment": {"MLSERVER_DEBUG": "true"}}, [], id="another setting"),
    ],
)
def test_what_is_wrong_with_a_request(changes: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert codes(make_spec(**changes)) == expected


def test_all_problems_are_told_at_once() -> None:
    spec = make_spec(engine="vllm", api_type=ApiType.GRPC, gpus_per_replica=0, command=("vllm", "{port:x}", "{model}"))
    assert codes(spec) == [
        ("engine", "engine_not_here"),
        ("api_type", "engine_speaks_otherwise"),
        ("gpus_per_replica", "engine_needs_gpu"),
        ("command", "unknown_place"),
        ("command", "unknown_port"),
    ]


@pytest.mark.parametrize(
    ("engine", "files", "missing"),
    [
        pytest.param("triton", ["digits/config.pbtxt", "digits/1/model.onnx"], 0, id="triton"),
        pytest.param("triton", ["other/config.pbtxt", "config.pbtxt", "1/model.onnx"], 2, id="triton, another name"),
        pytest.param("vllm", ["config.json", "model-00001.safetensors"], 0, id="vllm"),
        pytest.param("vllm", ["config.json", "tokenizer.json"], 1, id="vllm without weights"),
        pytest.param("tensorflow-serving", ["1/saved_model.pb", "1/variables/a"], 0, id="tensorflow"),
        pytest.param("tensorflow-serving", ["saved_model.pb"], 1, id="tensorflow without a version"),
        pytest.param("mlserver", ["model-settings.json", "model.joblib"], 0, id="mlserver"),
        pytest.param("mlserver", ["model.joblib"], 1, id="mlserver without settings"),
        pytest.param("kserve", [], 0, id="kserve takes anything"),
        pytest.param("command", [], 0, id="so does a command"),
    ],
)
def test_what_an_engine_misses_in_a_model(engine: str, files: list[str], missing: int) -> None:
    found = layout_problems(make_spec(engine=engine), files)
    assert [problem.code for problem in found] == ["model_layout"] * missing
    assert layout_problems(make_spec(engine=engine, command=("own",)), files) == []


def test_mlserver_may_be_told_of_a_model_by_its_environment() -> None:
    told = {
        "MLSERVER_MODEL_IMPLEMENTATION": "mlserver_sklearn.SKLearnModel",
        "MLSERVER_MODEL_URI": "{model_dir}/m.joblib",
    }
    assert layout_problems(make_spec(engine="mlserver", environment=told), ["m.joblib"]) == []
