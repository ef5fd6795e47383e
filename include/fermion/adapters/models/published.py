"""What reading published versions is on every storage: by number, by the key of their publish, or all of them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial

from fermion.adapters.files.trees import in_parallel
from fermion.adapters.models.manifest import Manifest
from fermion.domain.artifacts import ModelVersion
from fermion.domain.model_names import problems_of


class Published(ABC):
    """The half of ``ports.ModelRepository`` that reads; where manifests lie is the storage's own matter.

    ``workers`` is how many manifests are read at once.
    """

    def __init__(self, *, workers: int) -> None:
        self._workers = workers

    def get(self, model: str, number: int) -> ModelVersion | None:
        """See ``ports.ModelRepository``."""
        if problems_of(model) or number < 1:
            return None
        manifest = self._read(model, number)
        return manifest.to_version(self._uri(manifest)) if manifest else None

    def versions(self, model: str) -> Sequence[ModelVersion]:
        """See ``ports.ModelRepository``."""
        if problems_of(model):
            return ()
        manifests = in_parallel(partial(self._read, model), self._numbers(model), workers=self._workers)
        return tuple(manifest.to_version(self._uri(manifest)) for manifest in manifests if manifest)

    def models(self) -> Sequence[str]:
        """See ``ports.ModelRepository``; sorted."""
        return tuple(sorted(self._models_below("")))

    def _look_for(self, model: str, key: str) -> tuple[ModelVersion | None, int]:
        """The version that the key has, and the newest number up to which that is certain.

        The numbers are listed before the key's note is looked for: a note that is absent now was absent when each of
        them was claimed. Every later number is looked at when it turns out to be taken.
        """
        if problems_of(model):
            return None, 0
        numbers = self._numbers(model)
        newest = numbers[0] if numbers else 0
        if not self._has_note(model, key):
            return None, newest
        for number in numbers:
            manifest = self._read(model, number)
            if manifest is not None and manifest.key == key:
                return manifest.to_version(self._uri(manifest)), newest
        return None, newest

    @abstractmethod
    def _numbers(self, model: str) -> list[int]:
        """Claimed numbers, newest first."""

    @abstractmethod
    def _read(self, model: str, number: int) -> Manifest | None:
        """The manifest of that number, if it is published."""

    @abstractmethod
    def _uri(self, manifest: Manifest) -> str:
        """Where its files lie."""

    @abstractmethod
    def _has_note(self, model: str, key: str) -> bool:
        """Whether that key was noted, which is done before it can have a number."""

    @abstractmethod
    def _models_below(self, prefix: str) -> Iterator[str]:
        """Names of models with versions below that name; of all when it is empty."""


def digest_of(text: str) -> str:
    """A file's or an object's name for any text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
