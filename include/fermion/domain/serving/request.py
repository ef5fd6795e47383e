"""A request for a deployment: from what a person or program wrote to a ``ServiceSpec``, or to all of its problems at once.

Pure: nothing is looked up. Whether model, image, pool and route can be had is asked by ``usecases/serving/submit.py``, also
for the fields that could be read of a request that is wrong in others. What a deployment shares with a training (pool,
image, repository, owner …) is read by ``domain/request.py``.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import timedelta
from enum import Enum
from typing import Any, Final

from fermion.domain import model_names, request
from fermion.domain.fields import Fields, shown
from fermion.domain.problems import Problem
from fermion.domain.rollout.plan import FULL, Plan, Step, Way
from fermion.domain.rollout.plan_reading import read_plan
from fermion.domain.serving.autoscaling import Autoscaling, TargetMetric
from fermion.domain.serving.replicas import Probe, ProbeKind, Probes
from fermion.domain.serving.routing import Balancing
from fermion.domain.serving.services import ApiType, Capacity, ServiceSpec, WhenBusy
from fermion.errors import RequestRefused

MAX_REPLICAS: Final = 100
MAX_GPUS: Final = 64
MAX_NAME: Final = 40
USUAL_PLAN: Final[Mapping[str, object]] = {"steps": [10, 50, 100]}

_SHARED: Final[tuple[str, ...]] = ("pool", "image", "repository", "ref", "memory_mib", "priority", "owner", "team")
"""Fields that mean what they mean in a training request."""

_OWN: Final[tuple[str, ...]] = tuple(field.name for field in fields(ServiceSpec) if field.name not in _SHARED)
_OTHER_NAMES: Final[Mapping[str, str]] = {
    "model_path": "model",
    "model_version": "version",
    "gpu_count": "gpus_per_replica",
    "gpus": "gpus_per_replica",
    "rollout": "plan",
    "canary": "plan",
    "route": "prefix",
    "path": "prefix",
}
_SHARED_NAMES: Final[Mapping[str, str]] = {
    "pool_id": "pool",
    "image_id": "image",
    "git_repo": "repository",
    "git_branch": "ref",
    "branch": "ref",
}
_LABEL = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_PREFIX = re.compile(r"(/[a-z0-9][a-z0-9._-]*){1,4}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_SECRET = re.compile(r"(password|passwd|secret|token|credential|api_?key|private_?key)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceReading:
    """What was read: the fields of a ``ServiceSpec`` that are well-formed, and what is wrong with the others."""

    values: Mapping[str, Any]
    problems: tuple[Problem, ...] = ()

    def owned_by(self, owner: str) -> ServiceReading:
        """The same, asked for by that owner whatever it says itself."""
        return replace(self, values={**self.values, "owner": owner})

    def spec(self) -> ServiceSpec:
        """The spec that it means.

        Raises:
            RequestRefused: it has problems; all of them are listed.
        """
        if self.problems:
            raise RequestRefused(self.problems, what="deployment request")
        return ServiceSpec(**self.values)


def read_service(raw: object) -> ServiceReading:
    """All that a request says, field by field. An empty string or null is the same as leaving the key out."""
    problems: list[Problem] = []
    names: dict[str, str] = {**{name: name for name in (*_OWN, *_SHARED)}, **_OTHER_NAMES, **_SHARED_NAMES}
    given = Fields("", raw, names, problems, whole="request")
    if not isinstance(raw, Mapping):
        return ServiceReading(values={}, problems=tuple(problems))
    values = {**_read_shared(given, problems), **_read_model(given), **_read_server(given), **_read_route(given)}
    values |= _read_size(given)
    values["plan"] = plan = _read_plan(given, problems)
    if plan is not None:
        problems.extend(_way_problems(plan, values["api_type"]))
    blamed = {problem.field.split(".")[0] for problem in problems}
    return ServiceReading(
        values={name: value for name, value in values.items() if name not in blamed}, problems=tuple(problems)
    )


def parse_service(raw: object) -> ServiceSpec:
    """The spec that a request means.

    Raises:
        RequestRefused: it has problems; all of them are listed.
    """
    return read_service(raw).spec()


def request_of(spec: ServiceSpec) -> dict[str, Any]:
    """The request, JSON-ready, that means exactly this spec: ``parse_service`` of it gives the spec again."""
    found: dict[str, Any] = _written(spec)
    return found


def _written(value: Any) -> Any:
    if isinstance(value, Step) and value.weight_percent == FULL:
        return value.weight_percent  # the promotion, of which nothing else can be asked
    if is_dataclass(value):
        parts = {field.name: _written(getattr(value, field.name)) for field in fields(value)}
        return {name: part for name, part in parts.items() if part is not None}
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return dict(value)
    return [_written(each) for each in value] if isinstance(value, tuple) else value


# --- parts ----------------------------------------------------------------------------------------------------------


def _read_shared(given: Fields, problems: list[Problem]) -> dict[str, Any]:
    asked = {name: given.values[name] for name in _SHARED if name in given.values}
    reading = request.read_request(asked)
    needed = {"pool", "image"} | asked.keys()
    problems.extend(problem for problem in reading.problems if problem.field.split(".")[0] in needed)
    values = {name: reading.values[name] for name in _SHARED if name in asked and name in reading.values}
    return {name: value for name, value in values.items() if value is not None}


def _read_model(given: Fields) -> dict[str, Any]:
    name, version = given.values.get("model"), given.values.get("version")
    if not isinstance(name, str):
        code, message = ("missing", "it is missing.") if name is None else ("not_text", f"{shown(name)} is no name.")
        given.refuse("model", code, message, "Name a published model, as digits or digits/3.")
        return {}
    head, _, tail = name.rpartition("/")
    if head and tail.isascii() and tail.isdigit():
        if version is not None and str(version) != tail:
            given.refuse("version", "given_twice", f"{name!r} and version {shown(version)} differ.", "Give it once.")
        name, version = head, tail
    given.problems.extend(replace(problem, field="model") for problem in model_names.problems_of(name))
    if version is None or version in ("newest", "latest"):
        return {"model": name, "version": None}
    if not (str(version).isascii() and str(version).isdigit() and int(str(version)) >= 1):
        given.refuse("version", "out_of_range", f"{shown(version)} is no version.", "Write 1 or more, or newest.")
        return {"model": name}
    return {"model": name, "version": int(str(version))}


def _read_server(given: Fields) -> dict[str, Any]:
    name = given.values.get("name")
    if not isinstance(name, str) or len(name) > MAX_NAME or _LABEL.fullmatch(name) is None:
        told = "it is missing." if name is None else f"{shown(name)} is no DNS label of at most {MAX_NAME} characters."
        fix = "Use lower-case letters, digits and '-', beginning with a letter, as digits or llama3-8b."
        given.refuse("name", "missing" if name is None else "bad_name", told, fix)
    engine = given.values.get("engine")
    if not isinstance(engine, str):
        given.refuse("engine", "missing", "it is missing.", "Name one of `fermion engines`, as kserve or command.")
    return {
        "name": name,
        "engine": engine,
        "command": _command(given),
        "api_type": given.word("api_type", ApiType, ApiType.REST),
        "environment": _environment(given),
        "probes": _probes(given),
        "keep_warm": given.duration("keep_warm", timedelta(minutes=10)),
        "ready_timeout": given.duration("ready_timeout", timedelta(minutes=10)),
        "follow": given.truth("follow", default=False),
        "retry_failed": given.truth("retry_failed", default=False),
        "when_busy": given.word("when_busy", WhenBusy, WhenBusy.WAIT),
    }


def _command(given: Fields) -> tuple[str, ...]:
    value = given.values.get("command", ())
    try:
        words = shlex.split(value) if isinstance(value, str) else value
    except ValueError as error:
        given.refuse("command", "bad_quoting", f"{error}.", "Close every quote.")
        return ()
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) and word for word in words):
        given.refuse("command", "not_a_list", f"{shown(value)} is no command line.", "Write a list of words.")
        return ()
    if any(not word.isprintable() for word in words) or sum(map(len, words)) > 8000:
        given.refuse("command", "bad_word", "it holds what cannot be shown, or is too long.", "Write plain words.")
        return ()
    return tuple(words)


def _environment(given: Fields) -> dict[str, str]:
    value = given.values.get("environment", {})
    if not isinstance(value, Mapping) or len(value) > 100:
        given.refuse("environment", "not_an_object", f"{shown(value)} is no object of names.", "Write names and texts.")
        return {}
    for name, text in value.items():
        if not isinstance(name, str) or _VARIABLE.fullmatch(name) is None or name.startswith("FERMION_"):
            given.refuse(f"environment.{str(name)[:40]}", "bad_name", "no variable may be called so.", "Rename it.")
        elif _SECRET.search(name):
            fix = "Put it into an Airflow connection; what stands in a request is stored and shown."
            given.refuse(f"environment.{name}", "secret", "it looks like a secret.", fix)
        elif not isinstance(text, str | int | float) or len(str(text)) > 4000:
            given.refuse(f"environment.{name}", "not_text", f"{shown(text)} is no text.", "Write it as a string.")
    return {str(name): str(text) for name, text in value.items()}


def _read_route(given: Fields) -> dict[str, Any]:
    prefix, port = given.values.get("prefix"), None
    if prefix is not None and (not isinstance(prefix, str) or _PREFIX.fullmatch(prefix) is None):
        given.refuse("prefix", "bad_path", f"{shown(prefix)} is no path prefix.", "Write it as /digits.")
    if "port" in given.values:
        port = _whole(given, "port", low=1024, high=65535, default=None)
    return {
        "prefix": prefix,
        "port": port,
        "balancing": given.word("balancing", Balancing, Balancing.LEAST_REQUEST),
    }


def _read_size(given: Fields) -> dict[str, Any]:
    replicas = _whole(given, "replicas", low=1, high=MAX_REPLICAS, default=1)
    capacity = given.word("capacity", Capacity, Capacity.WAIT)
    autoscaling = _autoscaling(given)
    if capacity is Capacity.SWAP and replicas == 1:
        message = "with one replica there is none to replace while another one answers."
        given.refuse("capacity", "swap_needs_two", message, "Ask for 2 replicas or more, or wait.")
    if autoscaling is not None and replicas is not None:
        replicas = min(max(replicas, autoscaling.min_replicas), autoscaling.max_replicas)
    cpus = given.number("cpus", None)
    if cpus is not None and not 0 < cpus <= 1024:
        given.refuse("cpus", "out_of_range", f"{cpus:g} is no number of cores.", "Write cores, as 0.5 or 4.")
    return {
        "replicas": replicas,
        "gpus_per_replica": _whole(given, "gpus_per_replica", low=1, high=MAX_GPUS, default=1),
        "cpus": cpus,
        "capacity": capacity,
        "autoscaling": autoscaling,
    }


def _whole(given: Fields, name: str, *, low: int, high: int, default: int | None) -> int | None:
    if name not in given.values:
        return default
    before = len(given.problems)
    value = given.whole(name, low)
    if len(given.problems) == before and not low <= value <= high:
        given.refuse(name, "out_of_range", f"{value} is out of range.", f"Ask for {low} to {high}.")
    return value


def _autoscaling(parent: Fields) -> Autoscaling | None:
    raw = parent.values.get("autoscaling")
    if raw is None:
        return None
    names = {field.name: field.name for field in fields(Autoscaling)}
    names |= {"target_metric": "metric", "target_value": "target", "min": "min_replicas", "max": "max_replicas"}
    if isinstance(raw, Mapping) and raw.get("enabled") is False:
        return None
    raw = {key: value for key, value in raw.items() if key != "enabled"} if isinstance(raw, Mapping) else raw
    given = Fields("autoscaling", raw, names, parent.problems)
    if not isinstance(raw, Mapping):
        return None
    least = _whole(given, "min_replicas", low=1, high=MAX_REPLICAS, default=1) or 1
    most = _whole(given, "max_replicas", low=1, high=MAX_REPLICAS, default=least) or least
    target = given.number("target", 0.0)
    if least > most:
        given.refuse("min_replicas", "above_max", f"{least} is more than max_replicas {most}.", "Exchange them.")
    if target <= 0:
        given.refuse("target", "out_of_range", f"{target:g} is no target.", "Write a number above 0, per replica.")
    tolerance = given.number("tolerance", 0.1)
    if not 0 <= tolerance < 1:
        given.refuse("tolerance", "out_of_range", f"{tolerance:g} is not within 0 to 1.", "Write 0.1 for a tenth.")
    return Autoscaling(
        metric=given.word("metric", TargetMetric, TargetMetric.CPU),
        target=target,
        min_replicas=least,
        max_replicas=most,
        tolerance=tolerance,
        up_window=given.duration("up_window", timedelta(0)),
        down_window=given.duration("down_window", timedelta(minutes=5)),
    )


def _probes(parent: Fields) -> Probes | None:
    raw = parent.values.get("probes")
    if raw is None:
        return None
    names = {name: name for name in ("startup", "readiness", "liveness")}
    given = Fields("probes", raw, names, parent.problems)
    return Probes(**{name: _probe(given, name) for name in names if name in given.values})


def _probe(parent: Fields, name: str) -> Probe:
    names = {field.name: field.name for field in fields(Probe)} | {
        "period_seconds": "period",
        "timeout_seconds": "timeout",
    }
    given = Fields(f"probes.{name}", parent.values[name], names, parent.problems)
    command = given.values.get("command", ())
    words = (
        shlex.split(command) if isinstance(command, str) else tuple(str(word) for word in given.items("command", []))
    )
    path, port = given.values.get("path", "/"), given.values.get("port", "http")
    return Probe(
        kind=given.word("kind", ProbeKind, ProbeKind.HTTP),
        path=str(path),
        port=str(port),
        command=tuple(words),
        period=given.duration("period", timedelta(seconds=1)),
        timeout=given.duration("timeout", timedelta(seconds=1)),
        success_threshold=given.whole("success_threshold", 1),
        failure_threshold=given.whole("failure_threshold", 3),
    )


def _read_plan(given: Fields, problems: list[Problem]) -> Plan | None:
    reading = read_plan(given.values.get("plan", USUAL_PLAN))
    problems.extend(replace(problem, field=f"plan.{problem.field}") for problem in reading.problems)
    if reading.plan is not None and any(step.weight_percent % 1 for step in reading.plan.steps):
        given.refuse("plan.steps", "fraction", "the router splits by whole percents.", "Write whole percents.")
    return reading.plan


def _way_problems(plan: Plan, api_type: ApiType) -> list[Problem]:
    """Splits and copies that make no sense for what clients speak."""
    found = []
    for number, step in enumerate(plan.steps):
        field = f"plan.steps.{number}"
        if step.share.way is Way.MIRRORED and api_type is not ApiType.REST:
            told = "of a copy only the HTTP status is known, which says nothing of a gRPC call"
            told = told if api_type is ApiType.GRPC else "a WebSocket is no request that could be copied"
            fix = "Leave the step out, or serve the model by rest."
            found.append(Problem(field=f"{field}.mirror_percent", code="no_copies", message=f"{told}.", fix=fix))
        if step.split is not None and step.split.cookie is not None and api_type is ApiType.GRPC:
            fix = "Split by a header, which is a key of the call's metadata."
            message = "gRPC clients keep no cookies."
            found.append(Problem(field=f"{field}.split.cookie", code="no_cookies", message=message, fix=fix))
    return found
