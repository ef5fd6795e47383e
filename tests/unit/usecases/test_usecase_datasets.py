"""Registering datasets: what can be registered, who may ask for it then, and that its versions are announced."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from fermion.adapters.datasets.cache import DatasetCache
from fermion.adapters.datasets.folder import Folders
from fermion.adapters.datasets.origin import Origins
from fermion.adapters.files.shelf import Shelf
from fermion.errors import NotFound, OutsideUnavailable, RequestRefused
from fermion.usecases.datasets import Announcer, announce_datasets, forget_dataset, known_datasets, register_dataset
from fermion.usecases.stage import mount_dataset
from fermion.usecases.sync import write_choices
from platforms import Platform

SYNC = "sync_platform"


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    """Real folders below ``data``; the configuration knows ``digits`` there."""
    platform = Platform(tmp_path)
    for name in ("digits", "faces of all", "outside/faces"):
        folder = tmp_path / ("" if name.startswith("outside") else "data") / name
        folder.mkdir(parents=True)
        (folder / "a.csv").write_text("1,2")
    source = Origins({"file": Folders([tmp_path / "data"])})
    rules = replace(platform.ctx.rules, datasets={"digits": uri(tmp_path, "digits")})
    platform.ctx = replace(platform.ctx, dataset_source=source, rules=rules)
    return platform


def uri(folder: Path, name: str) -> str:
    return (folder / "data" / name).as_uri()


def announced(platform: Platform, run_id: str) -> list[str]:
    """What one run of the sync announces; its task ends well."""
    platform.runs.trigger(SYNC, run_id, {})
    found = announce_datasets(platform.ctx, Announcer(dag_id=SYNC, run_id=run_id, task_id="sync"))
    platform.runs.put_task(SYNC, run_id, "sync", "success")
    return [version.dataset for version in found]


def test_a_registered_dataset_can_be_asked_for_is_offered_and_each_version_is_announced_once(
    platform: Platform, tmp_path: Path
) -> None:
    assert announced(platform, "s1") == ["digits"]
    version = register_dataset(platform.ctx, "faces", uri(tmp_path, "faces of all"), actor="ann").version
    assert announced(platform, "s2") == ["faces"]
    assert announced(platform, "s3") == []
    job = platform.submit(datasets=["faces", "digits"])
    assert job.pins is not None
    assert job.pins.datasets["faces"] == version.checksum
    write_choices(platform.ctx)
    assert json.loads((tmp_path / "choices.json").read_text())["datasets"] == ["digits", "faces"]
    (tmp_path / "data" / "faces of all" / "b.csv").write_text("3,4")
    known = register_dataset(platform.ctx, "faces", uri(tmp_path, "faces of all"), actor="ann")
    assert (known.version.checksum != version.checksum, known.is_new) == (True, True)
    assert not register_dataset(platform.ctx, "faces", uri(tmp_path, "faces of all"), actor="ann").is_new
    assert announced(platform, "s4") == ["faces"]
    with platform.ctx.store.read() as tx:
        assert len(tx.catalog.dataset_versions("faces")) == 2
        told = [(event.verb, event.actor) for _, event in tx.records.events(target="faces")]
    assert told == [("dataset.registered", "ann")] * 3


def test_registering_says_everything_that_is_wrong_and_changes_nothing(platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "data" / "digits" / "passwords").symlink_to("/etc/passwd")
    for name, place, codes in (
        ("No Name", uri(tmp_path, "digits"), {"bad_name", "link_leaves"}),
        ("digits", uri(tmp_path, "faces of all"), {"configured"}),
        ("faces", (tmp_path / "outside" / "faces").as_uri(), {"outside_roots"}),
        ("faces", "ftp://host/faces", {"unknown_scheme"}),
        ("faces", uri(tmp_path, "nowhere"), {"not_found"}),
    ):
        with pytest.raises(RequestRefused) as refused:
            register_dataset(platform.ctx, name, place, actor="ann")
        assert {problem.code for problem in refused.value.problems} == codes
    assert set(known_datasets(platform.ctx)) == {"digits"}


def test_a_dataset_that_moved_is_staged_from_where_it_lies_now(platform: Platform, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "cache")
    platform.driver.datasets = DatasetCache(shelf, platform.ctx.dataset_source)  # type: ignore[assignment,arg-type]
    register_dataset(platform.ctx, "faces", uri(tmp_path, "faces of all"), actor="ann")
    job = platform.submit(datasets=["faces"])
    (tmp_path / "data" / "faces of all").rename(tmp_path / "data" / "moved")
    register_dataset(platform.ctx, "faces", uri(tmp_path, "moved"), actor="ann")
    assert mount_dataset(platform.ctx, job.id).keys() == {"faces"}


def test_a_place_that_does_not_answer_registers_nothing(tmp_path: Path) -> None:
    platform = Platform(tmp_path)
    platform.source_line.cut()
    with pytest.raises(OutsideUnavailable):
        register_dataset(platform.ctx, "faces", "file:///srv/data/digits", actor="ann")
    assert set(known_datasets(platform.ctx)) == {"digits"}


def test_a_forgotten_dataset_cannot_be_asked_for_and_what_jobs_pinned_of_it_stays(
    platform: Platform, tmp_path: Path
) -> None:
    version = register_dataset(platform.ctx, "faces", uri(tmp_path, "faces of all"), actor="ann").version
    platform.submit("r1", datasets=["faces"])
    forget_dataset(platform.ctx, "faces", actor="bob")
    with pytest.raises(RequestRefused, match="no dataset 'faces'"):
        platform.submit("r2", datasets=["faces"])
    with platform.ctx.store.read() as tx:
        assert [each.checksum for each in tx.catalog.dataset_versions("faces")] == [version.checksum]
    for name, how in (("faces", "`fermion datasets` lists"), ("digits", "datasets in config/fermion.yaml")):
        with pytest.raises(NotFound, match=f"not registered: .*{how}"):
            forget_dataset(platform.ctx, name, actor="bob")


def test_racing_registrations_lose_none(platform: Platform, tmp_path: Path) -> None:
    names = [f"faces-{number}" for number in range(20)]
    place = uri(tmp_path, "faces of all")
    threads = [
        threading.Thread(target=register_dataset, args=(platform.ctx, name, place), kwargs={"actor": "ann"})
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert set(known_datasets(platform.ctx)) == {"digits", *names}
