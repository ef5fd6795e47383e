"""The ``Images`` port: an image is an environment, a name and a locked requirements file.

Its digest is the hash of the lock, the Python version and the platform; pulling materialises it once, with uv, in a folder
named by that digest. Nothing half is ever visible; environments nobody uses leave when the cache is over its limit.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fermion.adapters.files.placing import size_of
from fermion.adapters.process import runner
from fermion.adapters.process.layout import Layout, discard, sweep, visible
from fermion.domain.artifacts import Image
from fermion.domain.jobs import Pins
from fermion.domain.retention import Freed
from fermion.errors import NotFound, OutsideBroken, OutsideUnavailable

_log = logging.getLogger(__name__)

_ABOUT = "fermion-environment.json"  # written last into an environment; its time is when it was last asked for
_FRESH_S = 600.0  # asked for so recently that a workload may be about to name it
_ERROR_LINES = 12
_FRAMEWORKS = ("torch", "tensorflow", "jax", "scikit-learn", "xgboost", "lightgbm")
# What uv may need to reach an index; nothing else of the platform's environment goes to packages' build scripts.
_PASSED = ("HOME", "PATH", "LANG", "TMPDIR", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "NETRC")
_PASSED_PREFIXES = ("UV_", "SSL_", "XDG_")


@dataclass(frozen=True, slots=True)
class About:
    """What people say of an image: who vouches for it, and its framework (None: told from the lock)."""

    category: str = "custom"
    framework: str | None = None


class ProcessImages:
    """Environments from lock files.

    ``limit_bytes`` bounds the folder of environments (None: no bound); one in use is never evicted, so it may be exceeded by those.
    ``timeout`` bounds a pull, waiting for another puller included.
    """

    def __init__(
        self,
        root: Path,
        locks: Mapping[str, Path],
        *,
        about: Mapping[str, About] | None = None,
        limit_bytes: int | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        self._layout = Layout(root.absolute())
        self._locks = dict(locks)
        self._told = dict(about or {})
        self._limit_bytes = limit_bytes
        self._timeout_s = timeout.total_seconds()

    def known(self) -> Sequence[Image]:
        """The configured images whose lock can be read, with today's digests; the others are in ``unreadable``."""
        problems = self.unreadable()
        for problem in problems.values():
            _log.warning("%s", problem)
        return [self._image(image_id) for image_id in sorted(self._locks) if image_id not in problems]

    def unreadable(self) -> Mapping[str, str]:
        """Image to what is wrong with its lock, for images that cannot be run."""
        problems = {}
        for image_id in sorted(self._locks):
            try:
                self._lock_bytes(image_id)
            except OutsideBroken as error:
                problems[image_id] = error.message
        return problems

    def pull(self, image_id: str, digest: str) -> str:
        """The folder of exactly that environment, made if absent; concurrent pulls share one.

        Raises:
            NotFound: no image by that name is configured.
            OutsideBroken: its lock has another digest now, or the packages in it cannot be installed.
            OutsideUnavailable: it took longer than the timeout.
        """
        folder = self._folder(digest)
        if self._touch(folder):
            return str(folder)
        content = self._lock_bytes(image_id)
        today = digest_of(content)
        if today != digest:
            raise OutsideBroken(
                f"image {image_id!r} was pinned as {_short(digest)} and its lock {self._locks[image_id]} is {_short(today)} "
                "now, or the platform's Python was changed; submit the job again to pin today's",
                what=image_id,
            )
        deadline = time.monotonic() + self._timeout_s
        with self._exclusive(folder, image_id, deadline):
            if not self._touch(folder):
                self._make(image_id, folder, content, deadline)
                self.tidy()
        return str(folder)

    def tidy(self, needed: Collection[Pins] = ()) -> Freed:
        """See ``ports.Images``."""
        freed = sweep(self._layout.environments)
        if self._limit_bytes is None:
            return freed
        folders = [self._layout.environments / name for name in visible(self._layout.environments)]
        ages = {folder: age for folder in folders if (age := _age_s(folder / _ABOUT)) is not None}
        used = self._in_use() | {str(self._folder(pins.image_digest)) for pins in needed}
        sizes = {folder: int(_about(folder).get("size_bytes", 0)) for folder in ages}
        excess = sum(sizes.values()) - self._limit_bytes
        for folder in sorted(ages, key=lambda each: -ages[each]):
            if excess <= 0:
                break
            if str(folder) in used or ages[folder] < _FRESH_S:
                continue
            discard(folder)
            excess -= sizes[folder]
            freed += Freed(items=1, size_bytes=sizes[folder])
        return freed

    # -- inside

    def _image(self, image_id: str) -> Image:
        lock = self._locks[image_id]
        content = self._lock_bytes(image_id)
        digest = digest_of(content)
        told = self._told.get(image_id, About())
        changed = datetime.fromtimestamp(lock.stat().st_mtime, UTC)
        return Image(
            id=image_id,
            digest=digest,
            category=told.category,
            source_type="lock",
            source=str(lock),
            created_at=changed,
            updated_at=changed,
            framework=told.framework or framework_of(content),
            size_bytes=_about(self._folder(digest)).get("size_bytes"),
        )

    def _lock_bytes(self, image_id: str) -> bytes:
        if image_id not in self._locks:
            names = ", ".join(sorted(self._locks)) or "none"
            raise NotFound(f"no image {image_id!r} is configured; there are: {names}", what=image_id)
        lock = self._locks[image_id]
        try:
            content = lock.read_bytes()
        except OSError as error:
            raise OutsideBroken(
                f"the lock of image {image_id!r} cannot be read ({error.strerror}: {lock}); make it with 'uv pip compile' "
                "or take the image out of the configuration",
                what=image_id,
            ) from error
        loose = _unhashed(content)
        if loose:
            raise OutsideBroken(
                f"the lock of image {image_id!r} ({lock}) has no hash for {', '.join(loose[:5])}, so its digest would not say"
                " what is installed; make it with 'uv pip compile --generate-hashes'",
                what=image_id,
            )
        return content

    def _folder(self, digest: str) -> Path:
        return self._layout.environments / digest.removeprefix("sha256:")  # a colon would split PATH

    def _touch(self, folder: Path) -> bool:
        """Whether the environment is there; it counts as used now."""
        try:
            os.utime(folder / _ABOUT)
        except FileNotFoundError:
            return False
        return True

    def _in_use(self) -> set[str]:
        """Environments that a workload or a replica names, whatever its state: derived, so no mark can be left behind."""
        places = (self._layout.workloads, Layout(self._layout.serving).replicas)
        orders = (place / name / runner.ORDER for place in places for name in visible(place))
        return {str((runner.read_json(str(order)) or {}).get("image")) for order in orders}

    @contextmanager
    def _exclusive(self, folder: Path, image_id: str, deadline: float) -> Iterator[None]:
        """One maker of one environment at a time, in any process; the lock ends with its holder."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f".{folder.name}.lock").open("wb") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    self._remaining(image_id, deadline, "another pull of it is still at work")
                    time.sleep(0.1)
            yield

    def _remaining(self, image_id: str, deadline: float, doing: str) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise OutsideUnavailable(
                f"image {image_id!r} was not ready after {self._timeout_s:.0f} s: {doing}; try again, or raise the timeout",
                what=image_id,
            )
        return left

    def _make(self, image_id: str, folder: Path, content: bytes, deadline: float) -> None:
        draft = folder.with_name(f".tmp-{folder.name[:12]}-{uuid.uuid4().hex}")
        try:
            self._uv(image_id, deadline, "venv", "--relocatable", "--python", sys.executable, str(draft))
            # Beside the original, so that its relative paths (wheels, find-links) keep their meaning.
            arguments = ["--allow-empty-requirements", "--compile-bytecode", "--python", str(draft / "bin" / "python")]
            self._uv(image_id, deadline, "pip", "sync", "--require-hashes", *arguments, str(self._locks[image_id]))
            if digest_of(self._lock_bytes(image_id)) != digest_of(content):
                raise OutsideBroken(
                    f"the lock of image {image_id!r} changed while it was pulled; try again", what=image_id
                )
            about = {"image": image_id, "lock": str(self._locks[image_id]), "size_bytes": size_of(draft)}
            runner.write_json(str(draft / _ABOUT), about)
            _sync_filesystem(draft)
            os.rename(draft, folder)
            runner.sync_folder(str(folder.parent))
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _uv(self, image_id: str, deadline: float, *arguments: str) -> None:
        command = [uv_program(), "--quiet", "--color", "never", *arguments]
        doing = f"uv {arguments[0]} is still at work"
        try:
            done = subprocess.run(
                command,
                cwd=self._locks[image_id].absolute().parent,
                env=_uv_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=self._remaining(image_id, deadline, doing),
                check=False,
            )
        except subprocess.TimeoutExpired:
            self._remaining(image_id, time.monotonic(), doing)
            return
        if done.returncode != 0:
            said = "\n".join(done.stderr.decode(errors="replace").strip().splitlines()[-_ERROR_LINES:])
            raise OutsideBroken(
                f"image {image_id!r} cannot be made from {self._locks[image_id]}:\n{said}", what=image_id
            )


def _unhashed(lock: bytes) -> list[str]:
    """Requirements of a lock that no hash fixes. Options (``--find-links …``) and comments are none."""
    text = lock.decode(errors="replace").replace("\\\n", " ")
    lines = (line.split(" #")[0].strip() for line in text.splitlines())
    return [line.split()[0] for line in lines if line and line[0] not in "#-" and "--hash=" not in line]


def digest_of(lock: bytes) -> str:
    """``sha256:…`` of an environment: its lock, and the Python and platform that its packages are chosen for."""
    tag = f"python {platform.python_version()} {sys.implementation.cache_tag} {sysconfig.get_platform()}\n"
    return "sha256:" + hashlib.sha256(tag.encode() + lock).hexdigest()


def framework_of(lock: bytes) -> str | None:
    """The first well-known framework among the locked packages."""
    lines = lock.decode(errors="replace").lower().splitlines()
    packages = {line.partition("==")[0].partition("[")[0].strip() for line in lines}
    return next((name for name in _FRAMEWORKS if name in packages), None)


def uv_program() -> str:
    """The uv beside this Python, else the one on the path.

    Raises:
        OutsideUnavailable: there is none.
    """
    beside = Path(sys.prefix) / "bin" / "uv"
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise OutsideUnavailable(
            "uv is neither in this environment nor on the path; install the pinned requirements", what="uv"
        )
    return found


def _uv_environment() -> dict[str, str]:
    def is_passed(name: str) -> bool:
        return name.upper() in _PASSED or name.startswith(_PASSED_PREFIXES)

    return {name: value for name, value in os.environ.items() if is_passed(name)}


def _about(folder: Path) -> dict[str, int]:
    return runner.read_json(str(folder / _ABOUT)) or {}


def _age_s(path: Path) -> float | None:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None


def _short(digest: str) -> str:
    return digest[:19]


def _sync_filesystem(folder: Path) -> None:
    """Make every file of the folder durable with one call instead of one per file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            raise OSError(ctypes.get_errno(), "syncfs failed", str(folder))
    finally:
        os.close(descriptor)
