"""What every model repository keeps, on a local folder and on S3 (a moto server on loopback)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from model_repository_publisher import NOW, draft, opened_from
from moto.server import ThreadedMotoServer

from fermion.domain.artifacts import FileEntry, ModelDraft, tree_checksum
from fermion.errors import RequestRefused
from fermion.ports import ModelRepository

PUBLISHER = Path(__file__).with_name("model_repository_publisher.py")

Place = Mapping[str, str]


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        return {"kind": "local", "root": str(tmp_path / "models")}
    from fermion.adapters.s3.client import S3Options, S3Store

    endpoint = request.getfixturevalue("s3_endpoint")
    bucket = f"models-{uuid4().hex[:12]}"
    options = S3Options(endpoint_url=endpoint, region="us-east-1", access_key="test", secret_key="test")
    S3Store(options).client().create_bucket(Bucket=bucket)
    return {"kind": "s3", "endpoint": endpoint, "bucket": bucket, "prefix": "team/models"}


@pytest.fixture
def repository(place: Place) -> ModelRepository:
    return opened_from(place)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "part-1.bin").write_bytes(b"\x00\x01" * 5000)
    (folder / "config.json").write_text('{"layers": 2}')
    return folder


def test_a_published_version_lists_every_file_with_its_checksum(repository: ModelRepository, output: Path) -> None:
    version = repository.publish(draft(), output, key="job-1-a1")

    assert version.number == 1
    assert [entry.path for entry in version.files] == ["config.json", "weights/part-1.bin"]
    sha256 = hashlib.sha256(b'{"layers": 2}').hexdigest()
    assert version.files[0] == FileEntry(path="config.json", size=13, sha256=sha256)
    assert version.checksum == tree_checksum(version.files)
    assert version.metrics == {"accuracy": 0.97}
    assert version.lineage == {"commit": "c" * 40}
    assert version.created_at == NOW


def test_what_is_read_back_is_what_was_published(repository: ModelRepository, output: Path) -> None:
    version = repository.publish(draft(), output, key="k")

    assert repository.get("digits", 1) == version
    assert list(repository.versions("digits")) == [version]
    assert list(repository.models()) == ["digits"]
    assert list(repository.verify(version)) == []


def test_what_was_never_published_is_not_there(repository: ModelRepository) -> None:
    assert repository.get("digits", 1) is None
    assert repository.get("digits", 0) is None
    assert list(repository.versions("digits")) == []
    assert list(repository.models()) == []


@pytest.mark.parametrize("name", ["../digits", "/etc", "Digits", "", "a//b"])
def test_a_name_that_is_none_has_no_versions_and_cannot_be_published(
    repository: ModelRepository, output: Path, name: str
) -> None:
    assert repository.get(name, 1) is None
    assert list(repository.versions(name)) == []
    with pytest.raises(RequestRefused):
        repository.publish(draft(name), output, key="k")
    assert list(repository.models()) == []


def test_versions_are_numbered_from_one_and_listed_newest_first(repository: ModelRepository, output: Path) -> None:
    numbers = [repository.publish(draft(), output, key=f"k{i}").number for i in range(12)]

    assert numbers == list(range(1, 13))
    assert [version.number for version in repository.versions("digits")] == list(range(12, 0, -1))


def test_models_may_have_segments_and_one_may_lie_below_another(repository: ModelRepository, output: Path) -> None:
    for name in ("vision/digits", "vision", "a/b/c"):
        repository.publish(draft(name), output, key="same key, other models")

    assert list(repository.models()) == ["a/b/c", "vision", "vision/digits"]
    assert [version.path for version in repository.versions("vision")] == ["vision/1"]


def test_the_same_key_gets_the_same_version_again(repository: ModelRepository, output: Path) -> None:
    first = repository.publish(draft(), output, key="job-1-a1")
    repository.publish(draft(), output, key="job-2-a1")

    assert repository.publish(draft(), output, key="job-1-a1") == first
    assert len(repository.versions("digits")) == 2


def test_the_same_key_is_answered_also_when_the_output_is_gone(
    repository: ModelRepository, output: Path, tmp_path: Path
) -> None:
    first = repository.publish(draft(), output, key="job-1-a1")

    assert repository.publish(draft(), tmp_path / "gone", key="job-1-a1") == first


def test_a_later_change_of_the_output_does_not_reach_the_version(repository: ModelRepository, output: Path) -> None:
    version = repository.publish(draft(), output, key="k")
    with (output / "config.json").open("r+") as file:
        file.write("changed")

    assert list(repository.verify(version)) == []


def test_a_model_may_bring_a_manifest_of_its_own(repository: ModelRepository, output: Path) -> None:
    (output / "manifest.json").write_text("the model's own")
    version = repository.publish(draft(), output, key="k")

    assert "manifest.json" in [entry.path for entry in version.files]
    assert list(repository.verify(version)) == []
    assert repository.get("digits", 1) == version


def test_metrics_without_a_number_survive(repository: ModelRepository, output: Path) -> None:
    made = ModelDraft(model="digits", metrics={"loss": float("inf")}, lineage={"name": "Ünïcode"}, created_at=NOW)
    repository.publish(made, output, key="k")

    version = repository.get("digits", 1)
    assert version is not None
    assert version.metrics == {"loss": float("inf")}
    assert version.lineage == {"name": "Ünïcode"}


def test_an_empty_or_missing_folder_is_refused(repository: ModelRepository, tmp_path: Path) -> None:
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    for folder in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(RequestRefused) as caught:
            repository.publish(draft(), folder, key="k")
        assert [problem.code for problem in caught.value.problems] == ["no_files"]
    assert list(repository.versions("digits")) == []


def test_everything_wrong_with_a_folder_is_told_at_once(
    repository: ModelRepository, output: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("secret")
    (output / "out").symlink_to(tmp_path / "secret")
    (output / "dangling").symlink_to("nowhere")
    os.mkfifo(output / "pipe")

    with pytest.raises(RequestRefused) as caught:
        repository.publish(draft("../x"), output, key="k")

    codes = {problem.code for problem in caught.value.problems}
    assert codes == {"dot_segment", "link_leaves", "unreadable", "special_file"}
    assert list(repository.models()) == []


def test_a_link_inside_the_output_becomes_its_content(repository: ModelRepository, output: Path) -> None:
    (output / "latest.bin").symlink_to("weights/part-1.bin")
    (output / "newest").symlink_to("weights")

    version = repository.publish(draft(), output, key="k")

    by_path = {entry.path: entry.sha256 for entry in version.files}
    assert by_path["latest.bin"] == by_path["newest/part-1.bin"] == by_path["weights/part-1.bin"]
    assert list(repository.verify(version)) == []


def test_verify_names_a_version_that_is_not_there(repository: ModelRepository, output: Path) -> None:
    version = repository.publish(draft(), output, key="k")

    assert list(repository.verify(replace(version, number=9))) != []
    assert list(repository.verify(replace(version, checksum="sha256:" + "0" * 64))) != []


@pytest.fixture
def run_publisher(place: Place, tmp_path: Path) -> Iterator[Callable[[Path, str], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def run(folder: Path, key: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(PUBLISHER), json.dumps(place), str(folder), key, str(tmp_path / "start")]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate(timeout=10)


def test_ten_racing_processes_get_consecutive_numbers_and_nothing_is_lost(
    repository: ModelRepository,
    output: Path,
    tmp_path: Path,
    run_publisher: Callable[[Path, str], subprocess.Popen[str]],
) -> None:
    processes = [run_publisher(output, f"job-{i}-a1") for i in range(10)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    (tmp_path / "start").touch()

    answers = [process.communicate(timeout=100) for process in processes]

    assert sorted(int(out) for out, _ in answers) == list(range(1, 11)), [err[-500:] for _, err in answers]
    versions = repository.versions("digits")
    assert [version.number for version in versions] == list(range(10, 0, -1))
    assert [sentence for version in versions for sentence in repository.verify(version)] == []


def test_racing_publishers_of_one_key_get_one_version(repository: ModelRepository, output: Path) -> None:
    numbers: list[int] = []
    threads = [
        threading.Thread(target=lambda key=key: numbers.append(repository.publish(draft(), output, key=key).number))
        for key in ["same"] * 6 + ["other"] * 3
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert len(numbers) == 9
    assert sorted(set(numbers)) == [1, 2]
    assert len(repository.versions("digits")) == 2


def test_a_publisher_killed_in_the_middle_leaves_no_version(
    place: Place,
    repository: ModelRepository,
    tmp_path: Path,
    run_publisher: Callable[[Path, str], subprocess.Popen[str]],
) -> None:
    big = tmp_path / "big"
    big.mkdir()
    with (big / "weights.bin").open("wb") as file:
        file.truncate(600 << 20)
    process = run_publisher(big, "job-1-a1")
    (tmp_path / "start").touch()
    until = time.monotonic() + 60
    while not _has_begun(place, repository) and time.monotonic() < until:
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=10)

    assert list(repository.versions("digits")) == []
    assert list(repository.models()) == []
    assert _leftovers(place, repository) > 0

    small = tmp_path / "small"
    small.mkdir()
    (small / "weights.bin").write_bytes(b"1")
    assert repository.publish(draft(), small, key="job-1-a1").number == 1
    _clean_up(repository)
    assert _leftovers(place, repository) == 0
    assert list(repository.verify(repository.versions("digits")[0])) == []


def _has_begun(place: Place, repository: ModelRepository) -> bool:
    if place["kind"] == "local":
        return any(path.stat().st_size > 1 << 20 for path in Path(place["root"]).glob(".staging/*/weights.bin"))
    return _uploads(repository, place) > 0


def _leftovers(place: Place, repository: ModelRepository) -> int:
    if place["kind"] == "local":
        return len(list(Path(place["root"]).glob(".staging/*")))
    return _uploads(repository, place)


def _uploads(repository: ModelRepository, place: Place) -> int:
    from fermion.adapters.models.s3 import S3Models

    assert isinstance(repository, S3Models)
    answer = repository.store.client().list_multipart_uploads(Bucket=place["bucket"])
    return len(answer.get("Uploads", ()))


def _clean_up(repository: ModelRepository) -> None:
    from datetime import UTC, datetime, timedelta

    from fermion.adapters.models.s3 import S3Models

    if isinstance(repository, S3Models):
        repository.clear_leftovers(older_than=timedelta(0), now=datetime.now(UTC) + timedelta(seconds=2))
