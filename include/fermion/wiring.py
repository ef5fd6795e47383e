"""The composition root: the only builder of adapters. Each is imported when it is built, so that a task pays for what it uses."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from fermion.errors import DriverCannot, NotFound, SettingsInvalid
from fermion.usecases.context import Context, Rules

if TYPE_CHECKING:
    from fermion.adapters.datasets.origin import Origin, Origins
    from fermion.adapters.git.repositories import Repositories
    from fermion.adapters.local_platform.installation import LocalPlatform
    from fermion.adapters.s3.client import S3Store
    from fermion.domain.retention import Retention
    from fermion.ports import Clock, Driver, EngineUpkeep, Inference, Measurements, ModelCache, ModelRepository, Runs
    from fermion.settings import DataSettings, ModelsSettings, Settings

__all__ = ["LocalPlatform", "build", "local_platform", "migrate", "open_runs", "preload", "router_command"]


Secrets = Callable[[str], tuple[str, str] | None]
"""The name and secret that a connection holds, or None. Airflow's processes give one; elsewhere the machine's own keys count."""


def build(
    settings: Settings | None = None, *, database_url: str | None = None, secrets: Secrets | None = None
) -> Context:
    """The platform. Without settings it is the installation that the environment means; kept per process and database.

    Raises:
        SettingsInvalid: the configuration is wrong; every problem with its line.
    """
    if settings is not None:
        return _build(settings, database_url or settings.database_url, secrets)
    return _built(database_url, secrets)


@cache
def _built(database_url: str | None, secrets: Secrets | None) -> Context:
    from fermion.settings import load

    settings = load()
    return _build(settings, database_url or settings.database_url, secrets)


def _build(settings: Settings, database_url: str, secrets: Secrets | None) -> Context:
    from fermion.adapters.machine import ChoicesFile, SystemClock
    from fermion.adapters.report.folder import FolderReports
    from fermion.adapters.sql import open_store

    clock = SystemClock()
    source = _datasets(settings, secrets)
    return Context(
        store=open_store(database_url),
        clock=clock,
        drivers={name: _driver(settings, name, clock, source, secrets) for name in settings.clusters},
        dataset_source=source,
        models=_models(settings, secrets),
        reports=FolderReports(settings.reports_dir),
        choices=ChoicesFile(settings.choices_file),
        rules=Rules(
            policies=settings.pool_policies,
            default_policy=settings.default_policy,
            datasets=dict(settings.datasets),
            memory_mib=settings.defaults.memory_mib,
            retention=_retention(settings),
            looks_from_measurements=settings.metrics.looks == "prometheus",
        ),
        runs=open_runs(settings),
        inference=_inference(),
        upkeep=_upkeep(settings),
        measurements=_measurements(settings, secrets),
    )


def _inference() -> Inference:
    from fermion.adapters.inference.client import ProtocolInference

    return ProtocolInference()


def _measurements(settings: Settings, secrets: Secrets | None) -> Measurements | None:
    wanted = settings.metrics
    if wanted.prometheus is None:
        return None
    from fermion.adapters.prometheus import PrometheusMeasurements

    keys = secrets(wanted.connection) if wanted.connection and secrets else None
    return PrometheusMeasurements(wanted.prometheus, labels=wanted.labels, keys=keys)


def _datasets(settings: Settings, secrets: Secrets | None) -> Origins:
    from fermion.adapters.datasets.folder import Folders
    from fermion.adapters.datasets.origin import Origins

    index = settings.work_dir / "cache" / "scans"
    prefixes = [root.removeprefix("s3://") for root in settings.data.roots if root.startswith("s3://")]
    folders = [Path(root.removeprefix("file://")) for root in settings.data.roots if not root.startswith("s3://")]
    by_scheme: dict[str, Origin] = {"file": Folders(folders, index=index)}
    if prefixes:
        from fermion.adapters.datasets.prefix import Prefixes

        by_scheme["s3"] = Prefixes(_object_store(settings.data, secrets), allowed=prefixes, index=index)
    return Origins(by_scheme)


def _driver(settings: Settings, name: str, clock: Clock, source: Origins, secrets: Secrets | None) -> Driver:
    from fermion.adapters import process
    from fermion.adapters.datasets.cache import DatasetCache
    from fermion.adapters.envoy.router import EnvoyRouter
    from fermion.adapters.files.shelf import Shelf, linked_below
    from fermion.adapters.process.environments import About

    cluster = settings.clusters[name]
    if cluster.kind != "process":
        raise DriverCannot(
            f"cluster {name!r} is of kind {cluster.kind!r}, which this version cannot drive yet.", what=name
        )
    datasets = Shelf(
        settings.work_dir / "cache" / "datasets",
        size_limit=settings.caches.datasets_bytes,
        in_use=partial(linked_below, settings.work_dir / "workloads", "*/data/*"),
    )
    return process.build(
        cluster=name,
        root=settings.work_dir,
        clock=clock,
        datasets=DatasetCache(datasets, source),
        code=_code(settings, secrets),
        models=_staged_models(settings, secrets),
        router=EnvoyRouter(settings.router_dir, clock),
        locks={image: Path(each.lock) for image, each in settings.images.items()},
        about={image: About(each.category, each.framework) for image, each in settings.images.items()},
        declared_slots=cluster.declared_slots,
        measure_devices=cluster.measure_devices,
        production=settings.environment == "production",
        environments_limit_bytes=settings.caches.images_bytes,
    )


def _staged_models(settings: Settings, secrets: Secrets | None) -> ModelCache:
    """Published models beside the replicas, whatever the repository is."""
    from fermion.adapters.datasets.folder import Folders
    from fermion.adapters.datasets.origin import Origins
    from fermion.adapters.files.shelf import Shelf
    from fermion.adapters.models.staged import StagedModels

    by_scheme: dict[str, Origin] = {}
    uri = settings.models_uri
    if uri.startswith("s3://"):
        from fermion.adapters.datasets.prefix import Prefixes

        by_scheme["s3"] = Prefixes(_object_store(settings.models, secrets), allowed=[uri.removeprefix("s3://")])
    else:
        by_scheme["file"] = Folders([Path(uri.removeprefix("file://"))])
    shelf = Shelf(settings.work_dir / "cache" / "models")
    return StagedModels(shelf, Origins(by_scheme), size_limit=settings.caches.models_bytes)


def _code(settings: Settings, secrets: Secrets | None) -> Repositories:
    from fermion.adapters.git.remotes import Rules as CodeRules
    from fermion.adapters.git.repositories import Repositories

    embedded = settings.environment == "embedded"
    connection = settings.code.connection
    return Repositories(
        settings.work_dir / "cache",
        rules=CodeRules(
            hosts=settings.code.hosts,
            file_roots=[Path(root) for root in settings.code.file_roots] if embedded else [],
            embedded=embedded,
        ),
        credentials=lambda host: secrets(connection) if connection and secrets else None,
        size_limit=settings.caches.code_bytes,
    )


def _models(settings: Settings, secrets: Secrets | None) -> ModelRepository:
    uri = settings.models_uri
    if uri.startswith("s3://"):
        from fermion.adapters.models.s3 import S3Models

        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        return S3Models(_object_store(settings.models, secrets), bucket=bucket, prefix=prefix)
    from fermion.adapters.models.local import LocalModels

    return LocalModels(Path(uri.removeprefix("file://")))


def _object_store(where: DataSettings | ModelsSettings, secrets: Secrets | None) -> S3Store:
    from fermion.adapters.s3.client import S3Options, S3Store

    keys = secrets(where.connection) if where.connection and secrets else None
    return S3Store(
        S3Options(
            endpoint_url=where.endpoint,
            region=where.region,
            access_key=keys[0] if keys else None,
            secret_key=keys[1] if keys else None,
        )
    )


def _retention(settings: Settings) -> Retention:
    from fermion.domain.retention import Retention

    kept = settings.retention
    return Retention(
        runs=kept.runs,
        workloads=kept.workloads,
        events=kept.events,
        decisions=kept.decisions,
        points=kept.points,
        reports=kept.reports,
    )


def _upkeep(settings: Settings) -> EngineUpkeep | None:
    """Only the embedded installation knows where Airflow's database is; elsewhere its own operators clean it."""
    if settings.environment != "embedded":
        return None
    from fermion.adapters.engine.upkeep import AirflowUpkeep

    def environment() -> Mapping[str, str]:
        return _local_platform(settings.root, settings.state, os.environ).airflow_environment()

    return AirflowUpkeep(environment, settings.state / "airflow" / "logs")


def open_runs(settings: Settings) -> Runs:
    """The workflow engine of this installation, as its local administrator.

    Raises:
        NotFound: (at the first call) no credentials were made yet: the platform was never up.
    """
    from fermion.adapters.engine import RestRuns

    def credentials() -> tuple[str, str]:
        path = settings.secrets_dir / "passwords.json"
        try:
            passwords = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise NotFound(
                f"{path} does not exist: the platform was never up here. `make up` starts it.", what="credentials"
            ) from error
        return "admin", str(passwords["admin"])

    return RestRuns(settings.airflow_url, credentials)


def preload() -> None:
    """Import what this installation imports sooner or later, for a process that forks others.

    The platform that is built for it is thrown away: nothing is connected and no file is opened.

    Raises:
        SettingsInvalid: the configuration is wrong; every problem with its line.
    """
    import fermion.adapters.report
    import fermion.usecases
    from fermion.settings import load

    settings = load()
    _build(settings, settings.database_url, None)
    for package in (fermion.usecases, fermion.adapters.report):
        for module in iter_modules(package.__path__, f"{package.__name__}."):
            import_module(module.name)
    for library in ("git", "psycopg"):
        with contextlib.suppress(ImportError):  # it says so when it is needed
            import_module(library)


def migrate(database_url: str) -> str:
    """Bring the platform's own database to this program's schema; the revision."""
    from fermion.adapters.sql import migrate as run

    return run(database_url)


def router_command(settings: Settings, *, host: str, port: int, log: Path) -> list[str]:
    """What has to be executed to be this installation's router, where no supervisor of ours does it. Its files are prepared."""
    from fermion.adapters.envoy import bootstrap

    bootstrap.prepare(settings.router_dir, port=port, host=host, log=log, scrape_port=settings.metrics.scrape_port)
    return bootstrap.command(settings.router_dir)


def local_platform(environ: Mapping[str, str]) -> LocalPlatform:
    """The embedded installation that ``environ`` means: FERMION_STATE, else ``run`` in FERMION_ROOT, else in the checkout."""
    root = Path(environ.get("FERMION_ROOT") or Path(__file__).parents[2]).resolve()
    state = Path(environ.get("FERMION_STATE") or root / "run").resolve()
    return _local_platform(root, state, environ)


def _local_platform(root: Path, state: Path, environ: Mapping[str, str]) -> LocalPlatform:
    from fermion.adapters.local_platform.installation import LocalPlatform
    from fermion.adapters.local_platform.layout import Layout

    def scrape_port() -> int | None:
        from fermion.settings import load

        try:
            return load(environ=environ).metrics.scrape_port
        except SettingsInvalid:
            return None  # Everything else says so too, and it is no reason to stay down.

    return LocalPlatform(Layout(root=root, state=state), caller=environ, migrate=migrate, scrape_port=scrape_port)
