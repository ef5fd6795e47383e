"""Nodes, pools, images and dataset versions in the database. Keeps ``ports.Catalog``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import JSON, Text, bindparam, cast, delete, insert, select, update

from fermion.adapters.sql.codec import Values, image_of, image_values, node_of, node_values
from fermion.adapters.sql.link import Link
from fermion.adapters.sql.tables import dataset_files, dataset_versions, images, pools
from fermion.adapters.sql.tables import nodes as node_rows
from fermion.domain.artifacts import DatasetVersion, FileEntry, Image
from fermion.domain.pools import Node

# JSON is left as the text it is written in: nodes are read far more often than they change.
_NODE = [cast(each, Text).label(each.name) if isinstance(each.type, JSON) else each for each in node_rows.c]
_NODES = select(*_NODE).order_by(node_rows.c.cluster, node_rows.c.name)
_VERSIONS = select(dataset_versions).order_by(dataset_versions.c.created_at.desc(), dataset_versions.c.seq.desc())
_FILES = (
    select(dataset_files)
    .join(dataset_versions, dataset_versions.c.seq == dataset_files.c.version_seq)
    .where(dataset_versions.c.dataset == bindparam("dataset"))
    .order_by(dataset_files.c.version_seq, dataset_files.c.number)
)
_MOVE = (
    update(dataset_versions)
    .where(dataset_versions.c.dataset == bindparam("of"), dataset_versions.c.checksum == bindparam("content"))
    .where(dataset_versions.c.uri != bindparam("place"))  # nearly always it is there already: nothing is locked then
    .values(uri=bindparam("place"))
)


class SqlCatalog:
    """What was synced or registered, as last seen."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._first_seen: dict[str, datetime] = {}

    def put_nodes(self, cluster: str, nodes: Sequence[Node]) -> None:
        """Upsert what is there, then delete what is not."""
        rows = sorted((node_values(node, cluster) for node in nodes), key=lambda row: str(row["name"]))
        if rows:
            self._link.write(self._link.upsert(node_rows), rows)
        names = [row["name"] for row in rows]
        gone = delete(node_rows).where(node_rows.c.cluster == cluster, node_rows.c.name.not_in(names))
        self._link.write(gone)

    def nodes(self, *, cluster: str | None = None) -> Sequence[Node]:
        """By cluster and name."""
        query = _NODES if cluster is None else _NODES.where(node_rows.c.cluster == cluster)
        return [node_of(row) for row in self._link.rows(query)]

    def pool_first_seen(self, pool_id: str, *, now: datetime) -> datetime:
        """In a transaction that only reads, a pool not seen before is answered with ``now`` and recorded later."""
        if pool_id not in self._first_seen:
            self._first_seen = self._read_first_seen()
        if pool_id not in self._first_seen and not self._link.read_only:
            self._link.write(self._link.insert(pools).on_conflict_do_nothing(), {"id": pool_id, "first_seen_at": now})
            self._first_seen = self._read_first_seen()
        return self._first_seen.get(pool_id, now)

    def _read_first_seen(self) -> dict[str, datetime]:
        """All of them in one statement: who asks for one asks for the others too, and a row is never changed."""
        return {row.id: row.first_seen_at for row in self._link.rows(select(pools))}

    def put_image(self, image: Image) -> None:
        """Upsert."""
        self._link.write(self._link.upsert(images), image_values(image))

    def images(self) -> Sequence[Image]:
        """By id."""
        return [image_of(row) for row in self._link.rows(select(images).order_by(images.c.id))]

    def put_dataset_version(self, version: DatasetVersion) -> bool:
        """The version and its files, together or not at all; of one that is there only the place is renewed."""
        row = {
            "dataset": version.dataset,
            "checksum": version.checksum,
            "uri": version.uri,
            "created_at": version.created_at,
        }
        statement = self._link.insert(dataset_versions).on_conflict_do_nothing()
        seq = self._link.scalar(statement.returning(dataset_versions.c.seq), row)
        if seq is None:
            self._link.write(_MOVE, {"of": version.dataset, "content": version.checksum, "place": version.uri})
            return False
        files: list[Values] = [
            {"version_seq": seq, "number": number, "path": file.path, "size": file.size, "sha256": file.sha256}
            for number, file in enumerate(version.files)
        ]
        if files:
            self._link.write(insert(dataset_files), files)
        return True

    def dataset_versions(self, dataset: str | None = None) -> Sequence[DatasetVersion]:
        """Newest first."""
        query = _VERSIONS if dataset is None else _VERSIONS.where(dataset_versions.c.dataset == dataset)
        files = {} if dataset is None else self._files(dataset)
        return [
            DatasetVersion(
                dataset=row.dataset,
                uri=row.uri,
                checksum=row.checksum,
                files=tuple(files.get(row.seq, ())),
                created_at=row.created_at,
            )
            for row in self._link.rows(query)
        ]

    def _files(self, dataset: str) -> Mapping[int, Sequence[FileEntry]]:
        files: dict[int, list[FileEntry]] = defaultdict(list)
        for row in self._link.rows(_FILES, {"dataset": dataset}):
            files[row.version_seq].append(FileEntry(path=row.path, size=row.size, sha256=row.sha256))
        return files
