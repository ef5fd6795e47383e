"""Go programs that component tests need, each built once from its pinned module and kept in a cache folder.

``python tests/components/go_programs.py`` builds all of them: minutes that no test's time limit should count.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fermion-components"
BUILD_WITHIN_S = 1800
HERE = Path(__file__).resolve().parent
PROGRAMS = {
    "docker-compose": ("github.com/docker/compose/v5/cmd", HERE / "compose"),
    "minio": ("github.com/minio/minio", HERE / "minio"),
}
"""Name to the package and to the folder of its go.mod and go.sum."""


class ProgramMissing(RuntimeError):
    """The program is not there and cannot be built; the message says why."""


def built(name: str) -> Path:
    """One of ``PROGRAMS``, built if it is not there yet (minutes); several callers share one build. Other pins, other program.

    Raises:
        ProgramMissing: there is no Go, or it does not build.
    """
    package, pins = PROGRAMS[name]
    digest = sha256((pins / "go.mod").read_bytes() + (pins / "go.sum").read_bytes()).hexdigest()[:12]
    program = CACHE / f"{name}-{digest}"
    if program.exists():
        return program
    if shutil.which("go") is None:
        raise ProgramMissing(f"{name} is built with Go (1.25 or newer), and there is no `go` on the PATH")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _build(program, package, pins)
    return program


def _build(program: Path, package: str, pins: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=f"{program.name}-build-") as folder:
        for file in ("go.mod", "go.sum"):
            shutil.copy(pins / file, folder)
        command = ["nice", "go", "build", "-mod=readonly", "-o", "program", package]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=BUILD_WITHIN_S, check=False)
        if done.returncode:
            raise ProgramMissing(f"{package} does not build: {done.stderr.strip()[-2000:]}")
        (Path(folder) / "program").rename(program)


def main() -> int:
    """Build all; what cannot be built is left to the tests that need it, which say so."""
    for name in PROGRAMS:
        began = time.monotonic()
        try:
            place = str(built(name))
        except ProgramMissing as error:
            place = f"missing: {error}"
        sys.stdout.write(f"{name}: {place} ({time.monotonic() - began:.0f} s)\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
