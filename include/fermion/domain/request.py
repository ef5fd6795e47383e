"""A request for a training: from what a person or program wrote to a ``JobSpec``, or to all of its problems at once.

Pure: nothing is looked up. Whether a pool, image, dataset, host or branch exists is asked by ``usecases/examine.py``, also
for the fields that could be read of a request that is wrong in others.
Keys may be snake_case or camelCase, with the names of the API (``poolId``, ``gitBranch``, ``gpuCount``) as second names.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from fermion.domain.counting import counted
from fermion.domain.durations import parse_duration
from fermion.domain.entrypoints import parse_entrypoint
from fermion.domain.jobs import JobSpec
from fermion.domain.model_names import problems_of
from fermion.domain.problems import Problem
from fermion.domain.spelling import did_you_mean
from fermion.domain.unstorable import NOT_TEXT, TOO_LARGE, flaw_of, is_too_large
from fermion.errors import RequestRefused

MAX_NODES: Final = 1024
MAX_GPUS_PER_NODE: Final = 64
MAX_MEMORY_MIB: Final = 16 * 1024 * 1024
MAX_PRIORITY: Final = 1000
MAX_DURATION: Final = timedelta(days=30)
MAX_DATASETS: Final = 16
MAX_HYPERPARAMETERS: Final = 200
MAX_HYPERPARAMETERS_BYTES: Final = 64 * 1024
_MAX_UNKNOWN_KEYS: Final = 20

# Canonical name, then the other names that mean the same.
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "name": ("jobName",),
    "pool": ("pool_id", "poolId"),
    "image": ("image_id", "imageId"),
    "repository": ("git_repo", "gitRepo", "repo"),
    "ref": ("git_branch", "gitBranch", "branch", "commit", "tag"),
    "entrypoint": (),
    "output_model": ("outputModel", "output_model_path", "outputModelPath", "model"),
    "datasets": ("dataset_ids", "datasetIds"),
    "hyperparameters": (),
    "nodes": ("node_count", "nodeCount"),
    "gpus_per_node": ("gpusPerNode",),
    "gpus": ("gpu_count", "gpuCount"),
    "memory_mib": ("memoryMib",),
    "priority": (),
    "preemptible": (),
    "max_runtime": ("maxRuntime", "max_runtime_s", "maxRuntimeS"),
    "queue_timeout": ("queueTimeout", "queue_timeout_s", "queueTimeoutS"),
    "checkpoint": ("resume_from", "resumeFrom", "checkpointFrom"),
    "owner": (),
    "team": (),
}
_CANONICAL: Final = {other: name for name, others in _NAMES.items() for other in (name, *others)}

_POOL = re.compile(r"[a-z0-9][a-z0-9-]{0,62}/[a-z0-9][a-z0-9.-]{0,62}")
_IMAGE = re.compile(
    r"[a-z0-9][a-z0-9._-]*(?::[0-9]{1,5}(?=/))?(?:/[a-z0-9][a-z0-9._-]*)*:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
)
_DATASET = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_PERSON = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,126}")
_JOB_ID = re.compile(r"job-[0-9]{8}-[0-9]{3,9}")
# Python's own int, float and \d also read the digits of other scripts, and 1_000.
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?")
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,6})?")
_HYPERPARAMETER = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_SECRET = re.compile(
    r"(?:^|_)(?:password|passwd|passphrase|secrets?|credentials?|api_?key|private_?key|secret_?key|access_?key(?:_id)?)(?:_|$)"
    r"|^token$|(?:^|_)(?:access|api|auth|bearer|refresh|session|secret|hf|github|gitlab|wandb)_token$"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCP_LIKE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*@(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*):(?P<path>[^:/-][^:]*)")
_REF_FORBIDDEN = re.compile(r"\.\.|@\{|//|[\x00-\x20\x7f~^:?*\[\\]")


_MISSING: Final[Mapping[str, str]] = {
    "name": "Give the job a name that people will recognise.",
    "pool": "Name the pool whose GPUs it shall use, as local/declared.",
    "image": "Name the image it runs in, as digits:1.",
    "repository": "Give the git URL of the training code.",
    "entrypoint": "Write the command that trains, for example 'python train.py'.",
    "output_model": "Name the model that this training makes a version of.",
}
_FIXES: Final[Mapping[str, str]] = {
    "name": "Use at most 100 printable characters.",
    "pool": "Take an id from the list of pools.",
    "image": "Take an id from the list of images.",
    "repository": "Use https://host/path, ssh://git@host/path, git@host:path or file:///path.",
    "ref": "Name a branch, a tag or a commit.",
    "checkpoint": "Name the job whose last checkpoint to resume from.",
    "owner": "Use letters, digits and . _ @ + -",
    "team": "Use letters, digits and . _ @ + -",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was read of a request: the fields of a ``JobSpec`` that are well-formed, and what is wrong with the others.

    A field that was left out has its default. Of datasets that are named wrongly the well-formed names are there.
    """

    values: Mapping[str, Any]
    problems: tuple[Problem, ...] = ()

    @classmethod
    def of(cls, spec: JobSpec) -> Reading:
        """A spec, wholly read."""
        return cls(values={field.name: getattr(spec, field.name) for field in fields(spec)})

    def owned_by(self, owner: str) -> Reading:
        """The same, asked for by that owner whatever it says itself."""
        return replace(self, values={**self.values, "owner": owner})

    def spec(self) -> JobSpec:
        """The spec that it means.

        Raises:
            RequestRefused: it has problems; all of them are listed.
        """
        if self.problems:
            raise RequestRefused(self.problems, what="training request")
        return JobSpec(**self.values)


def read_request(raw: Mapping[str, object]) -> Reading:
    """All that a request says, field by field.

    An empty string or null is the same as leaving the key out. ``gpus`` are GPUs in all, ``gpus_per_node`` on each node;
    a string entrypoint is split into words; durations are ``90s``, ``2h`` or, as a number, seconds.
    """
    reader = _Reader(raw)
    reader.text("name", _name_problem)
    reader.text("pool", _matches(_POOL, "a pool's id, as local/declared"))
    reader.text("image", _matches(_IMAGE, "an image's name and tag, as digits:1"))
    reader.text("repository", _repository_problem)
    reader.optional_text("ref", _ref_problem, "main")
    reader.entrypoint()
    reader.output_model()
    reader.datasets()
    reader.hyperparameters()
    reader.whole("memory_mib", low=16, high=MAX_MEMORY_MIB, default=None)
    reader.whole("priority", low=-MAX_PRIORITY, high=MAX_PRIORITY, default=0)
    reader.truth("preemptible", default=True)
    reader.duration("max_runtime")
    reader.duration("queue_timeout")
    reader.optional_text("checkpoint", _matches(_JOB_ID, "a job's id, as job-20241110-001"), None)
    reader.optional_text("owner", _matches(_PERSON, "a user's name"), "unknown")
    reader.optional_text("team", _matches(_PERSON, "a team's name"), "default")
    reader.gpus()
    return reader.reading()


def parse_request(raw: Mapping[str, object]) -> JobSpec:
    """The spec that a request means.

    Raises:
        RequestRefused: it has problems; all of them are listed.
    """
    return read_request(raw).spec()


def to_payload(spec: JobSpec) -> dict[str, object]:
    """The spec as JSON-ready values: canonical names, durations in seconds. ``parse_request`` reads it back too."""
    return {
        "name": spec.name,
        "pool": spec.pool,
        "image": spec.image,
        "repository": spec.repository,
        "ref": spec.ref,
        "entrypoint": list(spec.entrypoint),
        "output_model": spec.output_model,
        "datasets": list(spec.datasets),
        "hyperparameters": dict(spec.hyperparameters),
        "nodes": spec.nodes,
        "gpus_per_node": spec.gpus_per_node,
        "memory_mib": spec.memory_mib,
        "priority": spec.priority,
        "preemptible": spec.preemptible,
        "max_runtime_s": None if spec.max_runtime is None else spec.max_runtime.total_seconds(),
        "queue_timeout_s": None if spec.queue_timeout is None else spec.queue_timeout.total_seconds(),
        "checkpoint": spec.checkpoint,
        "owner": spec.owner,
        "team": spec.team,
    }


def from_payload(payload: Mapping[str, object]) -> JobSpec:
    """The spec that ``to_payload`` wrote, exactly. It is not checked again: it was, by the rules of its own day."""
    values: dict[str, Any] = dict(payload)
    for name in ("max_runtime", "queue_timeout"):
        seconds = values.pop(f"{name}_s", None)
        values[name] = None if seconds is None else timedelta(seconds=seconds)
    values["entrypoint"] = tuple(values["entrypoint"])
    values["datasets"] = tuple(values["datasets"])
    return JobSpec(**values)


def same_request(one: JobSpec, other: JobSpec) -> bool:
    """Whether both ask for exactly the same. ``1``, ``1.0`` and ``true`` differ; the order of keys and datasets does not matter."""
    return _fingerprint(one) == _fingerprint(other)


def arguments_of(hyperparameters: Mapping[str, str | int | float | bool]) -> tuple[str, ...]:
    """``--key value`` words in the order given; the key exactly as written, bools as ``true`` and ``false``.

    A value that begins with a dash becomes one word, ``--key=-1``, because most parsers would take it for an option.
    """
    words: list[str] = []
    for key, value in hyperparameters.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        words.extend((f"--{key}={text}",) if text.startswith("-") else (f"--{key}", text))
    return tuple(words)


def _fingerprint(spec: JobSpec) -> str:
    return json.dumps({**to_payload(spec), "datasets": sorted(spec.datasets)}, sort_keys=True)


# --- reading ---------------------------------------------------------------------------------------------------------

Check = Callable[[str], str | None]
"""What is wrong with a text as the end of a sentence (``is …``, ``holds …``), or None."""


class _Reader:
    """Takes fields out of a raw request: each is either read or has a problem."""

    def __init__(self, raw: Mapping[str, object]) -> None:
        self._problems: list[Problem] = []
        self._read: dict[str, Any] = {}
        self._values: dict[str, object] = {}
        self._written: dict[str, str] = {}
        self._contested: set[str] = set()
        if not isinstance(raw, Mapping):
            self._refuse("request", "not_an_object", f"it is {_shown(raw)}.", "Send an object with named fields.")
            return
        for key, value in raw.items():
            self._take(key, value)
        self._report_unknown([str(key) for key in raw if key not in _CANONICAL])

    def reading(self) -> Reading:
        """What was read so far."""
        values = {name: value for name, value in self._read.items() if name not in self._contested}
        return Reading(values=values, problems=tuple(self._problems))

    def text(self, name: str, check: Check) -> None:
        """A checked string that must be there."""
        if name not in self._values:
            self._refuse(name, "missing", "it is missing.", _MISSING.get(name, f"Say which {name} to use."))
        else:
            self.optional_text(name, check, None)

    def optional_text(self, name: str, check: Check, default: str | None) -> None:
        """A checked string, or the default."""
        value = self._values.get(name, default)
        if value is not None and not isinstance(value, str):
            self._refuse(name, "not_text", f"{_shown(value)} is not a string.", "Write it as a string.")
            return
        wrong = None if value is None else _text_problem(value, check)
        if wrong is not None:
            fix = _FIXES.get(name, "Correct it.")
            code = "unsafe" if name in ("repository", "ref") else "bad_name"
            self._refuse(name, code, f"{_shown(value)} {wrong}.", fix)
            return
        self._read[name] = value

    def whole(self, name: str, *, low: int, high: int, default: int | None) -> None:
        """A whole number within its range, inclusive."""
        value = self._values.get(name)
        if value is None:
            self._read[name] = default
            return
        number, wrong = _whole(value)
        if wrong is None and number is not None and not low <= number <= high:
            wrong = "out_of_range"
        if wrong is not None:
            words = _WRONG_NUMBER[wrong]
            self._refuse(name, wrong, f"{_shown(value)} {words}.", f"Ask for a whole number from {low} to {high}.")
            return
        self._read[name] = number

    def truth(self, name: str, *, default: bool) -> None:
        """A bool, or the words true and false."""
        value = self._values.get(name, default)
        if isinstance(value, str) and value.lower() in ("true", "false"):
            value = value.lower() == "true"
        if not isinstance(value, bool):
            self._refuse(name, "not_a_bool", f"{_shown(value)} is neither true nor false.", "Write true or false.")
            return
        self._read[name] = value

    def duration(self, name: str) -> None:
        """A duration of at least a second, or None."""
        value = self._values.get(name)
        try:
            duration = None if value is None else _duration(value)
        except ValueError as error:
            self._refuse(name, "not_a_duration", f"{error}.", "Write 90s, 15m, 2h or 7d, or a number of seconds.")
            return
        if duration is not None and not timedelta(seconds=1) <= duration <= MAX_DURATION:
            message = f"{_shown(value)} is not between 1 second and {MAX_DURATION.days} days."
            self._refuse(name, "out_of_range", message, "Ask for a duration in that range, or leave it out.")
            return
        self._read[name] = duration

    def entrypoint(self) -> None:
        if "entrypoint" not in self._values:
            self._refuse("entrypoint", "missing", "it is missing.", _MISSING["entrypoint"])
            return
        words, problems = parse_entrypoint(self._values["entrypoint"])
        self._problems.extend(problems)
        if not problems:
            self._read["entrypoint"] = words

    def output_model(self) -> None:
        self.text("output_model", lambda _: None)
        problems = problems_of(self._read["output_model"]) if "output_model" in self._read else []
        self._problems.extend(problems)
        if problems:
            del self._read["output_model"]

    def datasets(self) -> None:
        value = self._values.get("datasets", ())
        names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            self._refuse("datasets", "not_a_list", f"{_shown(value)} is not a list of names.", "Write a list of names.")
            return
        if len(names) > MAX_DATASETS:
            message = f"it names {len(names)} datasets; at most {MAX_DATASETS} can be mounted."
            self._refuse("datasets", "too_many", message, "Join some of them into one dataset.")
            return
        for name in sorted({name for name in names if names.count(name) > 1}):
            self._refuse("datasets", "duplicate", f"{_shown(name)} is named twice.", "Name each dataset once.")
        good = dict.fromkeys(name for name in names if is_dataset_name(name))
        for name in names:
            if name not in good:
                self._problems.append(bad_dataset_name(name))
        self._read["datasets"] = tuple(good)

    def hyperparameters(self) -> None:
        value = self._values.get("hyperparameters", {})
        if isinstance(value, str) and len(value) <= 2 * MAX_HYPERPARAMETERS_BYTES:
            value = _json_of(value)
        size = _size_of(value)
        if size > MAX_HYPERPARAMETERS_BYTES:
            message = f"they take {size:,} bytes; at most {MAX_HYPERPARAMETERS_BYTES:,} are kept."
            self._refuse("hyperparameters", "too_large", message, "Put large values into a file of the repository.")
            return
        if not isinstance(value, Mapping):
            message = f"{_shown(value)} is not an object of names and values."
            self._refuse("hyperparameters", "not_an_object", message, 'Write an object, for example {"epochs": 10}.')
            return
        if len(value) > MAX_HYPERPARAMETERS:
            message = f"there are {len(value)} of them; at most {MAX_HYPERPARAMETERS} are kept."
            self._refuse("hyperparameters", "too_many", message, "Put them into a file of the repository.")
            return
        problems = [problem for key, item in value.items() for problem in _problems_of_hyperparameter(key, item)]
        self._problems.extend(problems)
        if not problems:
            self._read["hyperparameters"] = dict(value)

    def gpus(self) -> None:
        """``nodes`` and ``gpus_per_node``, from ``gpus`` in all or from themselves."""
        self.whole("nodes", low=1, high=MAX_NODES, default=1)
        self.whole("gpus_per_node", low=1, high=MAX_GPUS_PER_NODE, default=None)
        self.whole("gpus", low=1, high=MAX_NODES * MAX_GPUS_PER_NODE, default=None)
        if not {"nodes", "gpus_per_node", "gpus"} <= self._read.keys() - self._contested:
            for name in ("nodes", "gpus_per_node", "gpus"):
                self._read.pop(name, None)  # the one without the others says nothing
            return
        nodes, per_node, in_all = (self._read.pop(name) for name in ("nodes", "gpus_per_node", "gpus"))
        each = per_node or (1 if in_all is None else in_all // nodes)
        if in_all is not None and (each * nodes != in_all or not 1 <= each <= MAX_GPUS_PER_NODE):
            self._refuse_spread(in_all, nodes, per_node)
            return
        self._read.update(nodes=nodes, gpus_per_node=each)

    def _refuse_spread(self, in_all: int, nodes: int, per_node: int | None) -> None:
        over = f"{counted(in_all, 'GPU')} over {counted(nodes, 'node')}"
        if per_node is None and in_all > nodes * MAX_GPUS_PER_NODE:
            least = -(-in_all // MAX_GPUS_PER_NODE)
            message = f"{over} is more than {MAX_GPUS_PER_NODE} on a node, the most that one may be asked for."
            fix = f"Ask for at least {least} nodes, with the same number on each."
            self._refuse("gpus", "too_many_per_node", message, fix)
            return
        with_each = "" if per_node is None else f" with {per_node} each"
        fix = f"Ask for the same number on each node, at most {MAX_GPUS_PER_NODE}; gpus is nodes x gpus_per_node."
        self._refuse("gpus", "uneven", f"{over}{with_each} cannot be spread evenly.", fix)

    def _take(self, key: object, value: object) -> None:
        name = _CANONICAL.get(key) if isinstance(key, str) else None
        value = value.strip() if isinstance(value, str) else value
        if name is None or value is None or value == "":
            return
        if name in self._values and self._values[name] != value:
            message = f"it is given as {self._written[name]} and as {key}, with different values."
            self._refuse(name, "given_twice", message, f"Give {name} once.")
            self._contested.add(name)
            return
        self._values[name] = value
        self._written[name] = str(key)

    def _report_unknown(self, unknown: list[str]) -> None:
        for key in unknown[:_MAX_UNKNOWN_KEYS]:
            near = did_you_mean(key, _CANONICAL)
            fix = f"Did you mean {near}?" if near else f"Known fields: {', '.join(_NAMES)}."
            self._refuse(key[:60], "unknown_field", "no such field.", fix)
        if len(unknown) > _MAX_UNKNOWN_KEYS:
            message = f"{len(unknown) - _MAX_UNKNOWN_KEYS} more unknown fields."
            self._refuse("request", "unknown_field", message, f"Known fields: {', '.join(_NAMES)}.")

    def _refuse(self, field: str, code: str, message: str, fix: str) -> None:
        self._problems.append(Problem(field=field, code=code, message=message, fix=fix))


_WRONG_NUMBER: Final = {
    "not_a_number": "is not a number",
    "fractional": "is a fraction; GPUs, nodes and the like come whole",
    "out_of_range": "is out of range",
}


def _whole(value: object) -> tuple[int | None, str | None]:
    """The whole number that a value means, or the code of what is wrong with it."""
    if isinstance(value, bool):
        return None, "not_a_number"
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value):
        return int(value), None
    if isinstance(value, int):
        return value, None
    number = math.nan
    if isinstance(value, float) or (isinstance(value, str) and _NUMBER.fullmatch(value) is not None):
        number = float(value)
    if not math.isfinite(number):
        return None, "not_a_number"
    return (int(number), None) if number.is_integer() else (None, "fractional")


def _duration(value: object) -> timedelta:
    if isinstance(value, str) and _SECONDS.fullmatch(value) is None:
        return parse_duration(value)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{_shown(value)} is not a duration")
    try:
        seconds = float(value)
        if math.isfinite(seconds):
            return timedelta(seconds=seconds)
    except OverflowError as error:
        raise ValueError(f"{_shown(value)} is longer than any duration that can be kept") from error
    raise ValueError(f"{_shown(value)} is not a duration")


def _json_of(text: str) -> object:
    """The JSON value of a text, or the text itself when it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _shown(value: object) -> str:
    """A value as it may stand in a message: never long."""
    if isinstance(value, int) and is_too_large(value):
        return TOO_LARGE
    if isinstance(value, str | int | float | bool) or value is None:
        text = repr(value[:61] if isinstance(value, str) else value)
        return text if len(text) <= 64 else f"{text[:60]}…{text[0]}"
    return {"list": "a list", "tuple": "a list", "dict": "an object"}.get(type(value).__name__, type(value).__name__)


# --- what is wrong with one value -----------------------------------------------------------------------------------


def _matches(pattern: re.Pattern[str], what: str) -> Check:
    def check(value: str) -> str | None:
        return None if pattern.fullmatch(value) else f"is not {what}"

    return check


def _text_problem(value: str, check: Check) -> str | None:
    return "is not valid text" if NOT_TEXT.search(value) else check(value)


def is_dataset_name(name: str) -> bool:
    """Whether a dataset may be called so; its name becomes a folder's."""
    return _DATASET.fullmatch(name) is not None


def bad_dataset_name(name: str, *, field: str = "datasets") -> Problem:
    """The problem of a name that no dataset may have."""
    message = f"{_shown(name)} is not a dataset's name."
    fix = "Use lower-case letters, digits, '.', '_' and '-', at most 63, as digits."
    return Problem(field=field, code="bad_name", message=message, fix=fix)


def _name_problem(value: str) -> str | None:
    if len(value) > 100:
        return f"has {len(value)} characters; at most 100 fit"
    return None if value.isprintable() else "holds a line break or another character that cannot be shown"


def _ref_problem(value: str) -> str | None:
    if len(value) > 250:
        return f"has {len(value)} characters; at most 250 fit"
    if value.startswith("-"):
        return "starts with a dash, as an option does"
    found = _REF_FORBIDDEN.search(value)
    if found is not None:
        return f"holds {found.group()!r}, which no branch, tag or commit can"
    if value.startswith(("/", ".")) or value.endswith(("/", ".", ".lock")) or "/." in value:
        return "is not the name of a branch or tag, nor a commit"
    return None


def _repository_problem(value: str) -> str | None:
    if len(value) > 2048:
        return f"has {len(value)} characters; at most 2048 fit"
    # What could run a command is named first, whatever else is wrong.
    if value.startswith("-"):
        return "starts with a dash, as an option does"
    if "::" in value.partition("//")[0]:
        name = "".join(character for character in value.partition("::")[0] if character.isprintable())
        return f"uses git's {name[:40]}:: transport, which runs commands; use https, ssh or file"
    if "${" in value:
        return "holds a variable that was not filled in; only a spec file given to the fermion command may hold one"
    if _CONTROL.search(unquote(value)) or (" " in value and not value.lower().startswith("file://")):
        return "holds a space, a line break or another control character"
    if (scp := _SCP_LIKE.fullmatch(value)) is not None:
        return _path_problem(value, scp["path"])
    try:
        parts = urlsplit(value)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        return "is not a URL"
    if not port_is_fine:
        return "has port 0"
    if parts.scheme not in ("https", "ssh", "http", "file"):
        return "is not a URL with https, ssh or file"
    return _host_problem(parts.scheme, parts.netloc, parts.hostname or "") or _path_problem(value, parts.path)


def _host_problem(scheme: str, netloc: str, host: str) -> str | None:
    user, at, _ = netloc.rpartition("@")
    if at and (scheme != "ssh" or ":" in user or user.startswith("-") or not user):
        return "holds a user name or password; credentials belong into a connection"
    if scheme == "file":
        return (
            None
            if host in ("", "localhost")
            else f"names the host {host[:60]!r}, but a file URL has none: file:///path"
        )
    if not host:
        return "names no host"
    return "names a host that starts with a dash" if host.startswith("-") else None


def _path_problem(url: str, path: str) -> str | None:
    if "?" in url or "#" in url:
        return "holds a query or a fragment; branch, tag or commit go into ref"
    words = unquote(path).split("/")
    if len(unquote(path).strip("/")) == 0:
        return "names no repository on its host"
    if ".." in words:
        return "holds '..'"
    return "holds a part that starts with a dash" if any(word.startswith("-") for word in words) else None


def _problems_of_hyperparameter(key: object, value: object) -> Iterable[Problem]:
    name = str(key)[:64]
    field = f"hyperparameters.{name}"
    if not isinstance(key, str) or _HYPERPARAMETER.fullmatch(key) is None:
        message = f"{_shown(key)} cannot be an option's name."
        fix = "Start with a letter; then letters, digits, '_', '.' and '-', at most 64 in all."
        yield Problem(field=field, code="bad_name", message=message, fix=fix)
    elif _SECRET.search(_words_of(key)) is not None:
        message = "its name looks like a secret, and hyperparameters are stored and shown."
        fix = "Keep secrets in a connection; rename it if it is none."
        yield Problem(field=field, code="secret", message=message, fix=fix)
    wrong = _value_problem(value)
    if wrong is not None:
        code, message, fix = wrong
        yield Problem(field=field, code=code, message=message, fix=fix)


def _value_problem(value: object) -> tuple[str, str, str] | None:
    """(code, message, fix) of a hyperparameter's value, or None."""
    if isinstance(value, str | float):
        return flaw_of(value)
    if isinstance(value, int):
        fix = "Write it as a string or as a floating point number."
        return ("too_large", f"it is {TOO_LARGE}.", fix) if is_too_large(value) else None
    if value is None:
        return "missing", "it is null.", "Leave it out, or give it a value."
    fix = 'Hyperparameters are flat: write "model.depth": 3 instead of nesting.'
    return "nested", f"it is {_shown(value)}.", fix


def _words_of(name: str) -> str:
    """``apiKey`` and ``api-key`` both as ``api_key``."""
    return re.sub(r"[.-]", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).lower()


def _size_of(value: object) -> int:
    """About the bytes that a value takes as JSON; counts nested values too, but not deeper than they can be refused."""
    if isinstance(value, str):
        return len(value.encode(errors="replace"))
    if not isinstance(value, Mapping):
        return 20
    return sum(_size_of(key) + (_size_of(item) if isinstance(item, str) else 20) for key, item in value.items())
