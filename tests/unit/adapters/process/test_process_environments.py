"""Environments are made for real, with uv, from locks that need no network: empty ones and ones of a local wheel."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from fermion.adapters.process import runner
from fermion.adapters.process.environments import ProcessImages, digest_of, framework_of
from fermion.domain.jobs import Pins
from fermion.domain.retention import Freed
from fermion.errors import NotFound, OutsideBroken, OutsideUnavailable


def make_wheel(folder: Path, name: str = "tinything", version: str = "1.0") -> Path:
    """A pure Python wheel with one module and one command."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"ANSWER = {version!r}\ndef main():\n    print(ANSWER)\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
    }

    def line(path: str, text: str) -> str:
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        return f"{path},sha256={digest},{len(text)}\n"

    record = "".join(line(path, text) for path, text in files.items()) + f"{info}/RECORD,,\n"
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    return wheel


def make_lock(folder: Path, *, name: str = "tinything", hashed: bool = True, wrong_hash: bool = False) -> Path:
    """A lock of one local wheel; its own options keep it off the network."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = make_wheel(folder, name)
    digest = hashlib.sha256(b"" if wrong_hash else wheel.read_bytes()).hexdigest()
    pinned = f"{name}==1.0" + (f" \\\n    --hash=sha256:{digest}" if hashed else "")
    lock = folder / f"{name}.lock"
    lock.write_text(f"--no-index\n--find-links {folder}\n{pinned}\n")
    return lock


def make_empty_lock(path: Path, text: str = "# nothing\n") -> Path:
    path.write_text(text)
    return path


def digests(images: ProcessImages) -> Mapping[str, str]:
    return {image.id: image.digest for image in images.known()}


def test_a_pulled_environment_holds_exactly_the_locked_packages(tmp_path: Path) -> None:
    images = ProcessImages(tmp_path / "root", {"tiny:1": make_lock(tmp_path / "lock")})
    location = images.pull("tiny:1", digests(images)["tiny:1"])

    assert ":" not in location  # it goes into PATH
    said = subprocess.run([f"{location}/bin/tinything"], capture_output=True, text=True, timeout=30, check=True)
    assert said.stdout == "1.0\n"
    python = subprocess.run(
        [f"{location}/bin/python", "-c", "import tinything, sys; print(sys.prefix); import pytest"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert python.stdout == f"{location}\n"
    assert "No module named 'pytest'" in python.stderr


def test_a_wheel_that_is_not_the_locked_one_is_refused_readably(tmp_path: Path) -> None:
    images = ProcessImages(tmp_path / "root", {"tiny:1": make_lock(tmp_path / "lock", wrong_hash=True)})

    with pytest.raises(OutsideBroken, match="cannot be made from") as refused:
        images.pull("tiny:1", digests(images)["tiny:1"])
    assert "tinything" in refused.value.message
    assert "hash" in refused.value.message.lower()
    assert visible_environments(tmp_path) == []


def test_a_lock_without_hashes_takes_its_image_out_of_the_list_and_only_that_one(tmp_path: Path) -> None:
    loose = make_lock(tmp_path / "loose", hashed=False)
    images = ProcessImages(tmp_path / "root", {"loose:1": loose, "empty:1": make_empty_lock(tmp_path / "empty.lock")})
    assert list(digests(images)) == ["empty:1"]
    assert "no hash for tinything==1.0" in images.unreadable()["loose:1"]
    with pytest.raises(OutsideBroken, match="--generate-hashes"):
        images.pull("loose:1", digest_of(loose.read_bytes()))
    assert visible_environments(tmp_path) == []


def test_a_pull_that_is_repeated_answers_the_same_folder_without_work(tmp_path: Path) -> None:
    images = ProcessImages(tmp_path / "root", {"empty:1": make_empty_lock(tmp_path / "empty.lock")})
    digest = digests(images)["empty:1"]
    first = images.pull("empty:1", digest)
    made = Path(first, "pyvenv.cfg").stat().st_mtime_ns

    assert images.pull("empty:1", digest) == first
    assert Path(first, "pyvenv.cfg").stat().st_mtime_ns == made


def test_racing_pulls_make_one_environment(tmp_path: Path) -> None:
    lock = make_empty_lock(tmp_path / "empty.lock")
    found: list[tuple[str, int]] = []

    def pull() -> None:
        images = ProcessImages(tmp_path / "root", {"empty:1": lock})
        location = images.pull("empty:1", digests(images)["empty:1"])
        found.append((location, Path(location).stat().st_ino))

    threads = [threading.Thread(target=pull) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 5
    assert len(set(found)) == 1
    assert len(visible_environments(tmp_path)) == 1


def test_a_lock_that_changed_since_it_was_pinned_is_broken_but_what_was_pulled_stays(tmp_path: Path) -> None:
    lock = make_empty_lock(tmp_path / "empty.lock")
    images = ProcessImages(tmp_path / "root", {"empty:1": lock})
    pinned = digests(images)["empty:1"]
    kept = images.pull("empty:1", pinned)
    never_pulled = digest_of(b"# another\n")
    make_empty_lock(lock, "# changed\n")

    assert digests(images)["empty:1"] != pinned
    assert images.pull("empty:1", pinned) == kept
    with pytest.raises(OutsideBroken, match="submit the job again"):
        images.pull("empty:1", never_pulled)


def test_a_missing_lock_is_an_error_of_that_image_only(tmp_path: Path) -> None:
    locks = {"gone:1": tmp_path / "gone.lock", "empty:1": make_empty_lock(tmp_path / "empty.lock")}
    images = ProcessImages(tmp_path / "root", locks)

    assert list(digests(images)) == ["empty:1"]
    assert list(images.unreadable()) == ["gone:1"]
    with pytest.raises(OutsideBroken, match=r"lock of image 'gone:1' cannot be read .*No such file"):
        images.pull("gone:1", digest_of(b""))


def test_an_image_nobody_configured_is_not_found(tmp_path: Path) -> None:
    images = ProcessImages(tmp_path / "root", {"empty:1": make_empty_lock(tmp_path / "empty.lock")})

    with pytest.raises(NotFound, match="there are: empty:1"):
        images.pull("other:1", digest_of(b""))


def test_known_images_tell_where_they_come_from_and_how_big_they_are(tmp_path: Path) -> None:
    lock = make_lock(tmp_path / "lock")
    images = ProcessImages(tmp_path / "root", {"tiny:1": lock})
    before = images.known()[0]
    images.pull("tiny:1", before.digest)
    after = images.known()[0]

    assert (before.source, before.source_type, before.size_bytes) == (str(lock), "lock", None)
    assert after.size_bytes is not None
    assert after.size_bytes > 1000
    assert after.digest == before.digest == digest_of(lock.read_bytes())


def test_a_pull_waits_for_another_one_no_longer_than_its_timeout(tmp_path: Path) -> None:
    lock = make_empty_lock(tmp_path / "empty.lock")
    images = ProcessImages(tmp_path / "root", {"empty:1": lock}, timeout=timedelta(milliseconds=300))
    digest = digests(images)["empty:1"]
    folder = tmp_path / "root" / "cache" / "environments"
    folder.mkdir(parents=True)
    with (folder / f".{digest.removeprefix('sha256:')}.lock").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        began = time.monotonic()
        with pytest.raises(OutsideUnavailable, match="another pull of it"):
            images.pull("empty:1", digest)
    assert time.monotonic() - began < 5


def test_a_pull_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    locks = {"tiny:1": make_lock(tmp_path / "lock")}
    images = ProcessImages(tmp_path / "root", locks, timeout=timedelta(milliseconds=5))

    with pytest.raises(OutsideUnavailable, match="was not ready after"):
        images.pull("tiny:1", digests(images)["tiny:1"])
    assert visible_environments(tmp_path) == []


def test_a_killed_pull_leaves_nothing_visible_and_the_next_one_succeeds(tmp_path: Path) -> None:
    lock = make_lock(tmp_path / "lock")
    source = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom fermion.adapters.process import environments, runner\n"
        "runner.write_json = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"  # packages are in, nothing is published
        f"images = environments.ProcessImages(Path({str(tmp_path / 'root')!r}), {{'tiny:1': Path({str(lock)!r})}})\n"
        "images.pull('tiny:1', images.known()[0].digest)\n"
    )
    killed = subprocess.run([sys.executable, "-c", source], timeout=60, check=False)
    assert killed.returncode == -9
    assert visible_environments(tmp_path) == []

    images = ProcessImages(tmp_path / "root", {"tiny:1": lock})
    assert Path(images.pull("tiny:1", digests(images)["tiny:1"]), "bin", "tinything").exists()


def test_the_least_recently_used_leaves_first_and_one_in_use_never(tmp_path: Path) -> None:
    locks = {f"e:{n}": make_empty_lock(tmp_path / f"{n}.lock", f"# {n}\n") for n in range(4)}
    images = ProcessImages(tmp_path / "root", locks)
    locations = {image_id: Path(images.pull(image_id, digest)) for image_id, digest in digests(images).items()}
    for hours, image_id in enumerate(("e:3", "e:2", "e:1"), start=1):  # e:1 is the oldest, e:0 was just asked for
        then = time.time() - hours * 3600
        os.utime(locations[image_id] / "fermion-environment.json", (then, then))
    workload = tmp_path / "root" / "workloads" / "job-1-a1"
    workload.mkdir(parents=True)
    runner.write_json(str(workload / runner.ORDER), {"image": str(locations["e:1"])})
    size = images.known()[0].size_bytes
    assert size is not None

    two_fit = ProcessImages(tmp_path / "root", locks, limit_bytes=3 * size + size // 2)
    assert two_fit.tidy() == Freed(items=1, size_bytes=size)
    assert locations["e:2"].name not in visible_environments(tmp_path)
    nothing_fits = ProcessImages(tmp_path / "root", locks, limit_bytes=0)
    assert nothing_fits.tidy([Pins(image_digest=digests(images)["e:3"], commit="")]) == Freed(), "an open job pins it"
    assert nothing_fits.tidy() == Freed(items=1, size_bytes=size)
    assert sorted(visible_environments(tmp_path)) == sorted([locations["e:0"].name, locations["e:1"].name])


@pytest.mark.parametrize(
    ("lock", "expected"),
    [
        pytest.param(b"numpy==2.0\ntorch==2.6 \\\n  --hash=sha256:00\n", "torch", id="a framework among others"),
        pytest.param(b"torchvision==0.2\n", None, id="a name that only begins like one"),
        pytest.param(b"jax[cuda12]==0.5\n", "jax", id="with extras"),
        pytest.param(b"", None, id="nothing"),
    ],
)
def test_the_framework_is_read_from_the_lock(lock: bytes, expected: str | None) -> None:
    assert framework_of(lock) == expected


def visible_environments(tmp_path: Path) -> list[str]:
    folder = tmp_path / "root" / "cache" / "environments"
    return [name for name in os.listdir(folder) if not name.startswith(".")] if folder.exists() else []
