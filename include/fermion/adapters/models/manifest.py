"""The manifest of a published model version: what both repositories write, and the only thing that makes a version exist."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from fermion.domain.artifacts import FileEntry, ModelDraft, ModelVersion, tree_checksum
from fermion.errors import OutsideBroken

NAME = "manifest.json"
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One version's manifest. ``files_in`` is where the files lie, relative to the repository's place for the model.

    ``key`` is the publisher's idempotency key.
    """

    model: str
    number: int
    files: tuple[FileEntry, ...]
    files_in: str
    key: str
    created_at: datetime
    metrics: Mapping[str, float]
    lineage: Mapping[str, object]

    @property
    def checksum(self) -> str:
        """``sha256:…`` over the sorted entries."""
        return tree_checksum(self.files)

    @classmethod
    def of(cls, draft: ModelDraft, number: int, *, files: tuple[FileEntry, ...], files_in: str, key: str) -> Manifest:
        """The manifest of a draft's files under a number."""
        return cls(
            model=draft.model,
            number=number,
            files=tuple(sorted(files, key=lambda entry: entry.path)),
            files_in=files_in,
            key=key,
            created_at=draft.created_at,
            metrics=dict(draft.metrics),
            lineage=dict(draft.lineage),
        )

    def numbered(self, number: int) -> Manifest:
        """The same under another number."""
        return replace(self, number=number)

    def to_version(self, uri: str) -> ModelVersion:
        """The version that this manifest describes, its files at ``uri``."""
        return ModelVersion(
            model=self.model,
            number=self.number,
            checksum=self.checksum,
            files=self.files,
            uri=uri,
            created_at=self.created_at,
            metrics=self.metrics,
            lineage=self.lineage,
        )

    def to_bytes(self) -> bytes:
        """The manifest as JSON. Metrics that JSON has no number for (NaN, infinity) become their names as text."""
        payload = {
            "format": FORMAT,
            "model": self.model,
            "number": self.number,
            "checksum": self.checksum,
            "size_bytes": sum(entry.size for entry in self.files),
            "files_in": self.files_in,
            "files": [{"path": entry.path, "size": entry.size, "sha256": entry.sha256} for entry in self.files],
            "metrics": {name: _to_json(value) for name, value in self.metrics.items()},
            "lineage": self.lineage,
            "created_at": self.created_at.isoformat(),
            "key": self.key,
        }
        return (json.dumps(payload, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes, *, where: str) -> Manifest:
        """Read a manifest.

        Raises:
            OutsideBroken: it is not one, or its checksum is not that of its own files.
        """
        try:
            payload = json.loads(content)
            manifest = cls._from_payload(payload)
            stored = payload["checksum"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"{where} is not a model manifest ({type(error).__name__}: {error}); restore it from a backup."
            raise OutsideBroken(message, what=where) from error
        if stored != manifest.checksum:
            message = f"{where} says checksum {stored}, its files give {manifest.checksum}; restore it from a backup."
            raise OutsideBroken(message, what=where)
        return manifest

    @classmethod
    def _from_payload(cls, payload: Any) -> Manifest:
        if payload["format"] != FORMAT:
            raise ValueError(f"format {payload['format']!r}, this program reads {FORMAT}")
        files = tuple(
            FileEntry(path=str(each["path"]), size=int(each["size"]), sha256=str(each["sha256"]))
            for each in payload["files"]
        )
        return cls(
            model=str(payload["model"]),
            number=int(payload["number"]),
            files=files,
            files_in=str(payload["files_in"]),
            key=str(payload["key"]),
            created_at=datetime.fromisoformat(payload["created_at"]),
            metrics={str(name): float(value) for name, value in payload["metrics"].items()},
            lineage=dict(payload["lineage"]),
        )


def numbers_among(names: Iterable[str]) -> list[int]:
    """Version numbers among the names of folders, newest first: only as they are written here, not ``01`` nor other digits."""
    return sorted((int(name) for name in names if name.isdecimal() and name == str(int(name))), reverse=True)


def _to_json(value: float) -> float | str:
    # float() reads "nan" and "inf" back; a bare NaN would make the file unreadable for strict JSON readers.
    return value if value - value == 0 else str(value)
