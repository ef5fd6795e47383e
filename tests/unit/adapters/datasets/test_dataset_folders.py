"""Datasets in local folders: what a version is, what is refused, what a second scan skips."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fermion.adapters.datasets.folder import Folders
from fermion.adapters.datasets.origin import Origins
from fermion.domain.artifacts import FileEntry, tree_checksum
from fermion.errors import RequestRefused

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "allowed" / "digits"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "a.csv").write_text("1,2\n")
    (folder / "labels.txt").write_text("one")
    (folder / ".hidden").write_bytes(b"")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders([tmp_path / "allowed"], index=tmp_path / "index")


def entry(path: str, content: bytes) -> FileEntry:
    return FileEntry(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("form", ["file://{}", "{}", "file://localhost{}"])
def test_a_version_lists_every_file_and_its_checksum_is_the_trees(folders: Folders, root: Path, form: str) -> None:
    version = folders.scan("digits", form.format(root), now=NOW)

    assert version.files == (
        entry(".hidden", b""),
        entry("labels.txt", b"one"),
        entry("train/a.csv", b"1,2\n"),
    )
    assert version.checksum == tree_checksum(version.files)
    assert (version.dataset, version.uri, version.created_at) == ("digits", form.format(root), NOW)


def test_equal_content_elsewhere_has_the_same_checksum(folders: Folders, root: Path, tmp_path: Path) -> None:
    other = tmp_path / "allowed" / "other"
    root.rename(other)
    first = folders.scan("digits", str(other), now=NOW)
    other.rename(root)

    assert folders.scan("digits", str(root), now=NOW).checksum == first.checksum


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("relative/path", "not_absolute"),
        ("/etc", "outside_roots"),
        ("file:///etc", "outside_roots"),
        ("/does/not/exist", "outside_roots"),
        ("{root}/../../..", "outside_roots"),
        ("file://{root}/%2e%2e/%2e%2e/%2e%2e/", "outside_roots"),
        ("file://elsewhere/share", "bad_uri"),
        ("{root}/none", "not_found"),
        ("{root}/labels.txt", "not_found"),
        ("{root}/train/empty", "empty"),
    ],
)
def test_a_uri_that_is_no_allowed_folder_is_refused(folders: Folders, root: Path, uri: str, code: str) -> None:
    (root / "train" / "empty").mkdir()

    with pytest.raises(RequestRefused) as caught:
        folders.scan("digits", uri.format(root=root), now=NOW)

    (problem,) = caught.value.problems
    assert (problem.field, problem.code) == ("datasets.digits", code)
    assert ("data.roots in config/fermion.yaml" in problem.fix) is (code == "outside_roots")


def test_a_dataset_folder_that_is_itself_a_link_out_is_refused(folders: Folders, tmp_path: Path, root: Path) -> None:
    (tmp_path / "outside").mkdir()
    (root.parent / "linked").symlink_to(tmp_path / "outside")

    with pytest.raises(RequestRefused, match="outside the allowed dataset folders"):
        folders.scan("linked", str(root.parent / "linked"), now=NOW)


def test_all_problems_inside_a_dataset_are_told_by_name(folders: Folders, root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (root / "escape.txt").symlink_to(tmp_path / "secret")
    (root / "train" / "up").symlink_to("../../..")
    (root / "loop").symlink_to("loop")
    (root / "train" / "self").symlink_to(".")
    os.mkfifo(root / "pipe")
    (root / "line\nbreak").write_text("x")
    (root / os.fsdecode(b"\xff\xfe")).write_text("x")

    with pytest.raises(RequestRefused) as caught:
        folders.scan("digits", str(root), now=NOW)

    told = {(problem.code, problem.message.split(" ")[0]) for problem in caught.value.problems}
    assert told == {
        ("link_leaves", "escape.txt"),
        ("link_leaves", "train/up"),
        ("unreadable", "loop"),
        ("link_loops", "train/self"),
        ("special_file", "pipe"),
        ("bad_name", r"'line\nbreak'"),
        ("bad_name", r"'\udcff\udcfe'"),
    }
    assert "secret'" in str(caught.value)


def test_links_that_stay_inside_count_as_their_content(folders: Folders, root: Path) -> None:
    (root / "latest.csv").symlink_to("train/a.csv")
    (root / "absolute.csv").symlink_to(root / "train" / "a.csv")
    (root / "newest").symlink_to("train")

    version = folders.scan("digits", str(root), now=NOW)

    same = entry("", b"1,2\n").sha256
    assert {e.path for e in version.files if e.sha256 == same} == {
        "train/a.csv",
        "latest.csv",
        "absolute.csv",
        "newest/a.csv",
    }


def test_a_second_scan_reads_only_what_changed(folders: Folders, root: Path, tmp_path: Path) -> None:
    _age(root)
    first = folders.scan("digits", str(root), now=NOW)
    (index,) = (tmp_path / "index").iterdir()
    stored = json.loads(index.read_bytes())
    assert stored["files"] == {}, "files that changed just now are not trusted"
    _trust(index, root)

    unread = folders.scan("digits", str(root), now=NOW)
    assert [e.sha256 for e in unread.files if e.path != "labels.txt"] == ["remembered"] * 2

    (root / "train" / "a.csv").write_text("3,4\n")
    changed = folders.scan("digits", str(root), now=NOW)
    by_path = {e.path: e.sha256 for e in changed.files}
    assert by_path["train/a.csv"] == entry("", b"3,4\n").sha256
    assert first.checksum != changed.checksum


def _age(root: Path) -> None:
    for path in root.rglob("*"):
        os.utime(path, (1, 1))


def _trust(index: Path, root: Path) -> None:
    """Make the index say that two files were read long ago, with a checksum that only it can have."""
    files = {}
    for path in (root / "train" / "a.csv", root / ".hidden"):
        seen = path.stat()
        signature = [seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino]
        files[str(path.relative_to(root))] = [signature, "remembered"]
    index.write_text(json.dumps({"uri": "", "files": files}))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": {"train/a.csv": 3}}', "\x00"])
def test_a_damaged_index_only_costs_time(folders: Folders, root: Path, tmp_path: Path, content: str) -> None:
    first = folders.scan("digits", str(root), now=NOW)
    (index,) = (tmp_path / "index").iterdir()
    index.write_text(content)

    assert folders.scan("digits", str(root), now=NOW) == first


def test_a_scheme_that_nobody_serves_is_refused(folders: Folders) -> None:
    with pytest.raises(RequestRefused) as caught:
        Origins({"file": folders}).scan("digits", "http://host/x", now=NOW)

    assert [problem.code for problem in caught.value.problems] == ["unknown_scheme"]
