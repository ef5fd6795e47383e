"""One whole training on a live platform: the quickest proof that everything is joined rightly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.live import Live, wait_until
from fermion.domain.accounting import account, total
from fermion.domain.leases import HolderKind

pytestmark = [pytest.mark.live, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder: Path = tmp_path_factory.mktemp("live in Übung ")  # a path may hold a space, and letters beyond ASCII
    for each in (folder, *folder.parents):
        if each.stat().st_uid == 0 and str(each).startswith("/tmp/"):
            each.chmod(0o755)  # an unprivileged database server has to reach its folder
    platform = Live(folder)
    try:
        platform.up()
        yield platform
    finally:
        platform.down()
        assert not platform.processes(), "down left processes"


def test_a_training_goes_through_the_whole_pipeline(live: Live) -> None:
    job = live.wait_for_end(live.submit(hyperparameters={"seconds": 3, "epochs": 6}).id)

    assert (job.status, job.explanation.reason) == ("completed", "model_published"), job.explanation.message
    assert (job.progress.percent, job.progress.epoch) == (100, 6)
    version = live.ctx.models.get("sleeper", job.model_version or 0)
    assert version is not None
    assert not live.ctx.models.verify(version)
    assert version.lineage["job"] == job.id
    with live.ctx.store.read() as tx:
        leases = tx.leases.of_holder(HolderKind.JOB, job.id)
        assert sum(entry.gpus for entry in tx.leases.ledger()) == 0
        losses = tx.records.points(job.id, kind="training")
    assert losses, "no metric was read"
    used = total(account(lease, live.ctx.clock.now()) for lease in leases).used
    assert 2.5 <= used <= 20, "the training slept three seconds"
    assert wait_until(lambda: live.runs.state("train_model", job.id).state == "success")
    assert (live.settings.reports_dir / f"{job.id}.html").is_file()


def test_a_failing_training_fails_its_run_and_leaves_nothing(live: Live) -> None:
    job = live.wait_for_end(live.submit(hyperparameters={"seconds": 2, "epochs": 4, "after": 1, "fail": True}).id)

    assert (job.status, job.explanation.reason) == ("failed", "user_code")
    assert wait_until(lambda: live.runs.state("train_model", job.id).state == "failed")
    assert (live.settings.reports_dir / f"{job.id}.html").is_file()


def test_a_request_with_problems_is_refused_with_all_of_them(live: Live) -> None:
    spec = live.folder / "bad.json"
    spec.write_text(json.dumps(live.spec(image="nothing:1", datasets=["nowhere"], gpus=9)), encoding="utf-8")
    done = live.fermion("train", "--spec", str(spec), "--json", check=False)

    assert done.returncode == 2
    codes = {problem["code"] for problem in json.loads(done.stdout)["problems"]}
    assert {"unknown_image", "unknown_dataset"} <= codes
    assert len(codes) >= 3


def test_the_doctor_finds_all_well(live: Live) -> None:
    found = json.loads(
        wait_until(lambda: (done := live.fermion("doctor", "--json", check=False)).returncode == 0 and done.stdout)
    )
    assert found["ok"]
    assert (found["open_leases"], found["leaked_gpu_seconds"], found["orphans"]) == (0, 0, [])
