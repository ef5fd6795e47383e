"""The examples: they train, report, resume and misbehave as they say; their repositories are the same on every machine."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from examples.make_repository import copy_dataset, make_repository, prepare
from fermion.domain.jobs import JobSpec, Progress
from fermion.domain.progress import ParsedProgress, parse
from fermion.domain.request import arguments_of, parse_request
from fermion.settings import Settings, load

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLES = CHECKOUT / "include" / "examples"
TRAIN = EXAMPLES / "digits" / "code" / "train.py"
SLEEP = EXAMPLES / "sleeper" / "code" / "sleep.py"
LOCK = EXAMPLES / "digits" / "code" / "requirements.lock"
DATA = EXAMPLES / "digits" / "data" / "digits.csv.gz"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the three places of a training and the dataset."""
    for name in ("data", "output", "checkpoints"):
        (tmp_path / name).mkdir()
    copy_dataset(DATA.parent, tmp_path / "data" / "digits")
    return tmp_path


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with what the digits training has locked."""
    folder = tmp_path_factory.mktemp("digits") / "environment"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True, timeout=120)
    install = [
        *uv,
        "pip",
        "install",
        "--quiet",
        "--require-hashes",
        "--python",
        str(folder),
        "--requirements",
        str(LOCK),
    ]
    subprocess.run(install, check=True, timeout=500)
    return str(folder / "bin" / "python")


def environment(place: Path, **more: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "FERMION_DATA_DIR": str(place / "data"),
        "FERMION_OUTPUT_DIR": str(place / "output"),
        "FERMION_CHECKPOINT_DIR": str(place / "checkpoints"),
        **more,
    }


def run(python: str, script: Path, place: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    command = [python, str(script), *arguments]
    return subprocess.run(command, env=environment(place, **more), capture_output=True, timeout=60, check=False)


def progress_of(output: bytes) -> ParsedProgress:
    """What the platform understands of it: the lines that begin with a brace."""
    lines = [line for line in output.decode(errors="replace").split("\n") if line.startswith("{")]
    return parse(lines, Progress(), now=datetime.now(UTC))


# --- digits ----------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_digits_learns_to_read_in_seconds_and_reports_every_epoch(python: str, place: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run(python, TRAIN, place)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr.decode()
    assert after.ru_utime - before.ru_utime < 15
    parsed = progress_of(done.stdout)
    assert parsed.remarks == ()
    assert (parsed.progress.percent, parsed.progress.epoch, parsed.progress.epochs) == (100, 12, 12)
    assert parsed.names == {"loss", "validation_loss", "accuracy"}
    metrics = json.loads((place / "output" / "metrics.json").read_text())
    assert metrics["accuracy"] > 0.93
    assert metrics["accuracy"] == pytest.approx(
        next(p.value for p in reversed(parsed.points) if p.name == "accuracy"), abs=1e-6
    )
    assert sorted(file.name for file in (place / "output").iterdir()) == [
        "metrics.json",
        "model.joblib",
        "signature.json",
    ]
    assert json.loads((place / "output" / "signature.json").read_text())["inputs"][0]["shape"] == [-1, 64]


@pytest.mark.timeout(600)
def test_the_digits_model_reads_digits_when_it_is_loaded_again(python: str, place: Path) -> None:
    assert run(python, TRAIN, place).returncode == 0
    read = """
import sys, joblib, numpy
table = numpy.loadtxt(sys.argv[2], delimiter=",", skiprows=1)
print((joblib.load(sys.argv[1]).predict(table[:, :-1] / 16) == table[:, -1]).mean())
"""
    command = [python, "-c", read, str(place / "output" / "model.joblib"), str(DATA)]
    assert float(subprocess.run(command, capture_output=True, timeout=60, check=True).stdout) > 0.95


@pytest.mark.timeout(600)
def test_digits_resumed_gives_the_same_model_as_digits_in_one_go(python: str, place: Path) -> None:
    elsewhere = place / "whole"
    elsewhere.mkdir()
    whole = run(
        python, TRAIN, place, "--epochs", "4", FERMION_CHECKPOINT_DIR=str(elsewhere), FERMION_OUTPUT_DIR=str(elsewhere)
    )
    first = run(python, TRAIN, place, "--epochs", "2")
    second = run(python, TRAIN, place, "--epochs", "4")
    assert (whole.returncode, first.returncode, second.returncode) == (0, 0, 0)
    assert b"resuming after epoch 2" in second.stdout
    assert progress_of(second.stdout).points[0].epoch == 3
    assert (place / "output" / "metrics.json").read_text() == (elsewhere / "metrics.json").read_text()


@pytest.mark.timeout(600)
def test_digits_starts_from_another_jobs_checkpoint_when_it_has_none(python: str, place: Path) -> None:
    (place / "other").mkdir()
    assert run(python, TRAIN, place, "--epochs", "1", FERMION_CHECKPOINT_DIR=str(place / "other")).returncode == 0
    done = run(python, TRAIN, place, "--epochs", "2", FERMION_RESUME_FROM=str(place / "other"))
    assert b"resuming after epoch 1" in done.stdout


@pytest.mark.timeout(600)
def test_digits_says_what_is_missing_or_does_not_fit(python: str, place: Path) -> None:
    assert run(python, TRAIN, place, "--epochs", "1").returncode == 0
    other = run(python, TRAIN, place, "--epochs", "2", "--hidden", "8")
    assert (other.returncode, b"'hidden': 64" in other.stderr) == (2, True)
    (place / "data" / "digits" / "digits.csv.gz").unlink()
    missing = run(python, TRAIN, place)
    assert missing.returncode == 2
    assert missing.stderr.decode().startswith("train.py: there is no ")
    assert "give the training the dataset 'digits'" in missing.stderr.decode()


@pytest.mark.timeout(600)
def test_digits_makes_a_model_that_misbehaves_only_when_asked_to(python: str, place: Path) -> None:
    asked = ("--epochs", "1", "--fault-error-share", "0.03", "--fault_leak_mib", "1")
    done = run(python, TRAIN, place, *asked)
    assert done.returncode == 0, done.stderr.decode()
    assert b"this model is made to misbehave" in done.stdout
    assert json.loads((place / "output" / "faults.json").read_text()) == {"error_share": 0.03, "leak_mib": 1}
    assert "fault" not in (place / "output" / "signature.json").read_text()
    refused = run(python, TRAIN, place, "--fault-error-share", "2")
    assert (refused.returncode, b"must be 0 to 1, not 2" in refused.stderr) == (2, True)


def test_the_digits_data_is_small_and_whole() -> None:
    assert DATA.stat().st_size < 120 * 1024
    header, *rows = gzip.decompress(DATA.read_bytes()).decode().splitlines()
    assert header.split(",")[-1] == "digit"
    assert len(rows) == 1797
    assert all(len(row.split(",")) == 65 for row in rows)


def test_the_digits_lock_pins_everything_with_hashes_and_names_no_index() -> None:
    text = LOCK.read_text()
    assert "http" not in text
    assert "index-url" not in text
    for requirement in re.findall(r"^\S.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL):
        assert re.match(r"[a-z0-9-]+==[0-9.]+", requirement)
        assert "--hash=sha256:" in requirement
    assert {"scikit-learn", "numpy", "joblib"} <= set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE))


# --- sleeper ---------------------------------------------------------------------------------------------------------


def sleeper(place: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return run(sys.executable, SLEEP, place, "--seconds", "0", "--epochs", "4", *arguments)


@contextmanager
def started(place: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A sleeper that has reported its first epoch; killed at the end if it still lives."""
    command = [sys.executable, str(SLEEP), *arguments]
    process = subprocess.Popen(command, env=environment(place), stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"{")
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def test_the_sleeper_reports_and_leaves_a_model(place: Path) -> None:
    done = sleeper(place)
    assert done.returncode == 0, done.stderr.decode()
    parsed = progress_of(done.stdout)
    assert (parsed.progress.percent, parsed.remarks, len(parsed.points)) == (100, (), 4)
    assert sorted(file.name for file in (place / "output").iterdir()) == ["metrics.json", "model.json"]


def test_the_sleeper_makes_its_model_as_large_as_asked_for(place: Path) -> None:
    assert sleeper(place, "--output-mib", "2").returncode == 0
    assert (place / "output" / "weights.bin").stat().st_size == 2 * 1024 * 1024


def test_the_sleeper_fails_when_asked_to_and_goes_on_from_its_checkpoint(place: Path) -> None:
    failed = sleeper(place, "--after", "2", "--fail", "true")
    assert failed.returncode == 1
    assert b"failing, as asked for" in failed.stderr
    assert not (place / "output" / "model.json").exists()
    again = sleeper(place, "--after", "2", "--fail", "true")
    assert again.returncode == 0
    assert b"resuming after epoch 2" in again.stdout
    assert [point.epoch for point in progress_of(again.stdout).points] == [3, 4]


def test_a_killed_sleeper_leaves_a_checkpoint_that_can_be_read(place: Path) -> None:
    with started(place, "--seconds", "600", "--epochs", "6000") as process:
        process.kill()
        process.wait(timeout=30)
    assert json.loads((place / "checkpoints" / "checkpoint.json").read_text())["epoch"] >= 1


@pytest.mark.parametrize(
    ("switch", "remark"), [("--claims-400-percent", "clamped"), ("--broken-json", "broken_json"), ("--bad-utf8", None)]
)
def test_what_a_sleeper_claims_is_not_believed(place: Path, switch: str, remark: str | None) -> None:
    done = sleeper(place, switch)
    assert done.returncode == 0
    parsed = progress_of(done.stdout)
    assert {found.code for found in parsed.remarks} == ({remark} if remark else set())
    assert parsed.progress.percent == 100


def test_the_sleeper_prints_bytes_that_are_no_text(place: Path) -> None:
    with pytest.raises(UnicodeDecodeError):
        sleeper(place, "--bad-utf8").stdout.decode()


def test_the_sleeper_prints_as_much_as_asked_for(place: Path) -> None:
    assert len(sleeper(place, "--spam", "3").stdout) > 3 * 1024 * 1024


def test_the_sleeper_takes_the_memory_asked_for(place: Path) -> None:
    program = f"""
import resource, runpy, sys
sys.argv = ["sleep.py", "--seconds", "0", "--epochs", "1", "--eat-memory", "64"]
runpy.run_path({str(SLEEP)!r}, run_name="__main__")
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(place), capture_output=True, timeout=60, check=True
    )
    assert int(done.stdout.split()[-1]) > 64 * 1024


def test_a_sleeper_that_ignores_term_lives_on(place: Path) -> None:
    with started(place, "--seconds", "0.4", "--epochs", "4", "--ignore-term") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def test_any_other_sleeper_ends_at_term(place: Path) -> None:
    with started(place, "--seconds", "600", "--epochs", "6000") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == -signal.SIGTERM


def test_a_hanging_sleeper_says_nothing_more(place: Path) -> None:
    with started(place, "--seconds", "0", "--epochs", "4", "--hang") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"hanging\n"
        assert process.poll() is None


# --- repositories ----------------------------------------------------------------------------------------------------


def git(repository: Path, *arguments: str) -> str:
    command = ["git", f"--git-dir={repository}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Some code: a script, a file in a folder, and what must not be committed."""
    source = tmp_path / "code"
    (source / "pack" / "__pycache__").mkdir(parents=True)
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o755)
    (source / "pack" / "train.py").write_text("pass\r\n")
    (source / "pack" / "__pycache__" / "train.pyc").write_bytes(b"\x00")
    (source / "outside").symlink_to("/etc/passwd")
    return source


def test_equal_code_gives_the_same_commit_whatever_git_is_configured_to_do(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_repository(code, tmp_path / "one.git")
    (tmp_path / "config").write_text(
        "[core]\n\tautocrlf = input\n[user]\n\tname = Somebody\n[commit]\n\tgpgsign = true\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "one.git"))
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    assert make_repository(code, tmp_path / "two.git") == first
    assert first == "427daf03b3cddbee35d00c60859e7db1475d0329", "commits differ from those of other machines"


def test_a_repository_holds_the_files_and_nothing_else(code: Path, tmp_path: Path) -> None:
    commit = make_repository(code, tmp_path / "code.git")
    listed = git(tmp_path / "code.git", "ls-tree", "-r", "main")
    assert [tuple(line.split()[i] for i in (0, 3)) for line in listed.splitlines()] == [
        ("100644", "pack/train.py"),
        ("100755", "run.sh"),
    ]
    assert git(tmp_path / "code.git", "rev-parse", "main") == commit
    assert git(tmp_path / "code.git", "cat-file", "blob", "main:pack/train.py") == "pass"
    git(tmp_path / "code.git", "fsck", "--strict")


def test_doing_it_again_changes_nothing(code: Path, tmp_path: Path) -> None:
    target = tmp_path / "code.git"
    assert make_repository(code, target) == make_repository(code, target)
    assert git(target, "rev-list", "--count", "main") == "1"


def test_changed_code_is_one_more_commit_and_the_old_one_stays(code: Path, tmp_path: Path) -> None:
    target = tmp_path / "code.git"
    old = make_repository(code, target)
    (code / "pack" / "train.py").write_text("print(1)\n")
    new = make_repository(code, target)
    assert new != old
    assert git(target, "rev-list", "main").split() == [new, old]


def test_a_repository_can_be_cloned_shallow_and_without_blobs(code: Path, tmp_path: Path) -> None:
    make_repository(code, tmp_path / "code.git")
    clone = [
        "git",
        "clone",
        "--quiet",
        "--depth=1",
        "--filter=blob:none",
        f"file://{tmp_path}/code.git",
        str(tmp_path / "clone"),
    ]
    done = subprocess.run(clone, capture_output=True, text=True, timeout=60, check=True)
    assert "filtering not recognized" not in done.stderr
    assert (tmp_path / "clone" / "run.sh").read_text() == "#!/bin/sh\n"


def test_an_empty_folder_makes_no_repository(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty"):
        make_repository(tmp_path / "empty", tmp_path / "empty.git")
    assert not (tmp_path / "empty.git").exists()


def test_a_dataset_is_copied_once(tmp_path: Path) -> None:
    assert copy_dataset(DATA.parent, tmp_path / "digits") == 1
    assert copy_dataset(DATA.parent, tmp_path / "digits") == 0
    (tmp_path / "digits" / DATA.name).write_bytes(b"half")
    assert copy_dataset(DATA.parent, tmp_path / "digits") == 1
    assert [file.name for file in (tmp_path / "digits").iterdir()] == [DATA.name]


# --- the job files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(environ={"FERMION_ROOT": str(CHECKOUT), "FERMION_STATE": str(tmp_path)})


def spec_of(name: str, settings: Settings) -> JobSpec:
    raw = YAML(typ="safe").load((EXAMPLES / name / "job.yaml").read_text())
    return parse_request(settings.expand_spec(raw))


@pytest.mark.parametrize("name", ["digits", "sleeper"])
def test_an_examples_job_fits_the_shipped_configuration(name: str, settings: Settings) -> None:
    commits = prepare(EXAMPLES, settings.examples_dir)
    spec = spec_of(name, settings)
    assert spec.output_model == name
    assert spec.image in settings.images
    assert set(spec.datasets) <= set(settings.datasets)
    repository = Path(spec.repository.removeprefix("file://"))
    assert any(repository.is_relative_to(root) for root in settings.code.file_roots)
    assert git(repository, "rev-parse", spec.ref) == commits[name]
    assert git(repository, "cat-file", "-t", f"{spec.ref}:{spec.entrypoint[1]}") == "blob"
    for dataset in spec.datasets:
        assert list(Path(settings.datasets[dataset].removeprefix("file://")).iterdir())


@pytest.mark.timeout(600)
def test_the_hyperparameters_of_the_digits_job_are_options_of_its_code(
    python: str, settings: Settings, place: Path
) -> None:
    spec = spec_of("digits", settings)
    done = run(python, TRAIN, place, *arguments_of({**spec.hyperparameters, "epochs": 1}))
    assert done.returncode == 0, done.stderr.decode()


def test_the_hyperparameters_of_the_sleeper_job_are_options_of_its_code(settings: Settings, place: Path) -> None:
    arguments = arguments_of({**spec_of("sleeper", settings).hyperparameters, "seconds": 0, "hang": False})
    assert run(sys.executable, SLEEP, place, *arguments).returncode == 0
