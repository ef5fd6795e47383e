"""Model servers that the platform knows how to start and to ask: what each needs, and what is wrong with a request for one.

The presets themselves are data in ``engine_presets.py``. Nothing here starts or looks at anything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from fermion.domain.problems import Problem
from fermion.domain.serving.engine_presets import COMMAND, ENGINES, GPUS, PROCESS, Dialect, Engine
from fermion.domain.serving.replicas import Probe, ProbeKind, Probes
from fermion.domain.serving.services import ApiType, ServiceSpec
from fermion.errors import NotFound

_PORT = re.compile(r"\{port:([^{}]*)\}")
_LIKELY = re.compile(r"\{(port|model|host|gpus)[a-z_]*\}")
_PLACES = frozenset({"{model_dir}", "{model_name}", "{model_version}"})


def engine_of(name: str) -> Engine:
    """The preset of that name.

    Raises:
        NotFound: there is none.
    """
    if name not in ENGINES:
        raise NotFound(f"there is no engine {name!r}; there are {', '.join(ENGINES)}", what=name)
    return ENGINES[name]


def argv_of(spec: ServiceSpec) -> tuple[str, ...]:
    """The command line of a replica, with the places that ``ReplicaSpec`` knows: the spec's own, else the engine's."""
    if spec.command:
        return spec.command
    engine = engine_of(spec.engine)
    several = engine.several_gpus if spec.gpus_per_replica > 1 else ()
    return (*engine.argv, *(word.replace(GPUS, str(spec.gpus_per_replica)) for word in several))


def environment_of(spec: ServiceSpec, driver: str) -> dict[str, str]:
    """What a replica finds in its environment beside what every one finds; the spec's own wins."""
    engine = engine_of(spec.engine)
    local = engine.local_environment if driver == PROCESS else {}
    return {**engine.environment, **local, **spec.environment}


def port_of(spec: ServiceSpec) -> str:
    """The name of the port that the router sends requests to."""
    return "grpc" if spec.api_type is ApiType.GRPC else "http"


def ports_of(spec: ServiceSpec) -> tuple[str, ...]:
    """The names of a replica's ports. A command of one's own has the one that is served, and each that it names."""
    if spec.engine != COMMAND:
        return engine_of(spec.engine).ports
    return tuple(dict.fromkeys((port_of(spec), *_named_ports(spec))))


def probes_of(spec: ServiceSpec) -> Probes:
    """The spec's own probes, else the engine's; a start may take as long as the spec lets it be not ready."""
    if spec.probes is not None:
        return spec.probes
    if spec.engine == COMMAND:
        answers = Probe(kind=ProbeKind.TCP, port=port_of(spec))
        return Probes(startup=_patient(answers, spec), readiness=answers)
    probes = engine_of(spec.engine).probes
    return replace(probes, startup=probes.startup and _patient(probes.startup, spec))


def problems_of(spec: ServiceSpec, driver: str) -> list[Problem]:
    """Everything that keeps the engine from serving that spec on a driver of that kind."""
    engine = ENGINES.get(spec.engine)
    if engine is None:
        return [
            Problem(
                field="engine",
                code="unknown_engine",
                message=f"there is no engine {spec.engine!r}.",
                fix=f"Take one of {', '.join(ENGINES)}.",
            )
        ]
    return [
        *_problems_of_place(engine, driver),
        *_problems_of_interface(engine, spec),
        *_problems_of_command(engine, spec),
        *_problems_of_ports(spec),
        *_problems_of_environment(engine, spec),
    ]


def check_problems(spec: ServiceSpec) -> list[Problem]:
    """Why the plan's output checks could never be asked of that engine; empty where there are none."""
    engine = ENGINES.get(spec.engine)
    if not spec.plan.output_checks or engine is None:
        return []
    why = None
    if engine.dialect not in (Dialect.V2, Dialect.OWN):
        why = f"engine {engine.name!r} does not speak the Open Inference Protocol (V2)"
    elif spec.api_type is ApiType.WEBSOCKET:
        why = "a service that speaks websocket is not asked for predictions"
    if why is None:
        return []
    fix = "Leave output_checks out."
    return [Problem(field="plan.output_checks", code="cannot_be_asked", message=f"{why}.", fix=fix)]


def layout_problems(spec: ServiceSpec, files: Collection[str]) -> list[Problem]:
    """What the engine needs among a model version's files (paths relative to it, with ``/``) and does not find there."""
    engine = engine_of(spec.engine)
    told = bool(engine.instead_of_files) and set(engine.instead_of_files) <= spec.environment.keys()
    if spec.command or told:
        return []
    missing = [
        wanted
        for wanted in engine.files
        if not any(re.fullmatch(wanted.pattern.replace("NAME", re.escape(spec.model)), file) for file in files)
    ]
    return [
        Problem(
            field="model",
            code="model_layout",
            message=f"engine {engine.name!r} needs {wanted.words.replace('NAME', spec.model)} in the model, and it is not "
            f"among its {len(files)} files.",
            fix=f"Let the training write it: {engine.layout}",
        )
        for wanted in missing
    ]


# --- rules ------------------------------------------------------------------------------------------------------------


def _problems_of_place(engine: Engine, driver: str) -> Iterator[Problem]:
    if driver not in engine.drivers:
        yield Problem(
            field="engine",
            code="engine_not_here",
            message=f"engine {engine.name!r} does not serve on the {driver} driver: {engine.elsewhere}",
            fix=f"Take a pool of a {' or '.join(sorted(engine.drivers))} cluster, or one of the engines "
            f"{', '.join(name for name, other in ENGINES.items() if driver in other.drivers)}.",
        )


def _problems_of_interface(engine: Engine, spec: ServiceSpec) -> Iterator[Problem]:
    if spec.api_type not in engine.api_types:
        yield Problem(
            field="api_type",
            code="engine_speaks_otherwise",
            message=f"engine {engine.name!r} speaks {_listed(engine.api_types)}, not {spec.api_type}.",
            fix=f"Take one of these, or the engine {COMMAND!r} with a server of your own.",
        )
    if engine.needs_gpu and spec.gpus_per_replica < 1:
        yield Problem(
            field="gpus_per_replica",
            code="engine_needs_gpu",
            message=f"engine {engine.name!r} needs a GPU and {spec.gpus_per_replica} are asked for.",
            fix="Ask for 1 or more.",
        )


def _problems_of_command(engine: Engine, spec: ServiceSpec) -> Iterator[Problem]:
    if not engine.argv and not spec.command:
        yield Problem(
            field="command",
            code="command_missing",
            message=f"engine {engine.name!r} has no command line of its own.",
            fix="Give the command of a server that listens on $PORT, for example 'python server.py'.",
        )
    if engine.own_code and not spec.command and spec.repository is None:
        yield Problem(
            field="repository",
            code="code_missing",
            message=f"engine {engine.name!r} runs {engine.argv[0]} of your own repository, and none is named.",
            fix="Name the repository, or give a command that the image holds.",
        )
    words = (*spec.command, *spec.environment.values())
    for place in dict.fromkeys(found.group() for word in words for found in _LIKELY.finditer(word)):
        if place not in _PLACES:
            yield Problem(
                field="command",
                code="unknown_place",
                message=f"nothing is filled in for {place}.",
                fix=f"There are {', '.join(sorted(_PLACES))} and {{port:http}}.",
            )


def _problems_of_ports(spec: ServiceSpec) -> Iterator[Problem]:
    ports = ports_of(spec)
    for name in dict.fromkeys(_named_ports(spec)):
        if name not in ports:
            yield _no_port("command", name, ports)
    probes = spec.probes or Probes()
    each = {"startup": probes.startup, "readiness": probes.readiness, "liveness": probes.liveness}
    for which, probe in each.items():
        if probe is not None and probe.kind is not ProbeKind.EXEC and probe.port not in ports:
            yield _no_port(f"probes.{which}.port", probe.port, ports)


def _problems_of_environment(engine: Engine, spec: ServiceSpec) -> Iterator[Problem]:
    for name in sorted(spec.environment.keys() & engine.environment.keys()):
        if _PORT.search(engine.environment[name]):
            yield Problem(
                field=f"environment.{name}",
                code="set_by_engine",
                message=f"engine {engine.name!r} sets {name} to the port that was chosen for the replica.",
                fix="Leave it out.",
            )


def _no_port(field: str, name: str, ports: Sequence[str]) -> Problem:
    return Problem(
        field=field,
        code="unknown_port",
        message=f"there is no port {name!r}.",
        fix=f"The replica has {_listed(ports)}.",
    )


def _patient(probe: Probe, spec: ServiceSpec) -> Probe:
    tries = math.ceil(spec.ready_timeout / probe.period)
    return replace(probe, failure_threshold=max(1, tries))


def _named_ports(spec: ServiceSpec) -> list[str]:
    words = (*spec.command, *spec.environment.values())
    return [name for word in words for name in _PORT.findall(word)]


def _listed(words: Collection[str]) -> str:
    return " and ".join(str(word) for word in words)


def metric_names(engine: Engine) -> Mapping[str, str]:
    """What the engine counts itself: our word for it to its own name, only what it has."""
    names = {
        "requests": engine.metrics.requests,
        "failures": engine.metrics.failures,
        "latency": engine.metrics.latency,
        "queue": engine.metrics.queue,
        "gpu_cache": engine.metrics.gpu_cache,
    }
    return {word: name for word, name in names.items() if name is not None}
