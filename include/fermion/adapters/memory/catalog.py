"""Nodes, pools, images and dataset versions in memory. Keeps ``ports.Catalog``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from fermion.adapters.memory.tables import Draft
from fermion.domain.artifacts import DatasetVersion, Image
from fermion.domain.pools import Node


class MemoryCatalog:
    """What was synced or registered, as last seen."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    def put_nodes(self, cluster: str, nodes: Sequence[Node]) -> None:
        """Replace that cluster's."""
        stored = self._draft.write("nodes")
        for key in [key for key in stored if key[0] == cluster]:
            del stored[key]
        stored.update({(cluster, node.name): replace(node, cluster=cluster) for node in nodes})

    def nodes(self, *, cluster: str | None = None) -> Sequence[Node]:
        """By cluster and name."""
        stored = self._draft.see("nodes")
        return [stored[key] for key in sorted(stored) if cluster is None or key[0] == cluster]

    def pool_first_seen(self, pool_id: str, *, now: datetime) -> datetime:
        """In a transaction that only reads, a pool not seen before is answered with ``now`` and recorded later."""
        if self._draft.read_only:
            return self._draft.see("pools").get(pool_id, now)  # type: ignore[no-any-return]
        seen: datetime = self._draft.write("pools").setdefault(pool_id, now)
        return seen

    def put_image(self, image: Image) -> None:
        """Insert or replace."""
        self._draft.write("images")[image.id] = image

    def images(self) -> Sequence[Image]:
        """By id."""
        stored = self._draft.see("images")
        return [stored[key] for key in sorted(stored)]

    def put_dataset_version(self, version: DatasetVersion) -> bool:
        """Insert; of one that is there only the place is renewed."""
        key = (version.dataset, version.checksum)
        stored = self._draft.write("datasets")
        if key in stored:
            stored[key] = replace(stored[key], uri=version.uri)
            return False
        stored[key] = version
        return True

    def dataset_versions(self, dataset: str | None = None) -> Sequence[DatasetVersion]:
        """Newest first."""
        stored: Sequence[DatasetVersion] = list(self._draft.see("datasets").values())[::-1]
        newest = sorted(stored, key=lambda version: version.created_at, reverse=True)
        if dataset is None:
            return [replace(version, files=()) for version in newest]
        return [version for version in newest if version.dataset == dataset]
