"""The memory cluster and workflow engine: fakes are only worth their truth."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from builders import make_node
from fermion.adapters.memory.clock import MemoryClock
from fermion.adapters.memory.driver import MemoryDatasetSource, MemoryDriver
from fermion.adapters.memory.runs import MemoryRuns
from fermion.domain.artifacts import Image
from fermion.errors import DriverCannot, NotFound, OutsideBroken, OutsideUnavailable, RequestRefused

REPOSITORY = "https://example.org/digits.git"


@pytest.fixture
def clock() -> MemoryClock:
    return MemoryClock()


@pytest.fixture
def source() -> MemoryDatasetSource:
    return MemoryDatasetSource()


@pytest.fixture
def driver(clock: MemoryClock, source: MemoryDatasetSource) -> MemoryDriver:
    return MemoryDriver(clock, nodes=[make_node()], source=source)


def make_image(digest: str) -> Image:
    """An image with that content."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return Image(
        id="digits:1", digest=digest, category="official", source_type="x", source="x", created_at=at, updated_at=at
    )


def test_time_moves_only_when_it_is_told_to_and_never_back(clock: MemoryClock) -> None:
    before = clock.now()
    assert clock.advance(timedelta(seconds=3)) == clock.now() == before + timedelta(seconds=3)
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(timedelta(seconds=-1))


def test_nodes_are_observed_now(driver: MemoryDriver, clock: MemoryClock) -> None:
    clock.advance(timedelta(hours=1))
    assert driver.nodes.list_nodes() == [make_node(observed_at=clock.now())]
    driver.nodes.put()
    assert driver.nodes.list_nodes() == []


def test_an_image_is_pulled_by_the_digest_it_was_pinned_to(driver: MemoryDriver) -> None:
    driver.images.put(make_image("sha256:1"))
    assert driver.images.pull("digits:1", "sha256:1") == driver.images.pull("digits:1", "sha256:1")
    driver.images.put(make_image("sha256:2"))
    with pytest.raises(OutsideBroken, match="is sha256:2 now"):
        driver.images.pull("digits:1", "sha256:1")
    with pytest.raises(OutsideBroken, match="is gone"):
        driver.images.pull("other:1", "sha256:1")


def test_a_dataset_is_staged_as_it_was_scanned_or_not_at_all(
    driver: MemoryDriver, source: MemoryDatasetSource, clock: MemoryClock
) -> None:
    source.put("file:///digits", {"a.bin": b"1", "b.bin": b"2"})
    version = source.scan("digits", "file:///digits", now=clock.now())
    other = replace(version, checksum="sha256:0")
    location = driver.datasets.stage(version)
    source.put("file:///digits", {"a.bin": b"1", "b.bin": b"3"})
    assert driver.datasets.stage(version) == location
    with pytest.raises(OutsideBroken, match=r"b\.bin"):
        driver.datasets.stage(other)
    with pytest.raises(RequestRefused):
        source.scan("digits", "file:///elsewhere", now=clock.now())


def test_a_ref_means_its_newest_commit_and_a_commit_itself(driver: MemoryDriver) -> None:
    first = driver.code.commit(REPOSITORY, {"train.py": b"1"})
    second = driver.code.commit(REPOSITORY, {"train.py": b"2"})
    assert driver.code.resolve(REPOSITORY, "main") == second
    assert driver.code.resolve(REPOSITORY, first) == first
    assert len(first) == 40
    assert driver.code.checkout(REPOSITORY, first) != driver.code.checkout(REPOSITORY, second)
    assert driver.code.has_file(REPOSITORY, first, "train.py")
    assert not driver.code.has_file(REPOSITORY, first, "other.py")


@pytest.mark.parametrize(("repository", "ref"), [("https://example.org/other.git", "main"), (REPOSITORY, "nothing")])
def test_an_unknown_repository_or_ref_is_refused(driver: MemoryDriver, repository: str, ref: str) -> None:
    driver.code.commit(REPOSITORY, {"train.py": b"1"})
    with pytest.raises(RequestRefused):
        driver.code.resolve(repository, ref)


def test_places_outlive_workloads_until_the_job_is_forgotten(driver: MemoryDriver) -> None:
    space = driver.space
    output = space.output("job-1", 1)
    space.write(output, {"weights/model.bin": b"w"})
    assert (space.fetch_output(output) / "weights/model.bin").read_bytes() == b"w"
    assert not space.has_checkpoint("job-1")
    space.write(space.checkpoints("job-1"), {"last.pt": b"c"})
    assert space.has_checkpoint("job-1")
    space.forget("job-1")
    assert not space.has_checkpoint("job-1")
    with pytest.raises(NotFound, match="forgotten"):
        space.fetch_output(output)
    with pytest.raises(DriverCannot):
        space.fetch_output("/etc")


def test_attempts_write_apart_and_share_checkpoints(driver: MemoryDriver) -> None:
    space = driver.space
    assert space.output("job-1", 1) != space.output("job-1", 2)
    assert space.checkpoints("job-1") != space.checkpoints("job-2")
    assert space.log("job-1", 1) != space.log("job-1", 2)


def test_a_run_is_triggered_once(driver: MemoryDriver) -> None:
    runs = MemoryRuns()
    assert runs.state("train_model", "r1").state == "absent"
    assert runs.trigger("train_model", "r1", {"spec": {"pool": "p"}}) is True
    assert runs.trigger("train_model", "r1", {}) is False
    assert runs.conf("train_model", "r1") == {"spec": {"pool": "p"}}
    assert runs.state("train_model", "r1").state == "queued"


def test_only_an_unfinished_task_is_failed_and_the_run_goes_on() -> None:
    runs = MemoryRuns()
    runs.trigger("train_model", "r1", {})
    runs.put_task("train_model", "r1", "enqueue", "success")
    runs.put_task("train_model", "r1", "train", "deferred")
    for task in ("enqueue", "train"):
        runs.fail_task("train_model", "r1", task)
    seen = runs.state("train_model", "r1")
    assert (seen.state, seen.tasks) == ("running", {"enqueue": "success", "train": "failed"})
    with pytest.raises(NotFound):
        runs.fail_task("train_model", "r1", "nothing")
    runs.delete("train_model", "r1")
    assert runs.state("train_model", "r1").state == "absent"


def test_an_unfinished_task_that_nobody_needs_is_skipped() -> None:
    runs = MemoryRuns()
    runs.trigger("deploy_service", "r1", {})
    runs.put_task("deploy_service", "r1", "canary", "success")
    runs.put_task("deploy_service", "r1", "approve", "awaiting_input")
    for task in ("canary", "approve"):
        runs.skip_task("deploy_service", "r1", task)
    assert runs.state("deploy_service", "r1").tasks == {"canary": "success", "approve": "skipped"}


def test_a_cut_line_to_the_engine_is_unavailable() -> None:
    runs = MemoryRuns()
    runs.line.cut()
    with pytest.raises(OutsideUnavailable):
        runs.trigger("train_model", "r1", {})
    runs.line.mend()
    assert runs.state("train_model", "r1").state == "absent"
