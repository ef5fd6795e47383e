"""Per-job folders, names that stay inside the location root, and the driver put together."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from fermion.adapters.process import build
from fermion.adapters.process.layout import Layout, sweep
from fermion.adapters.process.space import ProcessSpace
from fermion.errors import DriverCannot, NotFound
from fermion.ports import Code, Datasets, Driver, ModelCache, Router

JOB = "job-20260302-001"


class SystemClock:
    """The real present."""

    def now(self) -> datetime:
        return datetime.now(UTC)


def test_places_are_made_and_apart_for_each_attempt_while_checkpoints_are_shared(tmp_path: Path) -> None:
    space = ProcessSpace(tmp_path)

    assert space.output(JOB, 1) != space.output(JOB, 2)
    assert Path(space.output(JOB, 1)).is_dir()
    assert Path(space.checkpoints(JOB)).is_dir()
    assert space.checkpoints(JOB) == space.checkpoints(JOB)
    assert Path(space.log(JOB, 1)).parent == Path(space.output(JOB, 1)).parent


def test_output_is_fetched_from_its_own_place_only(tmp_path: Path) -> None:
    space = ProcessSpace(tmp_path)
    location = space.output(JOB, 1)

    assert space.fetch_output(location) == Path(location)
    with pytest.raises(NotFound, match="gone"):
        space.fetch_output(location + "-other")
    for outside in ("/etc", f"{tmp_path}/jobs/../../elsewhere"):
        with pytest.raises(DriverCannot, match="not an output location"):
            space.fetch_output(outside)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, False, id="none"),
        pytest.param({"epoch-3.pt": "weights"}, True, id="a file"),
        pytest.param({"epoch-3/model.bin": "weights"}, True, id="a file in a folder"),
        pytest.param({"epoch-3.pt.tmp": "half"}, False, id="only a half-written one"),
        pytest.param({".hidden": "x"}, False, id="only a hidden one"),
        pytest.param({"epoch-3.pt": ""}, False, id="only an empty one"),
    ],
)
def test_a_checkpoint_is_a_finished_file(tmp_path: Path, files: dict[str, str], expected: bool) -> None:
    space = ProcessSpace(tmp_path)
    folder = Path(space.checkpoints(JOB))
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    assert space.has_checkpoint(JOB) is expected


def test_a_job_never_seen_has_no_checkpoint_and_can_be_forgotten(tmp_path: Path) -> None:
    space = ProcessSpace(tmp_path)

    assert space.has_checkpoint(JOB) is False
    space.forget(JOB)


def test_forgetting_one_job_leaves_the_others(tmp_path: Path) -> None:
    space = ProcessSpace(tmp_path)
    gone, kept = Path(space.output(JOB, 1)), Path(space.output("job-20260302-0010", 1))
    removed = Layout(tmp_path).removed
    removed.mkdir()
    for name in (f"{JOB}-a1", f"{JOB}-a2", "job-20260302-0010-a1"):
        (removed / name).write_text("{}")
    space.forget(JOB)

    assert not gone.exists()
    assert kept.exists()
    assert [path.name for path in removed.iterdir()] == ["job-20260302-0010-a1"]
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["job-20260302-0010"]


@pytest.mark.parametrize("job_id", ["", "..", "../x", "a/b", ".x", "x."])
def test_a_job_id_cannot_lead_out_of_the_root(tmp_path: Path, job_id: str) -> None:
    space = ProcessSpace(tmp_path)
    for call in (space.checkpoints, space.has_checkpoint, space.forget):
        with pytest.raises(DriverCannot, match="cannot name a folder"):
            call(job_id)


def test_a_location_root_keeps_its_identity_and_shares_it_with_no_other(tmp_path: Path) -> None:
    first = Layout(tmp_path / "a").identity()

    assert Layout(tmp_path / "a").identity() == first
    assert Layout(tmp_path / "b").identity() != first


def test_only_abandoned_hidden_folders_are_swept(tmp_path: Path) -> None:
    for name in (".new-old", ".new-young", "job-1-a1"):
        (tmp_path / name).mkdir()
    for name in (".new-old", "job-1-a1"):
        os.utime(tmp_path / name, (0, 0))
    sweep(tmp_path)
    sweep(tmp_path / "absent")

    assert sorted(path.name for path in tmp_path.iterdir()) == [".new-young", "job-1-a1"]


def make_driver(root: Path, *, production: bool) -> Driver:
    nothing = object()
    return build(
        cluster="local",
        root=root,
        clock=SystemClock(),
        datasets=cast(Datasets, nothing),
        code=cast(Code, nothing),
        models=cast(ModelCache, nothing),
        router=cast(Router, nothing),
        locks={},
        declared_slots=1,
        production=production,
    )


def test_the_driver_keeps_the_port(tmp_path: Path) -> None:
    driver = make_driver(tmp_path, production=False)

    assert driver.kind == "process"
    assert driver.workloads.names() == []
    assert driver.images.known() == []
    assert driver.space.has_checkpoint(JOB) is False


def test_production_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(DriverCannot, match="isolates nothing"):
        make_driver(tmp_path, production=True)
