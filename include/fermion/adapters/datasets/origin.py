"""What every kind of dataset origin can do, and the one that chooses by the URI's scheme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

from fermion.domain.artifacts import DatasetVersion, FileEntry
from fermion.domain.problems import Problem
from fermion.errors import RequestRefused


class Origin(Protocol):
    """One kind of place that datasets come from."""

    def scan(self, dataset: str, uri: str, *, now: datetime) -> DatasetVersion:
        """See ``ports.DatasetSource``."""
        ...

    def fetch(self, version: DatasetVersion, wanted: Sequence[FileEntry], *, tree: Path, parts: Path) -> Sequence[str]:
        """Bring those files of the version into ``tree``, verified and durable; a sentence for each that is not it any more.

        ``parts`` is a folder for what a later call can go on from.
        """
        ...


class Origins:
    """Keeps ``ports.DatasetSource`` by handing each URI to the origin of its scheme; ``file`` also takes plain paths."""

    def __init__(self, by_scheme: Mapping[str, Origin]) -> None:
        self._by_scheme = dict(by_scheme)

    def scan(self, dataset: str, uri: str, *, now: datetime) -> DatasetVersion:
        """See ``ports.DatasetSource``."""
        return self._of(dataset, uri).scan(dataset, uri, now=now)

    def fetch(self, version: DatasetVersion, wanted: Sequence[FileEntry], *, tree: Path, parts: Path) -> Sequence[str]:
        """See ``Origin.fetch``."""
        return self._of(version.dataset, version.uri).fetch(version, wanted, tree=tree, parts=parts)

    def _of(self, dataset: str, uri: str) -> Origin:
        scheme = uri.partition(":")[0].lower() if "://" in uri else "file"
        if scheme not in self._by_scheme:
            known = ", ".join(f"{each}://" for each in sorted(self._by_scheme))
            message = f"datasets cannot be read from {scheme}:// ({uri})."
            more = ", or add its prefix to data.roots in config/fermion.yaml" if scheme == "s3" else ""
            raise refused(dataset, "unknown_scheme", message, f"Use one of {known}{more}.")
        return self._by_scheme[scheme]


def field_of(dataset: str) -> str:
    """The request's field that a dataset's problems are put to."""
    return f"datasets.{dataset}"


def refused(dataset: str, code: str, message: str, fix: str) -> RequestRefused:
    """The error for one problem with a dataset."""
    problem = Problem(field=field_of(dataset), code=code, message=message, fix=fix)
    return RequestRefused([problem], what=f"dataset '{dataset}'")


def difference(entry: FileEntry, *, size: int, sha256: str) -> str | None:
    """How a file differs from the version's entry, as a sentence; None when it does not."""
    if size != entry.size:
        return f"{entry.path} has {size} bytes, the version {entry.size}"
    return None if sha256 == entry.sha256 else f"{entry.path} has other content than the version"
