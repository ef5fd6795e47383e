"""Settings: the only reader of the environment and of ``config/fermion.yaml``. Nothing is read at import.

``load`` answers one frozen ``Settings`` or raises ``SettingsInvalid`` with every problem as ``file:line:column: message``.
What a setting means stands under it; ``docs/configuration.md`` is the same for people. Secrets have no place in the
file: it names connections, and the database's URL comes from the environment or from a file under ``run/secrets/``.
"""

from __future__ import annotations

import hashlib
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import quote, unquote

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from fermion.domain.durations import parse_duration
from fermion.domain.pools import Budget, PoolPolicy, TeamQuota
from fermion.domain.spelling import did_you_mean
from fermion.errors import SettingsInvalid

CONFIGURATION: Final = Path("config/fermion.yaml")
GIB: Final = 1024**3

# --- kinds of values -------------------------------------------------------------------------------------------------


def _as_duration(value: object) -> object:
    if value is None or isinstance(value, timedelta):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{value!r} has no unit; write a number and a unit: 90s, 15m, 2h or 7d")
    return parse_duration(value)


def _as_section(value: object) -> object:
    """A section whose lines are all commented out is an empty one."""
    return {} if value is None else value


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else () if value is None else value


def _named(pattern: str, what: str) -> AfterValidator:
    """Refuses a string that the pattern does not match in words, not with the pattern."""

    def check(value: str) -> str:
        if re.fullmatch(pattern, value) is None:
            raise ValueError(f"{value[:60]!r} is not {what}")
        return value

    return AfterValidator(check)


def _as_place(text: str, info: ValidationInfo) -> str:
    return _place(text, _root_of(info))


def _as_uri(text: str, info: ValidationInfo) -> str:
    place = _place(text, _root_of(info))
    return place if place.startswith("s3://") else Path(place).as_uri()


def _as_folder(text: str, info: ValidationInfo) -> str:
    return os.path.normpath(_root_of(info) / _path_in(text))


def _as_lock(lock: Path, info: ValidationInfo) -> Path:
    lock = _root_of(info) / lock
    if not lock.is_file():
        raise ValueError(f"there is no file {lock}; make it with 'uv pip compile --generate-hashes'")
    return lock


Duration = Annotated[timedelta, BeforeValidator(_as_duration), Field(gt=timedelta(0))]
Whole = Annotated[int, Field(strict=True, ge=0)]
Number = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Truth = Annotated[bool, Field(strict=True)]
Place = Annotated[str, AfterValidator(_as_place)]
Uri = Annotated[str, AfterValidator(_as_uri)]
Folder = Annotated[str, AfterValidator(_as_folder)]
Lock = Annotated[Path, AfterValidator(_as_lock)]
List = BeforeValidator(_as_tuple)
Table = BeforeValidator(_as_section)
Word = Annotated[str, _named(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}", "a name: letters, digits and . _ @ -")]
ClusterName = Annotated[
    str, _named(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "a cluster's name: lower-case letters, digits and dashes")
]
PoolId = Annotated[
    str,
    _named(r"[a-z0-9][a-z0-9-]{0,62}/[a-z0-9][a-z0-9.-]{0,62}", "a pool's id: <cluster>/<model>, as local/declared"),
]
ImageId = Annotated[
    str,
    _named(r"[a-z0-9][a-z0-9._/-]{0,200}:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", "an image's id: name:tag, as digits:1"),
]
DatasetName = Annotated[
    str, _named(r"[a-z0-9][a-z0-9._-]{0,62}", "a dataset's name: lower-case letters, digits and . _ -")
]
LabelName = Annotated[
    str, _named(r"[a-zA-Z_][a-zA-Z0-9_]{0,62}", "a label's name in Prometheus: letters, digits and underscores")
]
Host = Annotated[
    str,
    _named(
        r"[a-z0-9]([a-z0-9.-]{0,252}[a-z0-9])?(:[0-9]{1,5})?", "a host: its name alone in lower case, as github.com"
    ),
]
WebUrl = Annotated[
    str, _named(r"https?://[^\s/?#@]+(/[^\s?#@]*)?", "a URL: http or https, a host, no user, password or query")
]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, value: object) -> object:
        return _as_section(value)


# --- sections --------------------------------------------------------------------------------------------------------


class ProcessCluster(_Section):
    """This machine: trainings are child processes. Isolates nothing, so it is refused in production."""

    kind: Literal["process"]
    """Which driver reaches the cluster."""
    declared_slots: Annotated[Whole, Field(le=1024)] = 0
    """Slots of the pool ``<cluster>/declared`` on a machine where no GPU is found. 0 (default): none, so that a machine
    without GPUs runs nothing unless somebody says so."""
    measure_devices: Truth = True
    """Whether to look for GPUs with NVML. Default true; false makes a machine with GPUs use its declared slots only."""


class DockerCluster(_Section):
    """One GPU host with a Docker engine."""

    kind: Literal["docker"]
    """Which driver reaches the cluster."""
    host: str | None = None
    """The engine's URL, as ``unix:///var/run/docker.sock``. None (default): the engine that ``docker`` itself would use."""


class KubernetesCluster(_Section):
    """One Kubernetes cluster."""

    kind: Literal["kubernetes"]
    """Which driver reaches the cluster."""
    connection: Word = "kubernetes_default"
    """The Airflow connection that holds its kubeconfig. Default ``kubernetes_default``, the provider's own."""
    namespace: Word = "fermion"
    """Where its objects are made. Default ``fermion``, so that nothing else lives beside them."""
    admission: Literal["fermion", "kueue"] = "fermion"
    """Who decides what starts: this platform's line (default), or the cluster's Kueue."""


class KarmadaCluster(_Section):
    """Many Kubernetes clusters behind one Karmada control plane."""

    kind: Literal["karmada"]
    """Which driver reaches the cluster."""
    connection: Word
    """The Airflow connection that holds the control plane's kubeconfig. No default: it is never the ordinary one."""
    namespace: Word = "fermion"
    """Where its objects are made. Default ``fermion``."""


Cluster = Annotated[ProcessCluster | DockerCluster | KubernetesCluster | KarmadaCluster, Field(discriminator="kind")]


class ImageSettings(_Section):
    """An image of the process driver: an environment, made from a locked requirements file."""

    lock: Lock
    """The requirements file with hashes, relative to the root folder. Empty file: the plain Python. Its hash is the digest."""
    framework: str | None = None
    """What people filter by, as ``scikit-learn``. None (default): none in particular."""
    category: Literal["official", "community", "custom"] = "custom"
    """Who vouches for it. Default ``custom``: nobody but who wrote it here."""


class DataSettings(_Section):
    """Where datasets may lie, and how to reach an object store."""

    roots: Annotated[tuple[Place, ...], List] = ()
    """Folders and ``s3://`` prefixes that datasets may lie in. Empty (default): none, so that no path is readable by accident."""
    endpoint: WebUrl | None = None
    """The object store's URL for ``s3://`` datasets. None (default): Amazon's own."""
    region: str | None = None
    """The object store's region. None (default): whatever the connection or its machine says."""
    connection: Word | None = None
    """The Airflow connection with the object store's keys. None (default): the keys of the machine itself."""


class CodeSettings(_Section):
    """Where training code may come from."""

    hosts: Annotated[tuple[Host, ...], List] = ()
    """Hosts that git may be reached at over https and ssh, as ``github.com``. Empty (default): none."""
    file_roots: Annotated[tuple[Folder, ...], List] = ()
    """Folders that ``file://`` repositories may lie in; embedded only. Empty (default): none."""
    connection: Word | None = None
    """The Airflow connection with git's user and token (or key). None (default): only public repositories."""


class ModelsSettings(_Section):
    """The model repository."""

    uri: Place | None = None
    """A folder or an ``s3://bucket/prefix``. None (default): ``models`` in the state folder."""
    endpoint: WebUrl | None = None
    """The object store's URL. None (default): Amazon's own."""
    region: str | None = None
    """The object store's region. None (default): whatever the connection or its machine says."""
    connection: Word | None = None
    """The Airflow connection with the object store's keys. None (default): the keys of the machine itself."""


class BudgetSettings(_Section):
    """GPU-hours within a sliding window."""

    gpu_hours: Number
    """GPU-hours that may be held within the window."""
    window: Duration = timedelta(days=7)
    """How far back is counted. Default ``7d``: a week's work."""


class TeamQuotaSettings(_Section):
    """One team's share of a pool, in GPUs."""

    nominal: Whole
    """GPUs that are the team's own."""
    borrowing_limit: Whole | None = None
    """Most GPUs it may take beyond that from the cohort. None (default): no limit."""
    lending_limit: Whole | None = None
    """Most of its unused GPUs that others may take, at most ``nominal``. None (default): all of them."""

    @field_validator("lending_limit")
    @classmethod
    def _lends_what_it_has(cls, limit: int | None, info: ValidationInfo) -> int | None:
        nominal = info.data.get("nominal")
        if limit is not None and nominal is not None and limit > nominal:
            raise ValueError(f"{limit} is more than the team's nominal {nominal}; a team can lend at most what it has")
        return limit


class PolicySettings(_Section):
    """The rules of one pool. What a pool's policy leaves out is taken from the default policy."""

    max_gpus_per_job: Whole | None = None
    """Most GPUs of one job. None (default): as many as the pool has."""
    max_gpus_per_user: Whole | None = None
    """Most GPUs that one user holds at once. None (default): no limit."""
    teams: Annotated[dict[Word, TeamQuotaSettings], Table] = {}
    """Team name to its share. Empty (default): no shares, the line alone decides. With shares, a team that is not named has none."""
    cohort: Word | None = None
    """Pools with the same cohort lend unused shares to each other. None (default): no lending."""
    user_budget: BudgetSettings | None = None
    """GPU-hours of each user. None (default): no budget."""
    team_budgets: Annotated[dict[Word, BudgetSettings], Table] = {}
    """Team name to its GPU-hours. Empty (default): no budgets."""
    preemption: Truth = True
    """Whether a higher priority may take GPUs from preemptible jobs of a lower one. Default true."""
    half_life: Duration = timedelta(days=7)
    """After this time past use counts half in the fair share. Default ``7d``: last week matters, last month hardly."""
    head_grace: Duration = timedelta(minutes=5)
    """How long the head of the line waits before GPUs are reserved for it. Default ``5m``: short jobs still slip by."""
    max_runtime: Duration | None = None
    """Runtime of a job that asks for none. None (default): no limit; then nothing can be backfilled in front of it."""
    queue_timeout: Duration | None = None
    """Waiting time of a job that asks for none. None (default): it waits as long as it takes."""
    start_timeout: Duration = timedelta(minutes=2)
    """A granted workload whose process is not seen by then has failed. Default ``2m``: all is staged, so starting is quick."""
    hang_factor: Number = 20.0
    """No progress for this many times the usual step is a hang. Default 20: a slow evaluation is none."""
    hang_floor: Duration = timedelta(minutes=10)
    """Never a hang before this time without progress. Default ``10m``: long enough to load a large model."""
    stop_grace: Duration = timedelta(seconds=15)
    """From asking a workload to end to killing it. Default ``15s``: enough to write a small checkpoint."""
    max_attempts: Annotated[Whole, Field(ge=1)] = 3
    """Workloads of one job in all, when infrastructure loses them. Default 3."""
    policy_version: str | None = None
    """Name of this policy in stored decisions. None (default): the hash of its content, so that no change goes unnoticed."""


class PoliciesSettings(_Section):
    """The default policy and those of single pools."""

    default: PolicySettings = PolicySettings()
    """The policy of every pool, and what the others start from."""
    pools: Annotated[dict[PoolId, PolicySettings], Table] = {}
    """Pool id (``<cluster>/<model>``) to what differs from the default policy. Empty (default): nothing differs."""


class RetentionSettings(_Section):
    """How long things are kept after they ended. None always means: for ever."""

    runs: Duration | None = timedelta(days=30)
    """Ended runs and their task logs in Airflow. Default ``30d``: its database grows with each."""
    workloads: Duration | None = timedelta(days=7)
    """Logs, outputs and checkpoints of ended jobs, logs of removed replicas; published models stay. Default ``7d``: time to
    resume or look again."""
    events: Duration | None = timedelta(days=90)
    """Who did what. Default ``90d``."""
    decisions: Duration | None = timedelta(days=90)
    """Why something was granted or refused. Default ``90d``."""
    points: Duration | None = timedelta(days=365)
    """Metric points. Default ``365d``: to compare with last year's model."""
    reports: Duration | None = None
    """Reports of ended jobs. None (default): small, and the only thing left of a job in the end."""


class CachesSettings(_Section):
    """Sizes of the caches of staged things, per cluster; the least recently used goes first. None always means: no cap."""

    images_gib: Number | None = 20.0
    """Materialised images, in GiB. Default 20: a few large frameworks."""
    datasets_gib: Number | None = 50.0
    """Staged datasets, in GiB. Default 50."""
    code_gib: Number | None = 5.0
    """Git mirrors and checkouts, in GiB. Default 5."""
    models_gib: Number | None = 50.0
    """Published models staged for replicas, in GiB. Default 50. Kept by ``keep_house`` alone: what serves never leaves."""

    @property
    def images_bytes(self) -> int | None:
        """The cap on images in bytes; None: no cap."""
        return _bytes(self.images_gib)

    @property
    def datasets_bytes(self) -> int | None:
        """The cap on datasets in bytes; None: no cap."""
        return _bytes(self.datasets_gib)

    @property
    def code_bytes(self) -> int | None:
        """The cap on code in bytes; None: no cap."""
        return _bytes(self.code_gib)

    @property
    def models_bytes(self) -> int | None:
        """The cap on staged models in bytes; None: no cap."""
        return _bytes(self.models_gib)


class SyncSettings(_Section):
    """Comparing what is recorded with what is."""

    interval: Duration = timedelta(seconds=30)
    """From one sync to the next. Default ``30s``: how old a figure on a page may be."""
    cluster_timeout: Duration = timedelta(seconds=10)
    """A cluster that has not answered by then is unreachable; its last state stays. Default ``10s``, well within the interval."""


class DefaultsSettings(_Section):
    """What a job gets that asks for nothing."""

    memory_mib: Annotated[Whole, Field(ge=16)] | None = 4096
    """Memory of one workload, in MiB; above it the workload is ended. None: no limit. Default 4096: a laptop survives a mistake."""


class MetricsSettings(_Section):
    """Where figures of services come from."""

    prometheus: WebUrl | None = None
    """Base URL of a Prometheus that scrapes the router. None (default): figures come from the router's own counters."""
    labels: Annotated[dict[LabelName, str], Table] = {}
    """Labels that the router's series have in that Prometheus, as ``job: fermion``. Empty (default): it scrapes no other Envoy."""
    connection: Word | None = None
    """The Airflow connection with its user and password. None (default): it asks for none."""
    looks: Literal["router", "prometheus"] = "router"
    """What a rollout's looks are made from. Default ``router``: exact and at once, where Prometheus is a scrape late."""
    scrape_port: Annotated[int, Field(strict=True, ge=1024, le=65535)] | None = None
    """Loopback port at which the router shows ``/stats/prometheus``. None (default): on its admin socket only."""


class AirflowSettings(_Section):
    """Where the workflow engine is."""

    url: WebUrl = "http://127.0.0.1:8080"
    """Base URL of Airflow's API server. Default ``http://127.0.0.1:8080``. FERMION_AIRFLOW_URL, or the file
    ``run/airflow/url`` of an embedded platform that had to take another port, goes before it."""


class Configuration(_Section):
    """All of ``config/fermion.yaml``."""

    environment: Literal["embedded", "production"] = "embedded"
    """``embedded`` (default) is one machine for one team. ``production`` refuses what isolates nothing: process clusters,
    ``file://`` repositories and SQLite."""
    clusters: Annotated[dict[ClusterName, Cluster], Table] = {}
    """Cluster name to how it is reached. Names are the first half of pool ids."""
    images: Annotated[dict[ImageId, ImageSettings], Table] = {}
    """Image id (``name:tag``) to its environment, for process clusters."""
    datasets: Annotated[dict[DatasetName, Uri], Table] = {}
    """Dataset name to its folder (a path or ``file://``) or ``s3://bucket/prefix``, within ``data.roots``."""
    data: DataSettings = DataSettings()
    """Where datasets may lie."""
    code: CodeSettings = CodeSettings()
    """Where training code may come from."""
    models: ModelsSettings = ModelsSettings()
    """The model repository."""
    policies: PoliciesSettings = PoliciesSettings()
    """Rules of the pools."""
    retention: RetentionSettings = RetentionSettings()
    """How long things are kept."""
    caches: CachesSettings = CachesSettings()
    """Sizes of the caches."""
    sync: SyncSettings = SyncSettings()
    """How often reality is looked at."""
    defaults: DefaultsSettings = DefaultsSettings()
    """What a job gets that asks for nothing."""
    metrics: MetricsSettings = MetricsSettings()
    """Where figures of services come from."""
    airflow: AirflowSettings = AirflowSettings()
    """Where the workflow engine is."""


# --- the settings ----------------------------------------------------------------------------------------------------


class Settings(Configuration):
    """The configuration together with where this installation lies on disk."""

    root: Path
    """The folder that holds ``config/``: FERMION_ROOT, else upward from the working folder, else the package's checkout."""
    state: Path
    """The folder of all that is written: FERMION_STATE, else ``run`` in the root folder."""
    file: Path
    """The configuration file that was read."""
    database_url: str = Field(repr=False)
    """FERMION_DATABASE_URL, else the file ``run/secrets/database_url``, else SQLite in the state folder."""
    airflow_url: str
    """FERMION_AIRFLOW_URL, else the file ``run/airflow/url``, else ``airflow.url`` of the configuration."""

    @property
    def is_started_by_up(self) -> bool:
        """Whether `fermion up` starts the programs of this installation, its database among them."""
        return self.environment == "embedded" and self.database_url == _database_url(self.state, {})

    @property
    def airflow_home(self) -> Path:
        """Airflow's home: logs, generated files."""
        return self.state / "airflow"

    @property
    def postgres_dir(self) -> Path:
        """The embedded database server's data."""
        return self.state / "postgres"

    @property
    def secrets_dir(self) -> Path:
        """Generated passwords and keys, mode 0600."""
        return self.state / "secrets"

    @property
    def supervisor_dir(self) -> Path:
        """The supervisor's generated configuration, socket and process id."""
        return self.state / "supervisor"

    @property
    def logs_dir(self) -> Path:
        """One log file per supervised program."""
        return self.state / "logs"

    @property
    def work_dir(self) -> Path:
        """Location root of the process driver."""
        return self.state / "work"

    @property
    def models_dir(self) -> Path:
        """The local model repository."""
        return self.state / "models"

    @property
    def reports_dir(self) -> Path:
        """One HTML and one JSON report per ended job."""
        return self.state / "reports"

    @property
    def choices_file(self) -> Path:
        """Pools, images and datasets for the form in the Airflow UI."""
        return self.state / "choices.json"

    @property
    def examples_dir(self) -> Path:
        """The examples' git repositories and datasets."""
        return self.state / "examples"

    @property
    def router_dir(self) -> Path:
        """What the router is told, and its admin socket."""
        return self.state / "router"

    @property
    def demo_file(self) -> Path:
        """The last demo's summary."""
        return self.state / "demo.json"

    @property
    def models_uri(self) -> str:
        """Where models are published: a folder's absolute path or ``s3://bucket/prefix``."""
        return self.models.uri or str(self.models_dir)

    @property
    def default_policy(self) -> PoolPolicy:
        """The policy of every pool that has none of its own."""
        return _policy_of(self.policies.default)

    @property
    def pool_policies(self) -> dict[str, PoolPolicy]:
        """Pool id to its own policy, completed from the default one."""
        return {pool: self.policy(pool) for pool in self.policies.pools}

    def policy(self, pool_id: str) -> PoolPolicy:
        """The rules of a pool: its own settings over the default ones."""
        own = self.policies.pools.get(pool_id)
        if own is None:
            return self.default_policy
        changes = {name: getattr(own, name) for name in own.model_fields_set}
        return _policy_of(self.policies.default.model_copy(update=changes))

    def expand(self, text: str) -> str:
        """The text with ``${FERMION_ROOT}`` and ``${FERMION_STATE}`` filled in; other variables stay as they are."""
        return _filled(text, _variables(self.root, self.state))

    def expand_spec(self, spec: Mapping[str, object]) -> dict[str, object]:
        """A job spec from a file with the two variables filled in, in all of its strings that are not nested."""
        return {key: self.expand(value) if isinstance(value, str) else value for key, value in spec.items()}


def load(path: Path | None = None, environ: Mapping[str, str] = os.environ, *, cwd: Path | None = None) -> Settings:
    """The settings of this installation.

    ``path`` is the configuration file, by default ``config/fermion.yaml`` in the root folder; ``cwd`` is where the
    search for the root folder begins, by default the working folder.

    Raises:
        SettingsInvalid: there is no configuration, or it has problems; all of them are listed.
    """
    root, state = locate(path, environ, cwd=cwd)
    file = path.resolve() if path is not None else root / CONFIGURATION
    if not file.is_file():
        raise SettingsInvalid(f"{file} does not exist; write it, or set FERMION_ROOT to the folder that holds config/.")
    shown = str(file.relative_to(root)) if file.is_relative_to(root) else str(file)
    database_url = _database_url(state, environ)
    document = _Document.parse(shown, file.read_text(encoding="utf-8", errors="replace"))
    document.expand(_variables(root, state))
    configuration = document.validate(root, database_url)
    if configuration is None:
        raise SettingsInvalid(document.message(), what="configuration")
    return Settings(
        **{name: getattr(configuration, name) for name in Configuration.model_fields},
        root=root,
        state=state,
        file=file,
        database_url=database_url,
        airflow_url=_airflow_url(configuration, state, environ),
    )


def locate(
    path: Path | None = None, environ: Mapping[str, str] = os.environ, *, cwd: Path | None = None
) -> tuple[Path, Path]:
    """(root folder, state folder) without reading the configuration, for what has to work when it is wrong.

    Raises:
        SettingsInvalid: there is no root folder anywhere.
    """
    root = _find_root(path, environ, cwd or Path.cwd())
    return root, Path(environ.get("FERMION_STATE") or root / "run").absolute()


def _find_root(path: Path | None, environ: Mapping[str, str], cwd: Path) -> Path:
    if environ.get("FERMION_ROOT"):
        return Path(environ["FERMION_ROOT"]).absolute()
    if path is not None and path.resolve().parent.name == CONFIGURATION.parent.name:
        return path.resolve().parent.parent
    checkout = Path(__file__).resolve().parents[2]
    here = cwd.absolute()
    for folder in (here, *here.parents, checkout):
        if (folder / CONFIGURATION).is_file():
            return folder
    if path is not None:
        return path.resolve().parent
    raise SettingsInvalid(
        f"there is no {CONFIGURATION} in {here}, in a folder above it, or in {checkout}; "
        "go to the platform's folder, or set FERMION_ROOT to it.",
        what="configuration",
    )


def _database_url(state: Path, environ: Mapping[str, str]) -> str:
    url = environ.get("FERMION_DATABASE_URL") or _line_of(state / "secrets" / "database_url")
    return url or f"sqlite:///{state / 'fermion.db'}"


def _airflow_url(configuration: Configuration, state: Path, environ: Mapping[str, str]) -> str:
    url = environ.get("FERMION_AIRFLOW_URL") or _line_of(state / "airflow" / "url")
    return (url or configuration.airflow.url).rstrip("/")


def _line_of(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def _variables(root: Path, state: Path) -> dict[str, str]:
    return {"FERMION_ROOT": str(root), "FERMION_STATE": str(state)}


def _root_of(info: ValidationInfo) -> Path:
    return Path(info.context["root"]) if info.context else Path.cwd()


def _place(text: str, root: Path) -> str:
    """``s3://bucket/prefix`` as it is, a folder as its absolute path."""
    if text.startswith("s3://"):
        if re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^/]+)*/?", text) is None:
            raise ValueError(
                f"{text!r} is not s3://bucket/prefix; a bucket has 3 to 63 lower-case letters, digits, . and -"
            )
        return text.rstrip("/")
    path = _path_in(text)
    if "://" in path or not path:
        raise ValueError(f"{text!r} is neither a folder nor s3://bucket/prefix")
    return os.path.normpath(root / path)


def _path_in(text: str) -> str:
    """The path that a path or a ``file://`` URL names."""
    return unquote(text.removeprefix("file://")) if text.startswith("file://") else text


def _filled(text: str, variables: Mapping[str, str]) -> str:
    """The text with ``${NAME}`` filled in; inside of a ``file://`` URL, as a URL has to write it."""
    for name, value in variables.items():
        text = text.replace(f"${{{name}}}", quote(value) if text.startswith("file://") else value)
    return text


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * GIB)


def _policy_of(policy: PolicySettings) -> PoolPolicy:
    values: dict[str, Any] = {name: getattr(policy, name) for name in PolicySettings.model_fields}
    values["teams"] = {name: TeamQuota(**quota.model_dump()) for name, quota in policy.teams.items()}
    values["team_budgets"] = {name: Budget(**budget.model_dump()) for name, budget in policy.team_budgets.items()}
    values["user_budget"] = None if policy.user_budget is None else Budget(**policy.user_budget.model_dump())
    digest = hashlib.sha256(policy.model_dump_json(exclude={"policy_version"}).encode()).hexdigest()
    values["policy_version"] = policy.policy_version or digest[:12]
    return PoolPolicy(**values)


# --- reading the file ------------------------------------------------------------------------------------------------

Where = tuple[str | int, ...]
"""A place in the document: the keys and indices that lead to it."""


class _Document:
    """The configuration as plain data that remembers where everything stands, and what was found wrong with it."""

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self._data: object = {}
        self._keys: dict[Where, tuple[int, int]] = {}
        self._values: dict[Where, tuple[int, int]] = {}
        self._problems: set[tuple[int, int, str]] = set()

    @classmethod
    def parse(cls, shown: str, text: str) -> Self:
        """The document.

        Raises:
            SettingsInvalid: it is not YAML.
        """
        document = cls(shown)
        yaml = YAML(typ="safe", pure=True)
        yaml.allow_duplicate_keys = True
        try:
            node = yaml.compose(text)
            document._data = yaml.load(text) or {}
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = f":{mark.line + 1}:{mark.column + 1}" if mark is not None else ""
            raise SettingsInvalid(
                f"{shown}{place}: this is not YAML: {error.problem}.", what="configuration"
            ) from error
        except YAMLError as error:
            raise SettingsInvalid(f"{shown}: this is not YAML: {error}.", what="configuration") from error
        if node is not None:
            document._note(node, ())
        return document

    def expand(self, variables: Mapping[str, str]) -> None:
        """Fill in ``${NAME}`` in every string."""
        self._data = self._expanded(self._data, (), variables)

    def validate(self, root: Path, database_url: str) -> Configuration | None:
        """The configuration, or None when anything at all was wrong."""
        configuration = None
        try:
            configuration = Configuration.model_validate(self._data, context={"root": root})
        except ValidationError as error:
            for details in error.errors(include_url=False):
                self._take(details["type"], details["loc"], details)
        for where, message, at_key in _cross_problems(self._data, root, database_url):
            self._refuse(where, message, at_key=at_key)
        return None if self._problems else configuration

    def message(self) -> str:
        """Every problem on a line of its own, in the order of the file."""
        return "\n".join(
            f"{self._shown}:{line}:{column}: {message}" for line, column, message in sorted(self._problems)
        )

    def _note(self, node: Node, where: Where) -> None:
        """Remember the places of a node and all under it, and refuse keys that stand there twice."""
        self._values.setdefault(where, _place_of(node))
        if len(where) > 20:
            return
        if isinstance(node, SequenceNode):
            for index, item in enumerate(node.value):
                self._note(item, (*where, index))
        if not isinstance(node, MappingNode):
            return
        for key, value in node.value:
            inner = (*where, str(key.value) if isinstance(key, ScalarNode) else "?")
            if inner in self._keys and key.value != "<<":
                line = self._keys[inner][0]
                self._problems.add(
                    (*_place_of(key), f"{_dotted(inner)}: stands in line {line} already; keep one of the two.")
                )
            self._keys.setdefault(inner, _place_of(key))
            self._note(value, inner)

    def _expanded(self, value: object, where: Where, variables: Mapping[str, str]) -> object:
        if isinstance(value, dict):
            return {key: self._expanded(item, (*where, key), variables) for key, item in value.items()}
        if isinstance(value, list):
            return [self._expanded(item, (*where, index), variables) for index, item in enumerate(value)]
        if not isinstance(value, str):
            return value
        for name in re.findall(r"\$\{([^}]*)\}?", value):
            if name not in variables:
                self._refuse(where, f"${{{name}}} is not known; only {' and '.join(variables)} can stand here.")
        return _filled(value, variables)

    def _take(self, kind: str, where: Where, details: Mapping[str, Any]) -> None:
        """Add one of pydantic's findings in our words."""
        where = tuple(part for part in where if part != "[key]")
        if kind == "extra_forbidden":
            known = _known_keys(Configuration, where[:-1])
            near = did_you_mean(str(where[-1]), known)
            fix = f"did you mean {near}?" if near else f"known are: {', '.join(known)}."
            return self._refuse(where, f"there is no such setting; {fix}", at_key=True)
        if kind in ("union_tag_invalid", "union_tag_not_found"):
            tags = "process, docker, kubernetes, karmada"
            return self._refuse((*where, "kind"), f"a cluster's kind must be one of: {tags}.")
        if kind == "missing":
            return self._refuse(where, f"is missing. {_meaning(where)}", at_key=True)
        cause = (details.get("ctx") or {}).get("error")
        words = str(cause) if cause is not None else _in_our_words(details)
        return self._refuse(where, f"{words.rstrip('.')}. {_meaning(where)}".strip(), at_key="[key]" in details["loc"])

    def _refuse(self, where: Where, message: str, *, at_key: bool = False) -> None:
        self._problems.add(
            (*self._position(where, at_key=at_key), f"{_dotted(self._known(where)) or 'file'}: {message}")
        )

    def _position(self, where: Where, *, at_key: bool) -> tuple[int, int]:
        where = self._known(where)
        while where:
            places = self._keys if at_key or where not in self._values else self._values
            if where in places:
                return places[where]
            where, at_key = where[:-1], True
        return self._values.get((), (1, 1))

    def _known(self, where: Where) -> Where:
        """The place without the parts that only pydantic knows (the chosen kind of a cluster)."""
        found: Where = ()
        for index, part in enumerate(where):
            is_last = index == len(where) - 1
            if is_last or (*found, part) in self._values:
                found = (*found, part)
        return found


def _place_of(node: Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _dotted(where: Where) -> str:
    return ".".join(str(part) for part in where)


def _in_our_words(details: Mapping[str, Any]) -> str:
    words = str(details["msg"]).replace("Input should", "it should")
    shown = repr(details["input"])
    return f"{words}, not {shown[:60]}" if not isinstance(details["input"], dict | list | tuple) else words


def _models_at(kind: Any, where: Where) -> Iterator[type[BaseModel]]:
    """The models that describe the place ``where`` under a type: several where a cluster's kind is not known."""
    if typing.get_origin(kind) in (Annotated, typing.Union, types.UnionType):
        for inner in typing.get_args(kind):
            yield from _models_at(inner, where)
    elif typing.get_origin(kind) is dict:
        yield from _models_at(typing.get_args(kind)[1], where[1:]) if where else ()
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        if not where:
            yield kind
        elif where[0] in kind.model_fields:
            yield from _models_at(kind.model_fields[str(where[0])].annotation, where[1:])
        elif "kind" in kind.model_fields and where[0] in typing.get_args(kind.model_fields["kind"].annotation):
            yield from _models_at(kind, where[1:])


def _known_keys(model: type[BaseModel], where: Where) -> list[str]:
    return list(dict.fromkeys(name for found in _models_at(model, where) for name in found.model_fields))


def _meaning(where: Where) -> str:
    """The first sentence of what a setting means, or nothing for a place that has no setting of its own."""
    for model in _models_at(Configuration, where[:-1]):
        field = model.model_fields.get(str(where[-1])) if where else None
        if field is not None and field.description:
            return re.split(r"(?<=\.)\s", " ".join(field.description.split()), maxsplit=1)[0]
    return ""


# --- what one line alone cannot show ---------------------------------------------------------------------------------


Finding = tuple[Where, str, bool]
"""Where, what and what to do, and whether the key (not the value) is at fault."""


def _cross_problems(data: object, root: Path, database_url: str) -> Iterator[Finding]:
    """What does not fit together; works on unchecked data, so that it is reported beside everything else."""
    clusters = _mapping(data, "clusters")
    yield from _pools_nowhere(data, clusters)
    yield from _datasets_outside(data, root)
    if _mapping(data, "metrics").get("looks") == "prometheus" and not _mapping(data, "metrics").get("prometheus"):
        yield (
            ("metrics", "looks"),
            "no Prometheus is configured; set metrics.prometheus, or make looks from router.",
            False,
        )
    if _mapping(data).get("environment") == "production":
        yield from _not_for_production(data, clusters, database_url)


def _pools_nowhere(data: object, clusters: Mapping[str, object]) -> Iterator[Finding]:
    for pool in _mapping(data, "policies", "pools"):
        cluster, slash, model = str(pool).partition("/")
        if slash and cluster not in clusters:
            near = did_you_mean(cluster, map(str, clusters))
            fix = f"did you mean {near}/{model}?" if near else "add the cluster, or remove the policy."
            yield ("policies", "pools", pool), f"cluster {cluster!r} is not under clusters; {fix}", True


def _datasets_outside(data: object, root: Path) -> Iterator[Finding]:
    roots = [place for item in _items(data, "data", "roots") if (place := _place_or_none(item, root))]
    for name, uri in _mapping(data, "datasets").items():
        place = _place_or_none(uri, root)
        if place is not None and not any(place == inside or place.startswith(f"{inside}/") for inside in roots):
            yield ("datasets", name), f"{uri} lies outside of data.roots; move it, or add its folder there.", False


def _not_for_production(data: object, clusters: Mapping[str, object], database_url: str) -> Iterator[Finding]:
    for name in clusters:
        if _mapping(data, "clusters", name).get("kind") == "process":
            message = "a process cluster isolates nothing; production needs docker, kubernetes or karmada."
            yield ("clusters", name, "kind"), message, False
    if _items(data, "code", "file_roots"):
        message = "file:// repositories are for embedded platforms; production needs https or ssh."
        yield ("code", "file_roots"), message, False
    if database_url.startswith("sqlite"):
        yield ("environment",), "production needs Postgres; set FERMION_DATABASE_URL.", False


def _place_or_none(value: object, root: Path) -> str | None:
    try:
        return _place(value, root) if isinstance(value, str) else None
    except ValueError:
        return None


def _mapping(data: object, *where: str) -> Mapping[str, object]:
    for key in where:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


def _items(data: object, *where: str) -> list[object]:
    value = _mapping(data, *where[:-1]).get(where[-1])
    return value if isinstance(value, list) else []
