"""Bad input gets one clear answer with all problems at once, before the queue: each kind of it, through the real adapters."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from world import DAG, POOL, REPOSITORY, World

from builders import make_policy, make_quota
from fermion.adapters import process
from fermion.adapters.datasets.cache import DatasetCache
from fermion.adapters.datasets.folder import Folders
from fermion.adapters.datasets.origin import Origins
from fermion.adapters.files.shelf import Shelf
from fermion.adapters.git.remotes import Rules as CodeRules
from fermion.adapters.git.repositories import Repositories
from fermion.adapters.machine import SystemClock
from fermion.adapters.memory.router import MemoryRouter
from fermion.adapters.models.staged import StagedModels
from fermion.domain.jobs import Phase
from fermion.domain.pools import Budget
from fermion.domain.problems import Problem
from fermion.domain.workloads import workload_name
from fermion.errors import OutsideUnavailable, RequestRefused
from fermion.usecases.launch import launch
from fermion.usecases.queries import job_by_id
from fermion.usecases.release import release
from fermion.usecases.save import save_model
from fermion.usecases.submit import submit
from fermion.usecases.tend import Tender
from fermion.usecases.wait import wait_for_grant

HOUR = timedelta(hours=1)


def problems(world: World, **changes: object) -> tuple[Problem, ...]:
    """What the one answer says, given at the command line's door; nothing may be in line or running after it."""
    with pytest.raises(RequestRefused) as refused:
        launch(world.ctx, world.runs, world.request(**changes), actor="ann")
    with world.ctx.store.read() as tx:
        for job in tx.jobs.find():
            assert job.phase is Phase.FAILED
            assert world.runs.state(DAG, job.id).state == "absent"
    for problem in refused.value.problems:
        assert str(problem) in str(refused.value), "the message shows every problem"
    return refused.value.problems


def codes(found: tuple[Problem, ...]) -> dict[str, set[str]]:
    """Field to what is wrong with it."""
    return {field: {each.code for each in found if each.field == field} for field in {each.field for each in found}}


# --- one answer -------------------------------------------------------------------------------------------------------


def test_ten_problems_of_every_kind_are_one_answer(world: World) -> None:
    found = problems(
        world,
        image="unknown:1",
        datasets=["digits", "nothing", "../up"],
        ref="no-such-branch",
        entrypoint="train.py; id",
        output_model="../x",
        gpus_per_node=64,
        max_runtime="soon",
        hyperparameters={"layers": [1, 2]},
        checkpoint="job-20250101-001",
        gitRepoo="x",
    )
    assert codes(found) == {
        "image": {"unknown_image"},
        "datasets": {"bad_name", "unknown_dataset"},
        "ref": {"ref_not_found"},
        "entrypoint": {"shell_character"},
        "output_model": {"dot_segment"},
        "gpus": {"over_pool", "over_node"},
        "max_runtime": {"not_a_duration"},
        "hyperparameters.layers": {"nested"},
        "checkpoint": {"no_checkpoint"},
        "gitRepoo": {"unknown_field"},
    }
    assert len(found) == 12
    assert "the training request has 12 problems:" in str(RequestRefused(found, what="training request"))


@pytest.mark.parametrize(
    ("pool", "code"),
    [
        pytest.param("local/h100", "unknown_pool", id="a pool that its cluster does not have"),
        pytest.param("nowhere/h100", "unknown_pool", id="a cluster that there is not"),
        pytest.param("H100", "bad_name", id="no pool's name"),
        pytest.param("", "missing", id="no pool at all"),
    ],
)
def test_whatever_is_wrong_with_the_pool_everything_else_is_looked_up(world: World, pool: str, code: str) -> None:
    found = problems(world, pool=pool, image="unknown:1", datasets=["nothing"], ref="x", checkpoint="job-20250101-001")
    assert codes(found) == {
        "pool": {code},
        "image": {"unknown_image"},
        "datasets": {"unknown_dataset"},
        "ref": {"ref_not_found"},
        "checkpoint": {"no_checkpoint"},
    }


def test_a_field_that_cannot_be_read_hides_nothing_of_the_others(world: World) -> None:
    assert codes(problems(world, repository=REPOSITORY + "?x", ref="nowhere")) == {"repository": {"unsafe"}}
    assert codes(problems(world, repository="https://git.example/other", ref="a..b")) == {
        "repository": {"repository_not_found"},
        "ref": {"unsafe"},
    }
    assert codes(problems(world, ref="a..b")) == {"ref": {"unsafe"}}, "what it would have meant is not guessed"
    assert codes(problems(world, entrypoint="other.py", name=7)) == {
        "entrypoint": {"entrypoint_missing"},
        "name": {"not_text"},
    }


def test_a_team_that_cannot_be_read_is_not_judged_by_its_quota_but_the_pools_limits_are(tmp_path: Path) -> None:
    teams = {"vision": make_quota(4, lending=0)}
    world = World(tmp_path, policies={POOL: make_policy(teams=teams, max_gpus_per_job=2)})
    assert codes(problems(world, team="x y", gpus=3)) == {"team": {"bad_name"}, "gpus": {"over_job_limit"}}


def test_the_same_run_id_with_another_request_is_one_problem_among_the_others(world: World) -> None:
    world.submit(run_id="run-1")
    for changes, others in (
        ({"gpus": 0}, {"gpus": {"out_of_range"}}),
        ({"image": "unknown:1"}, {"image": {"unknown_image"}}),
    ):
        with pytest.raises(RequestRefused) as refused:
            submit(world.ctx, world.request(**changes), dag_id=DAG, run_id="run-1", actor="ann")
        assert codes(refused.value.problems) == {"run_id": {"run_id_taken"}, **others}


@pytest.mark.parametrize("outage", ["cluster", "dataset source", "store"])
def test_what_does_not_answer_neither_hides_a_problem_nor_delays_the_answer(world: World, outage: str) -> None:
    cut = {"cluster": world.driver.line.cut, "dataset source": world.source_line.cut, "store": world.memory.fail}
    cut[outage]()
    with pytest.raises(RequestRefused) as refused:
        submit(world.ctx, world.request(gpus=0, datasets=["digits", "nothing"]), dag_id=DAG, run_id="r", actor="ann")
    found = codes(refused.value.problems)
    silent = {
        "cluster": {"pool", "image", "repository"},
        "dataset source": {"datasets.digits"},
        "store": {"pool", "datasets"},
    }
    assert {field for field, known in found.items() if "not_looked_up" in known} == silent[outage]
    assert found["gpus"] == {"out_of_range"}
    assert found["datasets"] == {"not_looked_up" if outage == "store" else "unknown_dataset"}


def test_a_good_request_waits_for_what_does_not_answer(world: World) -> None:
    job = world.submit()
    with world.line_cut(), pytest.raises(OutsideUnavailable):
        world.stage(job.id)
    assert world.stage(job.id).phase is Phase.STAGING


# --- each kind of bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"pool": "local/h100"}, {"pool": {"unknown_pool"}}, id="unknown pool"),
        pytest.param({"image": "nothing:1"}, {"image": {"unknown_image"}}, id="unknown image"),
        pytest.param({"datasets": ["nothing"]}, {"datasets": {"unknown_dataset"}}, id="unknown dataset"),
        pytest.param({"gpus": 0}, {"gpus": {"out_of_range"}}, id="no GPU"),
        pytest.param({"gpus": -1}, {"gpus": {"out_of_range"}}, id="fewer GPUs than none"),
        pytest.param({"gpus": 0.5}, {"gpus": {"fractional"}}, id="half a GPU"),
        pytest.param({"gpus": 10**9}, {"gpus": {"out_of_range"}}, id="GPUs beyond reason"),
        pytest.param({"gpus": 5}, {"gpus": {"over_pool", "over_node"}}, id="more than the pool could ever hold"),
        pytest.param({"nodes": 2}, {"nodes": {"too_few_nodes"}}, id="more nodes than there are"),
        pytest.param({"output_model": "a/../b"}, {"output_model": {"dot_segment"}}, id="output path with dots"),
        pytest.param({"output_model": "/etc/x"}, {"output_model": {"absolute"}}, id="absolute output"),
        pytest.param({"output_model": "gs://b/x"}, {"output_model": {"foreign_scheme"}}, id="output elsewhere"),
        pytest.param(
            {"hyperparameters": {"a": {"b": 1}}}, {"hyperparameters.a": {"nested"}}, id="nested hyperparameters"
        ),
        pytest.param({"hyperparameters": {"a": float("nan")}}, {"hyperparameters.a": {"not_finite"}}, id="NaN"),
        pytest.param({"hyperparameters": {"a": "x" * 2**20}}, {"hyperparameters": {"too_large"}}, id="a megabyte"),
        pytest.param({"entrypoint": "train.py && id"}, {"entrypoint": {"shell_character"}}, id="a shell's characters"),
        pytest.param({"entrypoint": "python ../x.py"}, {"entrypoint": {"outside_repository"}}, id="outside entrypoint"),
    ],
)
def test_each_kind_is_refused_before_the_queue(
    world: World, changes: dict[str, object], expected: dict[str, set[str]]
) -> None:
    assert codes(problems(world, **changes)) == expected


@pytest.mark.parametrize(
    ("policy", "changes", "expected"),
    [
        pytest.param({"max_gpus_per_job": 1}, {}, {"gpus": {"over_job_limit"}}, id="per job"),
        pytest.param({"max_gpus_per_user": 1}, {}, {"gpus": {"over_user_limit"}}, id="per user"),
        pytest.param(
            {"teams": {"vision": make_quota(1, borrowing=0)}},
            {"team": "vision"},
            {"gpus": {"over_team_limit"}},
            id="per team",
        ),
        pytest.param(
            {"user_budget": Budget(gpu_hours=1, window=24 * HOUR)},
            {"max_runtime": "2h"},
            {"max_runtime": {"over_user_budget"}},
            id="GPU-hours",
        ),
    ],
)
def test_over_a_limit_is_refused_before_the_queue(
    tmp_path: Path, policy: dict[str, Any], changes: dict[str, object], expected: dict[str, set[str]]
) -> None:
    world = World(tmp_path, **policy)
    assert codes(problems(world, gpus=2, **changes)) == expected


# --- a real repository ------------------------------------------------------------------------------------------------


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    ran = subprocess.run(["git", *who, *words], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return ran.stdout.strip()


def make_repository(folder: Path, files: Mapping[str, str]) -> Path:
    """A repository with these files on ``main``, and with a link out of it on ``linked``."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content)
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")
    git(folder, "checkout", "--quiet", "-b", "linked")
    (folder / "out.py").symlink_to("../../out.py")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a link")
    git(folder, "checkout", "--quiet", "main")
    return folder


@pytest.fixture
def coded(tmp_path: Path) -> World:
    """The platform in memory with real git: one repository, in a folder whose name needs care."""
    world = World(tmp_path)
    make_repository(tmp_path / "my Übungen" / "digits", {"train.py": "print(1)"})
    rules = CodeRules(hosts=["github.com"], file_roots=[tmp_path / "my Übungen"], embedded=True)
    world.driver.code = Repositories(tmp_path / "cache", rules=rules)  # type: ignore[assignment]
    return world


def url_of(folder: Path) -> str:
    return (folder / "my Übungen" / "digits").as_uri()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"repository": "ext::sh -c id"}, {"repository": {"unsafe"}}, id="a transport that runs commands"),
        pytest.param({"repository": "--upload-pack=id"}, {"repository": {"unsafe"}}, id="an option"),
        pytest.param({"repository": "https://evil.org/x"}, {"repository": {"host_not_allowed"}}, id="unlisted host"),
        pytest.param({"repository": "file:///etc"}, {"repository": {"outside_roots"}}, id="another folder"),
        pytest.param({"ref": "no-such-branch"}, {"ref": {"no_such_ref"}}, id="missing branch"),
        pytest.param({"entrypoint": "nowhere.py"}, {"entrypoint": {"entrypoint_missing"}}, id="no such file"),
        pytest.param(
            {"entrypoint": "python out.py", "ref": "linked"},
            {"entrypoint": {"entrypoint_missing"}},
            id="a link that leaves",
        ),
        pytest.param(
            {"repository": "https://evil.org/x", "ref": "a..b", "entrypoint": "a|b"},
            {"repository": {"host_not_allowed"}, "ref": {"unsafe"}, "entrypoint": {"shell_character"}},
            id="all three at once",
        ),
        pytest.param({"ref": "a..b", "gpus": 0}, {"ref": {"unsafe"}, "gpus": {"out_of_range"}}, id="nothing made up"),
    ],
)
def test_bad_code_is_refused_by_real_git(
    coded: World, tmp_path: Path, changes: dict[str, object], expected: dict[str, set[str]]
) -> None:
    assert codes(problems(coded, **{"repository": url_of(tmp_path), **changes})) == expected


@pytest.mark.parametrize("written", ["percent-encoded", "literal"])
def test_a_repository_whose_path_has_a_space_and_letters_beyond_ascii_is_trained_from(
    coded: World, tmp_path: Path, written: str
) -> None:
    url = url_of(tmp_path) if written == "percent-encoded" else f"file://{tmp_path}/my Übungen/digits"
    job = coded.stage(coded.submit(repository=url).id)
    assert job.pins is not None
    assert job.pins.commit == git(tmp_path / "my Übungen" / "digits", "rev-parse", "HEAD")


# --- a real dataset folder --------------------------------------------------------------------------------------------


def test_a_link_out_of_a_dataset_is_refused_together_with_the_rest(tmp_path: Path) -> None:
    data = tmp_path / "the data" / "digits"
    data.mkdir(parents=True)
    (data / "passwords").symlink_to("/etc/passwd")
    (data / "up").symlink_to("../..")
    world = World(tmp_path)
    world.ctx = replace(
        world.ctx,
        dataset_source=Origins({"file": Folders([tmp_path / "the data"])}),
        rules=replace(world.ctx.rules, datasets={"digits": data.as_uri()}),
    )
    found = problems(world, gpus=0, image="unknown:1")
    assert codes(found) == {
        "gpus": {"out_of_range"},
        "image": {"unknown_image"},
        "datasets.digits": {"link_leaves"},
    }
    assert {each.message.split()[0] for each in found if each.field == "datasets.digits"} == {"passwords", "up"}


def test_a_dataset_larger_than_the_cluster_may_ever_stage_is_refused_before_the_queue(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_bytes(b"x" * 100)
    world, source = World(tmp_path), Origins({"file": Folders([tmp_path / "data"])})
    rules = replace(world.ctx.rules, datasets={"digits": (tmp_path / "data").as_uri()})
    world.ctx = replace(world.ctx, dataset_source=source, rules=rules)
    world.driver.datasets = DatasetCache(Shelf(tmp_path / "cache", size_limit=99), source)  # type: ignore[assignment]
    assert codes(problems(world, gpus=0)) == {"gpus": {"out_of_range"}, "datasets.digits": {"over_cache"}}
    world.driver.datasets = DatasetCache(Shelf(tmp_path / "cache", size_limit=100), source)  # type: ignore[assignment]
    assert world.stage(world.submit().id).phase is Phase.STAGING


# --- real training code -----------------------------------------------------------------------------------------------

WRONG = r"""
import os, pathlib, sys
out = sys.stdout.buffer
out.write(b'\xff\xfe\xc3( is no text\n{"progress": broken\n{"progress": -7, "epoch": 99, "epochs": 3}\n')
out.write(b'{"progress": 400, "metrics": {"loss": NaN, "accuracy": 0.5, "nested": {"a": 1}}}\n{never closed')
out.flush()
pathlib.Path(os.environ["FERMION_OUTPUT_DIR"], "model.bin").write_bytes(b"weights")
"""


@pytest.fixture
def real(tmp_path: Path) -> Iterator[World]:
    """The process driver with real git, folders and an environment, below a folder whose name needs care."""
    root = tmp_path / "der Ort"
    make_repository(root / "code" / "digits", {"train.py": WRONG})
    (root / "data").mkdir()
    (root / "data" / "digits.csv").write_text("1,2")
    (root / "python.lock").write_text("# Nothing but the standard library.\n")
    clock, source = SystemClock(), Origins({"file": Folders([root / "data"])})
    driver = process.build(
        cluster="local",
        root=root / "work",
        clock=clock,
        datasets=DatasetCache(Shelf(root / "cache"), source),
        code=Repositories(root / "work" / "cache", rules=CodeRules(file_roots=[root / "code"], embedded=True)),
        models=StagedModels(Shelf(root / "models"), source),
        router=MemoryRouter(clock),
        locks={"python:3": root / "python.lock"},
        declared_slots=1,
        measure_devices=False,
    )
    world = World(tmp_path)
    rules = replace(world.ctx.rules, datasets={"digits": (root / "data").as_uri()})
    world.ctx = replace(world.ctx, clock=clock, drivers={"local": driver}, dataset_source=source, rules=rules)
    yield world
    for name in driver.workloads.names():
        driver.workloads.stop(name, grace=timedelta(0), why="the test is over")
    driver.workloads.end_orphans()


def test_code_that_prints_no_text_broken_json_and_400_percent_trains_well(real: World, tmp_path: Path) -> None:
    ctx, repository = real.ctx, (tmp_path / "der Ort" / "code" / "digits").as_uri()
    job = real.submit(repository=repository, image="python:3", entrypoint="python train.py")
    real.stage(job.id)
    job = wait_for_grant(ctx, job.id, patience=timedelta(seconds=10))
    deadline = time.monotonic() + 60
    while job.phase not in (Phase.SAVING, Phase.FAILED) and time.monotonic() < deadline:
        job = Tender(ctx).round().get(job.id, job_by_id(ctx, job.id))
        time.sleep(0.05)
    assert job.phase is Phase.SAVING, job.explanation.message
    assert (job.progress.percent, job.progress.epoch, job.progress.epochs) == (100.0, 3, 3)
    version = save_model(ctx, job.id)
    assert release(ctx, job.id).phase is Phase.COMPLETED
    assert dict(version.metrics) == {"accuracy": 0.5}
    log = ctx.driver_of(POOL).workloads.log(workload_name(job.id, 1)).text
    assert "\ufffd\ufffd\ufffd( is no text" in log
