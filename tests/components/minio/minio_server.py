"""A real MinIO, built from its Go module once and kept in a cache folder; for component tests and benchmarks.

The versions are pinned by ``go.mod`` and ``go.sum`` beside this file. ``python tests/components/minio/minio_server.py`` builds it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from go_programs import CACHE, ProgramMissing, built  # noqa: E402

__all__ = ["CACHE", "REGION", "Minio", "MinioMissing", "binary", "running"]

MinioMissing = ProgramMissing
START_WITHIN_S = 30
REGION = "us-east-1"


@dataclass(frozen=True)
class Minio:
    """A running server and its only account."""

    endpoint: str
    access_key: str
    secret_key: str


def binary() -> Path:
    """The program, built if it is not there yet (some minutes of two cores).

    Raises:
        MinioMissing: there is no Go, or it does not build.
    """
    return built("minio")


@contextmanager
def running(folder: Path) -> Iterator[Minio]:
    """A server on a free loopback port with its data below ``folder``; ended afterwards."""
    program, port = binary(), _free_port()
    server = Minio(f"http://127.0.0.1:{port}", "fermion-test", "a-secret-of-the-test")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MINIO_")}
    account = {"MINIO_ROOT_USER": server.access_key, "MINIO_ROOT_PASSWORD": server.secret_key}
    (folder / "data").mkdir(parents=True)
    with (folder / "minio.log").open("w") as log:
        command = [str(program), "server", "--quiet", "--address", f"127.0.0.1:{port}", str(folder / "data")]
        process = subprocess.Popen(command, env={**kept, **account}, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_until_live(server, process, folder / "minio.log")
            yield server
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)


def _wait_until_live(server: Minio, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_WITHIN_S
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback never goes through a proxy
    while True:
        try:
            with opener.open(f"{server.endpoint}/minio/health/live", timeout=2):
                return
        except (urllib.error.URLError, OSError) as error:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"MinIO did not start ({error}):\n{log.read_text()[-2000:]}") from error
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.stdout.write(f"{binary()}\n")
