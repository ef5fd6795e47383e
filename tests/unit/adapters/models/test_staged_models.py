"""Models staged for replicas: which leave when there are too many, that none leaves for a new one, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from builders import NOW
from fermion.adapters.datasets.folder import Folders
from fermion.adapters.datasets.origin import Origins
from fermion.adapters.files.shelf import Shelf
from fermion.adapters.models.local import LocalModels
from fermion.adapters.models.staged import StagedModels
from fermion.domain.artifacts import ModelDraft, ModelVersion
from fermion.domain.retention import Freed
from fermion.errors import OutsideBroken

SIZE = 1000


class Shop:
    """Three published versions of 1,000 bytes each, all staged, none of them lately."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.models = LocalModels(root / "models", reserve=0)
        self.cache = StagedModels(
            Shelf(root / "cache"), Origins({"file": Folders([root / "models"])}), size_limit=2 * SIZE
        )
        self.versions = [self.publish(number) for number in (1, 2, 3)]
        for age, version in zip((900, 800, 700), self.versions, strict=True):
            self.age(Path(self.cache.stage(version)), age)

    def publish(self, number: int) -> ModelVersion:
        output = self.root / f"output-{number}"
        output.mkdir()
        (output / "weights").write_bytes(bytes([number]) * SIZE)
        draft = ModelDraft(model="digits", metrics={}, lineage={}, created_at=NOW)
        return self.models.publish(draft, output, key=f"job-{number}")

    def age(self, entry: Path, minutes: int) -> None:
        """It was last asked for so long ago."""
        record = self.root / "cache" / ".records" / entry.name
        then = record.stat().st_mtime - 60 * minutes
        os.utime(record, (then, then))

    def staged(self) -> list[int]:
        """The numbers of the versions whose files are there."""
        there = {(entry / "weights").read_bytes()[0] for entry in (self.root / "cache").glob("[!.]*")}
        return sorted(there)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_the_oldest_leaves_first_and_only_as_many_as_are_too_many(shop: Shop) -> None:
    assert shop.staged() == [1, 2, 3], "staging a third one took nothing away, although two fill the cap"
    assert shop.cache.tidy([], dry_run=True) == Freed(items=1, size_bytes=SIZE)
    assert shop.staged() == [1, 2, 3]
    assert shop.cache.tidy([]) == Freed(items=1, size_bytes=SIZE)
    assert shop.staged() == [2, 3]
    assert shop.cache.tidy([]) == Freed()


def test_what_is_needed_stays_and_the_next_oldest_leaves(shop: Shop) -> None:
    assert shop.cache.tidy([shop.versions[0].checksum]) == Freed(items=1, size_bytes=SIZE)
    assert shop.staged() == [1, 3]


def test_all_that_is_needed_stays_however_many_they_are(shop: Shop) -> None:
    needed = [version.checksum for version in shop.versions]
    assert shop.cache.tidy(needed, dry_run=True) == Freed()
    assert shop.cache.tidy(needed) == Freed()
    assert shop.staged() == [1, 2, 3]


def test_what_was_asked_for_just_now_stays(shop: Shop) -> None:
    shop.cache.stage(shop.versions[0])
    assert shop.cache.tidy([], dry_run=True) == Freed(items=1, size_bytes=SIZE)
    shop.cache.tidy([])
    assert shop.staged() == [1, 3]


def test_without_a_cap_nothing_leaves(shop: Shop) -> None:
    free = StagedModels(Shelf(shop.root / "cache"), Origins({"file": Folders([shop.root / "models"])}))
    assert free.tidy([]) == Freed()
    assert shop.staged() == [1, 2, 3]


def test_a_version_that_left_is_staged_again_when_it_is_asked_for(shop: Shop) -> None:
    shop.cache.tidy([])
    assert (Path(shop.cache.stage(shop.versions[0])) / "weights").read_bytes() == bytes([1]) * SIZE


def test_a_version_whose_file_was_changed_is_refused_by_its_name_with_what_to_do(shop: Shop) -> None:
    shop.cache.tidy([])
    file = shop.root / "models" / "digits" / "1" / "weights"
    file.chmod(0o644)
    file.write_bytes(bytes([9]) * SIZE)
    with pytest.raises(OutsideBroken) as refused:
        shop.cache.stage(shop.versions[0])
    assert refused.value.message.startswith("model 'digits/1' at ")
    assert "weights" in refused.value.message
    assert refused.value.message.endswith("Restore the files, or deploy another version.")
    assert shop.staged() == [2, 3]
