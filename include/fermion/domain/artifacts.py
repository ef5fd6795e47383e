"""Images, datasets, code and models: content with a checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What a training runs in. On the process driver an environment: a name and a locked requirements file.

    ``id`` is the name people choose (``digits:1``); ``digest`` is ``sha256:…`` of the content that defines it.
    ``source`` is where the platform knows it from (a file, a registry); ``size_bytes`` is None until it was pulled once.
    """

    id: str
    digest: str
    category: str
    source_type: str
    source: str
    created_at: datetime
    updated_at: datetime
    framework: str | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a tree. ``path`` is relative with forward slashes; ``sha256`` is hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetVersion:
    """A dataset at one moment. ``checksum`` is ``sha256:…`` over the sorted entries; equal trees have equal checksums."""

    dataset: str
    uri: str
    checksum: str
    files: tuple[FileEntry, ...]
    created_at: datetime

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDraft:
    """A model about to be published: its name, the metrics it reached and the lineage that made it (JSON-ready values)."""

    model: str
    metrics: Mapping[str, float]
    lineage: Mapping[str, object]
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """A published, immutable version. ``checksum`` is ``sha256:…`` over the sorted entries; ``uri`` tells where it lies."""

    model: str
    number: int
    checksum: str
    files: tuple[FileEntry, ...]
    uri: str
    created_at: datetime
    metrics: Mapping[str, float] = field(default_factory=dict)
    lineage: Mapping[str, object] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """``<model>/<number>``, the path used everywhere."""
        return f"{self.model}/{self.number}"

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)


def tree_checksum(files: tuple[FileEntry, ...]) -> str:
    """``sha256:…`` of a tree: over ``<sha256>  <size>  <path>`` lines sorted by path. Equal content, equal checksum."""
    lines = (f"{entry.sha256}  {entry.size}  {entry.path}\n" for entry in sorted(files, key=lambda e: e.path))
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()
