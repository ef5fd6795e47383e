"""The composition root: the only builder of adapters. Each is imported when it is built, so that a task pays for what it uses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fermion.errors import DriverCannot, NotFound
from fermion.usecases.context import Context, Rules

if TYPE_CHECKING:
    from fermion.adapters.datasets.origin import Origins
    from fermion.adapters.local_platform.installation import LocalPlatform
    from fermion.ports import Clock, Driver, ModelRepository, Runs
    from fermion.settings import Settings

__all__ = ["LocalPlatform", "build", "local_platform", "migrate", "open_runs"]


def build(settings: Settings | None = None, *, database_url: str | None = None) -> Context:
    """The platform. Without arguments it is the installation that the environment means; kept per process and database.

    Raises:
        SettingsInvalid: the configuration is wrong; every problem with its line.
    """
    if settings is not None:
        return _build(settings, database_url or settings.database_url)
    return _built(database_url)


@cache
def _built(database_url: str | None) -> Context:
    from fermion.settings import load

    settings = load()
    return _build(settings, database_url or settings.database_url)


def _build(settings: Settings, database_url: str) -> Context:
    from fermion.adapters.datasets.folder import Folders
    from fermion.adapters.datasets.origin import Origin, Origins
    from fermion.adapters.machine import ChoicesFile, SystemClock
    from fermion.adapters.report.folder import FolderReports
    from fermion.adapters.sql import open_store

    clock = SystemClock()
    roots = [Path(root.removeprefix("file://")) for root in settings.data.roots if not root.startswith("s3://")]
    by_scheme: dict[str, Origin] = {"file": Folders(roots, index=settings.work_dir / "cache" / "scans")}
    source = Origins(by_scheme)
    return Context(
        store=open_store(database_url),
        clock=clock,
        drivers={name: _driver(settings, name, clock, source) for name in settings.clusters},
        dataset_source=source,
        models=_models(settings),
        reports=FolderReports(settings.reports_dir),
        choices=ChoicesFile(settings.choices_file),
        rules=Rules(
            policies=settings.pool_policies,
            default_policy=settings.default_policy,
            datasets=dict(settings.datasets),
            memory_mib=settings.defaults.memory_mib,
        ),
        runs=open_runs(settings),
    )


def _driver(settings: Settings, name: str, clock: Clock, source: Origins) -> Driver:
    from fermion.adapters import process
    from fermion.adapters.datasets.cache import DatasetCache
    from fermion.adapters.files.shelf import Shelf
    from fermion.adapters.git.remotes import Rules as CodeRules
    from fermion.adapters.git.repositories import Repositories

    cluster = settings.clusters[name]
    if cluster.kind != "process":
        raise DriverCannot(
            f"cluster {name!r} is of kind {cluster.kind!r}, which this version cannot drive yet.", what=name
        )
    cache_dir = settings.work_dir / "cache"
    embedded = settings.environment == "embedded"
    return process.build(
        cluster=name,
        root=settings.work_dir,
        clock=clock,
        datasets=DatasetCache(Shelf(cache_dir / "datasets", size_limit=settings.caches.datasets_bytes), source),
        code=Repositories(
            cache_dir,
            rules=CodeRules(
                hosts=settings.code.hosts,
                file_roots=[Path(root) for root in settings.code.file_roots] if embedded else [],
                embedded=embedded,
            ),
        ),
        locks={image: Path(each.lock) for image, each in settings.images.items()},
        declared_slots=cluster.declared_slots,
        production=not embedded,
    )


def _models(settings: Settings) -> ModelRepository:
    from fermion.adapters.models.local import LocalModels

    if settings.models_uri.startswith("s3://"):
        raise DriverCannot("models.uri names an object store, which this version cannot reach yet.", what="models")
    return LocalModels(Path(settings.models_uri.removeprefix("file://")))


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


def migrate(database_url: str) -> str:
    """Bring the platform's own database to this program's schema; the revision."""
    from fermion.adapters.sql import migrate as run

    return run(database_url)


def local_platform(environ: Mapping[str, str]) -> LocalPlatform:
    """The embedded installation that ``environ`` means: FERMION_STATE, else ``run`` in FERMION_ROOT, else in the checkout."""
    from fermion.adapters.local_platform.installation import LocalPlatform
    from fermion.adapters.local_platform.layout import Layout

    root = Path(environ.get("FERMION_ROOT") or Path(__file__).parents[2]).resolve()
    state = Path(environ.get("FERMION_STATE") or root / "run").resolve()
    return LocalPlatform(Layout(root=root, state=state), caller=environ, migrate=migrate)
