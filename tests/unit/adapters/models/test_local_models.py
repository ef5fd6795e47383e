"""What only the local model repository has to keep: files on a disk that may be full, shared or damaged."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fermion.adapters.files.locks import try_lock
from fermion.adapters.models.local import LocalModels
from fermion.domain.artifacts import ModelDraft
from fermion.errors import OutsideBroken, OutsideUnavailable

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def draft(model: str = "digits") -> ModelDraft:
    return ModelDraft(model=model, metrics={"accuracy": 0.97}, lineage={"commit": "c" * 40}, created_at=NOW)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "part.bin").write_bytes(b"weights")
    (folder / "run.sh").write_text("#!/bin/sh")
    (folder / "run.sh").chmod(0o755)
    return folder


def test_a_version_is_a_read_only_folder_with_its_manifest_beside_the_files(root: Path, output: Path) -> None:
    version = LocalModels(root).publish(draft("vision/digits"), output, key="job-1-a1")

    folder = root / "vision" / "digits" / "1"
    assert version.uri == folder.as_uri()
    modes = {path.relative_to(folder).as_posix(): oct(path.stat().st_mode & 0o777) for path in folder.rglob("*")}
    assert modes == {"manifest.json": "0o444", "run.sh": "0o444", "weights": "0o555", "weights/part.bin": "0o444"}
    assert folder.stat().st_mode & 0o777 == 0o555


@pytest.mark.parametrize("name", ["01", "１", "١"])
def test_a_folder_whose_name_only_reads_like_a_number_is_no_version(root: Path, output: Path, name: str) -> None:
    version = LocalModels(root).publish(draft(), output, key="job-1-a1")
    (root / "digits" / name).mkdir()

    assert LocalModels(root).versions("digits") == (version,)


def test_the_manifest_can_be_read_without_this_program(root: Path, output: Path) -> None:
    version = LocalModels(root).publish(draft(), output, key="job-1-a1")

    manifest = json.loads((root / "digits" / "1" / "manifest.json").read_bytes())
    assert (manifest["model"], manifest["number"], manifest["key"]) == ("digits", 1, "job-1-a1")
    assert manifest["checksum"] == version.checksum
    assert manifest["files"][1] == {
        "path": "weights/part.bin",
        "size": 7,
        "sha256": version.files[1].sha256,
    }
    assert (manifest["metrics"], manifest["lineage"]) == ({"accuracy": 0.97}, {"commit": "c" * 40})
    assert manifest["created_at"] == "2026-01-02T00:00:00+00:00"


def test_a_models_own_manifest_lies_in_a_folder_of_its_own(root: Path, output: Path) -> None:
    (output / "manifest.json").write_text("the model's own")

    version = LocalModels(root).publish(draft(), output, key="k")

    assert version.uri == (root / "digits" / "1" / "files").as_uri()
    assert (root / "digits" / "1" / "files" / "manifest.json").read_text() == "the model's own"


def test_a_copy_is_a_file_of_its_own(root: Path, output: Path) -> None:
    LocalModels(root).publish(draft(), output, key="k")

    copied = (root / "digits" / "1" / "weights" / "part.bin").stat()
    assert copied.st_ino != (output / "weights" / "part.bin").stat().st_ino
    assert copied.st_nlink == 1


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("changed", "weights/part.bin has sha256"),
        ("longer", "weights/part.bin has 8 bytes, the manifest says 7."),
        ("gone", "weights/part.bin is missing."),
        ("extra", "weights/extra is not in the manifest."),
    ],
)
def test_every_kind_of_damage_is_found(root: Path, output: Path, damage: str, sentence: str) -> None:
    models = LocalModels(root)
    version = models.publish(draft(), output, key="k")
    folder = root / "digits" / "1" / "weights"
    folder.chmod(0o755)
    (folder / "part.bin").chmod(0o644)
    if damage == "gone":
        (folder / "part.bin").unlink()
    elif damage == "extra":
        (folder / "extra").touch()
    else:
        (folder / "part.bin").write_bytes(b"Weights" + b"!" * (damage == "longer"))

    (found,) = models.verify(version)
    assert found.startswith(sentence)


@pytest.mark.parametrize("content", ["", "{}", "[]", "\x00", '{"format": 2}'])
def test_a_damaged_manifest_is_told_not_ignored(root: Path, output: Path, content: str) -> None:
    models = LocalModels(root)
    models.publish(draft(), output, key="k")
    path = root / "digits" / "1" / "manifest.json"
    path.chmod(0o644)
    path.write_text(content)

    with pytest.raises(OutsideBroken, match=r"digits/1/manifest\.json"):
        models.get("digits", 1)


def test_a_manifest_that_was_edited_or_moved_is_told(root: Path, output: Path) -> None:
    models = LocalModels(root)
    models.publish(draft(), output, key="k")
    path = root / "digits" / "1" / "manifest.json"
    path.chmod(0o644)
    original = path.read_text()
    path.write_text(original.replace('"size": 7', '"size": 8'))
    with pytest.raises(OutsideBroken, match="says checksum"):
        models.get("digits", 1)

    path.write_text(original.replace('"number": 1', '"number": 2'))
    with pytest.raises(OutsideBroken, match="digits/2"):
        models.get("digits", 1)


def test_folders_that_are_no_versions_are_not_taken_for_some(root: Path, output: Path) -> None:
    models = LocalModels(root)
    models.publish(draft(), output, key="k")
    (root / "digits" / "7").mkdir()
    (root / "digits" / "notes").mkdir()
    (root / "Not A Model" / "1").mkdir(parents=True)
    (root / "digits" / "8").write_text("a file")

    assert [version.number for version in models.versions("digits")] == [1]
    assert models.get("digits", 7) is None
    assert models.get("digits", 8) is None
    assert list(models.models()) == ["digits"]


def test_a_number_that_something_else_took_is_passed_over(root: Path, output: Path) -> None:
    models = LocalModels(root)
    (root / "digits").mkdir(parents=True)
    (root / "digits" / "1").write_text("a file")

    assert models.publish(draft(), output, key="k").number == 2


def test_what_a_dead_publisher_left_is_cleared_and_what_a_live_one_fills_is_not(root: Path, output: Path) -> None:
    models = LocalModels(root)
    for name in ("dead", "alive"):
        (root / ".staging" / name).mkdir(parents=True)
        (root / ".staging" / name / "part").write_text("part")

    with try_lock(root / ".staging" / "alive.lock") as is_held:
        assert is_held
        models.publish(draft(), output, key="k")

    assert sorted(path.name for path in (root / ".staging").iterdir()) == ["alive", "alive.lock"]


def test_a_file_that_changes_while_it_is_copied_is_not_published(root: Path, output: Path) -> None:
    models = LocalModels(root)
    big = output / "weights" / "part.bin"
    with big.open("wb") as file:
        file.truncate(400 << 20)
    writer = subprocess.Popen(
        ["sh", "-c", 'while :; do printf x >> "$0"; sleep 0.01; done', str(big)],
    )
    try:
        with pytest.raises(OutsideBroken, match=r"weights/part\.bin was changed while it was read"):
            models.publish(draft(), output, key="k")
    finally:
        writer.kill()
        writer.wait()

    assert list(models.models()) == []
    assert list((root / ".staging").iterdir()) == []


def test_a_disk_without_room_is_told_with_numbers_before_anything_is_written(root: Path, output: Path) -> None:
    with pytest.raises(OutsideUnavailable, match=r"has [0-9.]+ MiB free; model 'digits' needs 0\.0 MiB and"):
        LocalModels(root, reserve=1 << 60).publish(draft(), output, key="k")

    assert not (root / "digits").exists()
    assert not (root / ".staging").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for bytes but for 60 files only: so it is full in the middle, not when it is looked at before."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=60", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"this user may not mount a small disk: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_in_the_middle_leaves_nothing_behind(small_disk: Path, output: Path) -> None:
    models = LocalModels(small_disk / "models", reserve=0)
    kept = models.publish(draft(), output, key="first")
    for number in range(60):
        (output / f"{number}.bin").write_bytes(b"x")
    free_files = os.statvfs(small_disk).f_ffree

    with pytest.raises(OutsideUnavailable, match="nothing was stored") as caught:
        models.publish(draft(), output, key="second")

    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert [version.number for version in models.versions("digits")] == [1]
    assert list(models.verify(kept)) == []
    assert list((small_disk / "models" / ".staging").iterdir()) == []
    assert os.statvfs(small_disk).f_ffree == free_files
    for number in range(60):
        (output / f"{number}.bin").unlink()
    assert models.publish(draft(), output, key="second").number == 2
