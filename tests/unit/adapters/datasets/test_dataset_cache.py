"""The cache of staged datasets: whole or nothing, shared, mended, evicted only when nobody needs it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from fermion.adapters.datasets.cache import DatasetCache, entry_name
from fermion.adapters.datasets.folder import Folders
from fermion.adapters.files.locks import lock
from fermion.adapters.files.placing import PLACED_AT
from fermion.adapters.files.shelf import Shelf, linked_below
from fermion.domain.artifacts import DatasetVersion, FileEntry
from fermion.domain.jobs import Pins
from fermion.domain.retention import Freed
from fermion.errors import DriverCannot, OutsideBroken, OutsideUnavailable

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "digits"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "a.csv").write_text("1,2\n")
    (folder / "labels.txt").write_text("one")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders([tmp_path / "data"])


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "cache", grace=timedelta(0))


@pytest.fixture
def cache(shelf: Shelf, folders: Folders) -> DatasetCache:
    return DatasetCache(shelf, folders)


@pytest.fixture
def version(folders: Folders, source: Path) -> DatasetVersion:
    return folders.scan("digits", str(source), now=NOW)


def make_dataset(tmp_path: Path, folders: Folders, name: str, size: int) -> DatasetVersion:
    folder = tmp_path / "data" / name
    folder.mkdir(parents=True)
    (folder / "data.bin").write_bytes(name.encode()[:1] * size)
    return folders.scan(name, str(folder), now=NOW)


def visible(shelf: Shelf) -> list[str]:
    return [path.name for path in shelf.root.iterdir() if not path.name.startswith(".")] if shelf.root.exists() else []


class Counting:
    """The real origin, counting what is fetched."""

    def __init__(self, origin: Folders) -> None:
        self.origin = origin
        self.fetched: list[list[str]] = []

    def scan(self, dataset: str, uri: str, *, now: datetime) -> DatasetVersion:
        return self.origin.scan(dataset, uri, now=now)

    def fetch(self, version: DatasetVersion, wanted: Sequence[FileEntry], *, tree: Path, parts: Path) -> Sequence[str]:
        self.fetched.append([entry.path for entry in wanted])
        return self.origin.fetch(version, wanted, tree=tree, parts=parts)


def test_a_staged_version_is_a_read_only_folder_named_by_its_checksum(
    cache: DatasetCache, version: DatasetVersion, shelf: Shelf
) -> None:
    folder = Path(cache.stage(version))

    assert folder == shelf.root / version.checksum.replace(":", "-")
    assert (folder / "train" / "a.csv").read_text() == "1,2\n"
    modes = {path.relative_to(folder).as_posix(): oct(path.stat().st_mode & 0o777) for path in folder.rglob("*")}
    assert modes == {"train": "0o555", "train/a.csv": "0o444", "labels.txt": "0o444"}
    assert folder.stat().st_mode & 0o777 == 0o555
    assert list((shelf.root / ".staging").iterdir()) == []


def test_staging_again_fetches_nothing(shelf: Shelf, folders: Folders, version: DatasetVersion) -> None:
    origin = Counting(folders)
    cache = DatasetCache(shelf, origin)

    assert cache.stage(version) == cache.stage(version)
    assert origin.fetched == [["labels.txt", "train/a.csv"]]


def test_a_staged_version_needs_its_source_no_more(cache: DatasetCache, version: DatasetVersion, source: Path) -> None:
    staged = cache.stage(version)
    (source / "labels.txt").unlink()

    assert cache.stage(version) == staged


def test_a_later_write_to_the_source_does_not_reach_the_copy(
    cache: DatasetCache, version: DatasetVersion, source: Path
) -> None:
    folder = Path(cache.stage(version))
    with (source / "labels.txt").open("r+") as file:
        file.write("two")

    assert (folder / "labels.txt").read_text() == "one"


def test_a_source_that_is_not_the_version_any_more_is_named_file_by_file(
    cache: DatasetCache, version: DatasetVersion, source: Path, shelf: Shelf
) -> None:
    (source / "labels.txt").write_text("two")
    (source / "train" / "a.csv").write_text("1,2,3\n")

    with pytest.raises(OutsideBroken) as caught:
        cache.stage(version)

    assert "labels.txt has other content than the version" in caught.value.message
    assert "train/a.csv has 6 bytes, the version 4" in caught.value.message
    assert visible(shelf) == []

    (source / "train" / "a.csv").unlink()
    with pytest.raises(OutsideBroken, match=r"train/a\.csv is gone"):
        cache.stage(version)


def test_a_new_file_in_the_source_does_not_change_the_version(
    cache: DatasetCache, version: DatasetVersion, source: Path
) -> None:
    (source / "new.txt").write_text("new")

    assert not (Path(cache.stage(version)) / "new.txt").exists()


def test_many_stagers_at_once_share_one_copy(shelf: Shelf, folders: Folders, version: DatasetVersion) -> None:
    origin = Counting(folders)
    staged: list[str] = []
    threads = [
        threading.Thread(target=lambda: staged.append(DatasetCache(shelf, origin).stage(version))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)

    assert len(staged) == 8
    assert len(set(staged)) == 1
    assert len(origin.fetched) == 1


def test_a_stager_that_waits_too_long_says_who_is_at_work(
    tmp_path: Path, folders: Folders, version: DatasetVersion
) -> None:
    shelf = Shelf(tmp_path / "cache", lock_timeout=timedelta(milliseconds=50))
    name = entry_name(version.checksum)
    busy = lock(shelf.root / ".locks" / name, timeout=timedelta(seconds=1), what="staging")

    with busy, pytest.raises(OutsideUnavailable, match=f"process {os.getpid()}"):
        DatasetCache(shelf, folders).stage(version)


def test_what_an_earlier_stager_left_is_continued_and_rubbish_is_dropped(
    shelf: Shelf, folders: Folders, version: DatasetVersion
) -> None:
    origin = Counting(folders)
    left = shelf.root / ".staging" / entry_name(version.checksum) / "tree"
    (left / "train").mkdir(parents=True)
    (left / "train" / "a.csv").write_text("1,2\n")
    (left / "labels.txt").write_text("on")
    (left / "train" / "rubbish").write_text("rubbish")
    (left / "link").symlink_to("/etc/passwd")

    folder = Path(DatasetCache(shelf, origin).stage(version))

    assert origin.fetched == [["labels.txt"]]
    assert sorted(path.name for path in folder.rglob("*")) == ["a.csv", "labels.txt", "train"]


def test_a_stager_killed_in_the_middle_leaves_nothing_visible_and_the_next_goes_on(
    tmp_path: Path, shelf: Shelf, folders: Folders
) -> None:
    folder = tmp_path / "data" / "big"
    folder.mkdir(parents=True)
    for number in range(3):
        with (folder / f"{number}.bin").open("wb") as file:
            file.truncate(80 << 20)
    version = folders.scan("big", str(folder), now=NOW)
    program = (
        "import sys; from pathlib import Path; from datetime import datetime, UTC\n"
        "from fermion.adapters.datasets.cache import DatasetCache; from fermion.adapters.datasets.folder import Folders\n"
        "from fermion.adapters.files.shelf import Shelf\n"
        "folders = Folders([Path(sys.argv[1])])\n"
        "version = folders.scan('big', sys.argv[2], now=datetime.now(UTC))\n"
        "DatasetCache(Shelf(Path(sys.argv[3])), folders).stage(version)\n"
    )
    command = [sys.executable, "-c", program, str(folder.parent), str(folder), str(shelf.root)]
    process = subprocess.Popen(command)
    until = time.monotonic() + 60
    while not list(shelf.root.glob(".staging/*/tree/*.bin")) and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)

    assert visible(shelf) == []
    staged = Path(DatasetCache(shelf, folders).stage(version))
    assert sorted(path.name for path in staged.iterdir()) == ["0.bin", "1.bin", "2.bin"]
    assert list((shelf.root / ".staging").iterdir()) == []


@pytest.mark.parametrize("damage", ["changed", "gone", "folder gone", "replaced by a link"])
def test_a_damaged_copy_is_mended_file_by_file(
    shelf: Shelf, folders: Folders, version: DatasetVersion, damage: str
) -> None:
    origin = Counting(folders)
    cache = DatasetCache(shelf, origin)
    folder = Path(cache.stage(version))
    for each in (folder, folder / "train"):
        each.chmod(0o755)
    victim = folder / "train" / "a.csv"
    if damage == "changed":
        victim.chmod(0o644)
        victim.write_text("9,9\n")
    else:
        victim.unlink()
    if damage == "folder gone":
        (folder / "train").rmdir()
    if damage == "replaced by a link":
        victim.symlink_to("/etc/hostname")
    inode = folder.stat().st_ino

    assert cache.stage(version) == str(folder)

    assert victim.read_text() == "1,2\n"
    assert not victim.is_symlink()
    assert victim.stat().st_mode & 0o777 == 0o444
    assert folder.stat().st_ino == inode
    assert origin.fetched[1:] == [["train/a.csv"]]


def test_a_copy_that_was_only_touched_is_not_fetched_again(
    shelf: Shelf, folders: Folders, version: DatasetVersion
) -> None:
    origin = Counting(folders)
    cache = DatasetCache(shelf, origin)
    os.utime(Path(cache.stage(version)) / "labels.txt")

    cache.stage(version)

    assert origin.fetched[1:] == []


def leave_a_file(folder: Path, stranger: Path) -> None:
    (folder / "train" / "more.csv").write_text("9,9\n")


def leave_a_file_that_looks_placed(folder: Path, stranger: Path) -> None:
    leave_a_file(folder, stranger)
    os.utime(folder / "train" / "more.csv", (PLACED_AT, PLACED_AT))


def leave_a_folder(folder: Path, stranger: Path) -> None:
    (folder / "test" / "deep").mkdir(parents=True)
    (folder / "test" / "deep" / "b.csv").write_text("9,9\n")


def leave_a_folder_that_nobody_may_read(folder: Path, stranger: Path) -> None:
    leave_a_folder(folder, stranger)
    (folder / "test" / "deep").chmod(0)
    (folder / "test").chmod(0)


def close_a_folder(folder: Path, stranger: Path) -> None:
    (folder / "train").chmod(0)
    leave_a_folder(folder, stranger)


def close_the_whole_folder(folder: Path, stranger: Path) -> None:
    leave_a_file(folder, stranger)
    folder.chmod(0)


def leave_a_link(folder: Path, stranger: Path) -> None:
    (folder / "train" / "more.csv").symlink_to(stranger)


def leave_a_link_to_nowhere(folder: Path, stranger: Path) -> None:
    (folder / "more").symlink_to("/nowhere")


def leave_a_pipe(folder: Path, stranger: Path) -> None:
    os.mkfifo(folder / "pipe")


def put_a_folder_in_a_files_place(folder: Path, stranger: Path) -> None:
    (folder / "labels.txt").unlink()
    (folder / "labels.txt").mkdir()


def put_a_link_in_a_folders_place(folder: Path, stranger: Path) -> None:
    shutil.copytree(folder / "train", stranger / "train")
    shutil.rmtree(folder / "train")
    (folder / "train").symlink_to(stranger / "train")


@pytest.mark.parametrize(
    "pollute",
    [
        leave_a_file,
        leave_a_file_that_looks_placed,
        leave_a_folder,
        leave_a_folder_that_nobody_may_read,
        close_a_folder,
        close_the_whole_folder,
        leave_a_link,
        leave_a_link_to_nowhere,
        leave_a_pipe,
        put_a_folder_in_a_files_place,
        put_a_link_in_a_folders_place,
    ],
)
def test_what_a_job_left_in_a_staged_folder_is_gone_before_the_next_job_reads_it(
    shelf: Shelf,
    folders: Folders,
    version: DatasetVersion,
    tmp_path: Path,
    pollute: Callable[[Path, Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = DatasetCache(shelf, folders)
    folder = Path(cache.stage(version))
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    for each in (folder, folder / "train"):
        each.chmod(0o755)  # a job that runs as the owner may do that
    pollute(folder, stranger)
    inode = folder.stat().st_ino

    assert cache.stage(version) == str(folder)

    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*")} == {
        "train",
        "train/a.csv",
        "labels.txt",
    }
    assert (folder / "train" / "a.csv").read_text() == "1,2\n"
    assert (folder / "labels.txt").read_text() == "one"
    assert not (folder / "train").is_symlink()
    assert folder.stat().st_ino == inode, "jobs that run read this very folder"
    assert stranger.is_dir(), "what a link led to is not touched"
    assert [oct(path.stat().st_mode & 0o777) for path in (folder, folder / "train")] == ["0o555", "0o555"]
    assert list((shelf.root / ".staging").iterdir()) == []
    (told,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert str(folder) in told
    assert "not part of it" in told
    caplog.clear()
    cache.stage(version)
    assert caplog.records == [], "once put right, there is nothing more to say"


def test_a_link_in_the_place_of_a_staged_folder_is_not_taken_for_it(
    shelf: Shelf, folders: Folders, version: DatasetVersion, tmp_path: Path
) -> None:
    cache = DatasetCache(shelf, folders)
    folder = Path(cache.stage(version))
    folder.chmod(0o755)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")

    assert cache.stage(version) == str(folder)

    assert not folder.is_symlink()
    assert (folder / "labels.txt").read_text() == "one"


def test_looking_at_an_intact_copy_reads_no_file(
    shelf: Shelf, folders: Folders, version: DatasetVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DatasetCache(shelf, folders)
    cache.stage(version)
    monkeypatch.setattr("fermion.adapters.datasets.cache.hash_file", lambda path: pytest.fail(f"{path} was read"))

    cache.stage(version)


def test_a_version_without_its_files_is_refused(cache: DatasetCache, version: DatasetVersion) -> None:
    with pytest.raises(OutsideBroken, match="without its files"):
        cache.stage(replace(version, files=()))


def test_the_least_recently_used_leaves_first_when_there_is_no_room(tmp_path: Path, folders: Folders) -> None:
    shelf = Shelf(tmp_path / "cache", size_limit=250, grace=timedelta(0))
    cache = DatasetCache(shelf, folders)
    a, b, c = (make_dataset(tmp_path, folders, name, 100) for name in "abc")
    cache.stage(a)
    cache.stage(b)
    _used(shelf, b, 10)
    _used(shelf, a, 20)

    cache.stage(c)

    assert sorted(visible(shelf)) == sorted(entry_name(each.checksum) for each in (a, c))


def test_what_was_just_asked_for_never_leaves(tmp_path: Path, folders: Folders) -> None:
    shelf = Shelf(tmp_path / "cache", size_limit=250, grace=timedelta(minutes=10))
    cache = DatasetCache(shelf, folders)
    a, b, c = (make_dataset(tmp_path, folders, name, 100) for name in "abc")
    cache.stage(a)
    cache.stage(b)

    with pytest.raises(OutsideUnavailable, match=r"200 bytes of the cache's 250 bytes are in use"):
        cache.stage(c)
    _used(shelf, a, 10)
    cache.stage(c)
    assert sorted(visible(shelf)) == sorted(entry_name(each.checksum) for each in (b, c))


def test_an_entry_that_is_gone_is_not_evicted_again(cache: DatasetCache, shelf: Shelf, version: DatasetVersion) -> None:
    cache.stage(version)
    name = entry_name(version.checksum)
    _used(shelf, version, 10)
    assert [shelf.evict(name), shelf.evict(name)] == [True, False]


def test_what_a_workload_links_to_never_leaves(tmp_path: Path, folders: Folders) -> None:
    workloads = tmp_path / "workloads"
    (workloads / "job-1-a1" / "data").mkdir(parents=True)
    in_use = partial(linked_below, workloads, "*/data/*")
    shelf = Shelf(tmp_path / "cache", size_limit=150, grace=timedelta(0), in_use=in_use)
    cache = DatasetCache(shelf, folders)
    a, b = (make_dataset(tmp_path, folders, name, 100) for name in "ab")
    link = workloads / "job-1-a1" / "data" / "digits"
    link.symlink_to(cache.stage(a))
    (workloads / "job-1-a1" / "data" / "no link").touch()

    with pytest.raises(OutsideUnavailable, match="by running jobs"):
        cache.stage(b)
    link.unlink()
    cache.stage(b)

    assert visible(shelf) == [entry_name(b.checksum)]


def test_a_dataset_bigger_than_the_whole_cache_is_refused_for_good(tmp_path: Path, folders: Folders) -> None:
    shelf = Shelf(tmp_path / "cache", size_limit=99, grace=timedelta(0))

    version = make_dataset(tmp_path, folders, "a", 100)

    with pytest.raises(DriverCannot, match="100 bytes and the cache's limit is 99 bytes"):
        DatasetCache(shelf, folders).stage(version)
    (problem,) = DatasetCache(shelf, folders).never_fits(version)
    assert (problem.field, problem.code) == (f"datasets.{version.dataset}", "over_cache")
    assert "100 bytes and the cache's limit is 99 bytes" in problem.message


def test_a_dataset_exactly_as_big_as_the_cache_fits(tmp_path: Path, folders: Folders) -> None:
    shelf = Shelf(tmp_path / "cache", size_limit=100, grace=timedelta(0))

    version = make_dataset(tmp_path, folders, "a", 100)
    DatasetCache(shelf, folders).stage(version)

    assert len(visible(shelf)) == 1
    assert not DatasetCache(shelf, folders).never_fits(version)


def test_keeping_house_goes_down_to_the_limit_and_keeps_what_an_open_job_has_pinned(
    tmp_path: Path, folders: Folders
) -> None:
    large = DatasetCache(Shelf(tmp_path / "cache"), folders)
    versions = [make_dataset(tmp_path, folders, name, 100) for name in "abc"]
    for version in versions:
        large.stage(version)
    assert large.tidy([]) == Freed(), "without a limit nothing leaves"
    shelf = Shelf(tmp_path / "cache", size_limit=100, grace=timedelta(0))
    for at, version in enumerate(versions):
        _used(shelf, version, at)
    waiting = Pins(image_digest="", commit="", datasets={"digits": versions[0].checksum})

    assert DatasetCache(shelf, folders).tidy([waiting]) == Freed(items=2, size_bytes=200)
    assert visible(shelf) == [entry_name(versions[0].checksum)]


def test_a_lost_record_costs_nothing_but_the_order(cache: DatasetCache, shelf: Shelf, version: DatasetVersion) -> None:
    cache.stage(version)
    (shelf.root / ".records" / entry_name(version.checksum)).write_text("torn")

    assert [(entry.size, entry.used_at.year) for entry in shelf.entries()] == [(7, 1970)]


def test_staging_folders_that_nobody_continues_are_cleared(
    cache: DatasetCache, shelf: Shelf, version: DatasetVersion
) -> None:
    left = shelf.root / ".staging" / "sha256-dead" / "tree"
    left.mkdir(parents=True)
    (left / "a").write_text("a")

    assert shelf.clear_leftovers(older_than=timedelta(hours=1)) == Freed()
    with lock(shelf.root / ".locks" / "sha256-dead", timeout=timedelta(seconds=1), what="test"):
        assert shelf.clear_leftovers(older_than=timedelta(0)) == Freed()
    assert shelf.clear_leftovers(older_than=timedelta(0)) == Freed(items=1, size_bytes=1)
    assert not left.exists()


def _used(shelf: Shelf, version: DatasetVersion, at: int) -> None:
    os.utime(shelf.root / ".records" / entry_name(version.checksum), (at, at))
