"""Each version of a dataset is announced once; what was not surely announced is announced again."""

from __future__ import annotations

from pathlib import Path

import pytest

from fermion.usecases.datasets import Announcer, announce_datasets
from platforms import Platform

SYNC = "sync_platform"


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    return Platform(tmp_path)


def put(platform: Platform, text: bytes) -> None:
    platform.source.put("file:///srv/data/digits", {"digits.csv": text})


def round_of(platform: Platform, run_id: str, *, ends: str | None = "success") -> list[str]:
    """The datasets that one run of the sync announces; then the run's task ends that way (None: it runs on)."""
    platform.runs.trigger(SYNC, run_id, {})
    found = announce_datasets(platform.ctx, Announcer(dag_id=SYNC, run_id=run_id, task_id="sync"))
    platform.runs.put_task(SYNC, run_id, "sync", ends or "running")
    return [version.dataset for version in found]


def test_the_first_version_is_announced_once(platform: Platform) -> None:
    assert [round_of(platform, run_id) for run_id in ("s1", "s2", "s3")] == [["digits"], [], []]


def test_a_changed_content_is_a_new_version_and_is_in_the_catalog(platform: Platform) -> None:
    round_of(platform, "s1")
    put(platform, b"4,5,6")
    assert round_of(platform, "s2") == ["digits"]
    assert round_of(platform, "s3") == []
    with platform.ctx.store.read() as tx:
        assert len(tx.catalog.dataset_versions("digits")) == 2


def test_a_version_that_a_training_has_pinned_before_is_announced_all_the_same(platform: Platform) -> None:
    platform.submit()
    assert round_of(platform, "s1") == ["digits"]


@pytest.mark.parametrize("end", ["failed", "upstream_failed", "running"])
def test_what_a_run_that_did_not_end_well_announced_is_announced_again(platform: Platform, end: str) -> None:
    assert round_of(platform, "s1", ends=end) == ["digits"]
    assert round_of(platform, "s2") == ["digits"]
    assert round_of(platform, "s3") == []


def test_a_further_try_of_the_same_task_announces_again(platform: Platform) -> None:
    assert round_of(platform, "s1", ends=None) == ["digits"]
    assert round_of(platform, "s1") == ["digits"]
    assert round_of(platform, "s2") == []


def test_while_the_engine_does_not_answer_an_unsure_announcement_is_repeated(platform: Platform) -> None:
    round_of(platform, "s1")
    platform.runs.line.cut()
    again = announce_datasets(platform.ctx, Announcer(dag_id=SYNC, run_id="s2", task_id="sync"))
    assert [version.dataset for version in again] == ["digits"]
    platform.runs.line.mend()
    assert round_of(platform, "s3") == ["digits"]  # s2 never ended well
    assert round_of(platform, "s4") == []


def test_a_source_that_is_gone_announces_nothing_and_is_found_again(platform: Platform) -> None:
    round_of(platform, "s1")
    platform.source_line.cut()
    assert round_of(platform, "s2") == []
    platform.source_line.mend()
    put(platform, b"7,8,9")
    assert round_of(platform, "s3") == ["digits"]
