"""Published models staged beside the replicas of one machine: the dataset cache's content-addressed folders, for models."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta

from fermion.adapters.datasets.cache import DatasetCache, entry_name
from fermion.adapters.datasets.origin import Origin
from fermion.adapters.files.shelf import Shelf
from fermion.domain.artifacts import DatasetVersion, ModelVersion
from fermion.domain.retention import Freed

LEFTOVERS = timedelta(days=1)


class StagedModels:
    """Keeps ``ports.ModelCache`` on a ``Shelf``, reading from ``origin``, which must reach the model repository.

    ``size_limit`` (bytes, None: none) is kept by ``tidy`` alone: only there is known what is needed, and a server reads its
    model by its path. So a new version never takes the place of one that serves.
    """

    def __init__(self, shelf: Shelf, origin: Origin, *, size_limit: int | None = None) -> None:
        self._shelf = shelf
        self._size_limit = size_limit
        self._cache = DatasetCache(shelf, origin, kind="model", instead="deploy another version")

    def stage(self, version: ModelVersion) -> str:
        """See ``ports.ModelCache``: the path of a read-only folder."""
        return self._cache.stage(
            DatasetVersion(
                dataset=version.path,
                uri=version.uri,
                checksum=version.checksum,
                files=version.files,
                created_at=version.created_at,
            )
        )

    def tidy(self, needed: Collection[str], *, dry_run: bool = False) -> Freed:
        """See ``ports.ModelCache``."""
        keep = {entry_name(checksum) for checksum in needed}
        return self._shelf.tidy(keep=keep, leftovers_after=LEFTOVERS, limit=self._size_limit, dry_run=dry_run)
