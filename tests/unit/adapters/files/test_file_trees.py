"""Looking at, hashing and copying trees that somebody else made."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from fermion.adapters.files.trees import copy, digest, in_parallel, look
from fermion.errors import OutsideBroken


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "x").write_text("x")
    (tmp_path / "tree" / "b").write_text("bb")
    return tmp_path / "tree"


def test_files_come_sorted_by_path_with_their_sizes(tree: Path) -> None:
    (tree / "a-b").write_text("")

    found = look(tree, field="f")

    assert [(each.path, each.size) for each in found.files] == [("a-b", 0), ("a/x", 1), ("b", 2)]
    assert found.size_bytes == 3
    assert found.problems == ()


def test_more_files_than_allowed_are_a_problem_and_the_limit_itself_is_not(tree: Path) -> None:
    assert look(tree, field="f", max_files=2).problems == ()
    (problem,) = look(tree, field="f", max_files=1).problems
    assert problem.code == "too_many_files"


@pytest.mark.parametrize("change", ["written", "replaced", "replaced by a link", "gone"])
def test_a_file_that_is_not_the_one_looked_at_is_not_read(tree: Path, tmp_path: Path, change: str) -> None:
    (tmp_path / "secret").write_text("zz")
    found = next(each for each in look(tree, field="f").files if each.path == "b")
    if change == "written":
        (tree / "b").write_text("cc")
        os.utime(tree / "b", ns=(found.mtime_ns + 1, found.mtime_ns + 1))
    else:
        (tree / "b").unlink()
    if change == "replaced":
        (tree / "other").write_text("bb")
        os.utime(tree / "other", ns=(found.mtime_ns, found.mtime_ns))
        (tree / "other").rename(tree / "b")
    if change == "replaced by a link":
        (tree / "b").symlink_to(tmp_path / "secret")

    for read in (digest, lambda each: copy(each, tmp_path / "copy")):
        with pytest.raises(OutsideBroken, match=r"^b "):
            read(found)


def test_a_folder_on_the_way_that_became_a_link_is_noticed(tree: Path, tmp_path: Path) -> None:
    found = next(each for each in look(tree, field="f").files if each.path == "a/x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x").write_text("s")
    (tree / "a").rename(tmp_path / "away")
    (tree / "a").symlink_to(tmp_path / "outside")

    with pytest.raises(OutsideBroken):
        digest(found)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_copy_has_the_bytes_and_the_checksum_of_the_file(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "f").write_bytes(content)
    (found,) = look(tmp_path / "tree", field="f").files

    entry = copy(found, tmp_path / "to" / "f")

    assert (tmp_path / "to" / "f").read_bytes() == content
    assert entry == digest(found)
    assert entry.sha256 == hashlib.sha256(content).hexdigest()


def test_work_in_parallel_answers_in_order_and_raises_the_first_error() -> None:
    assert in_parallel(lambda n: n * n, list(range(50))) == tuple(n * n for n in range(50))
    with pytest.raises(ZeroDivisionError):
        in_parallel(lambda n: 1 // n, [1, 0, 2])
