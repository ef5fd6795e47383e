"""An object store beside a live platform, which can be away: not started yet, or frozen in the middle of an answer."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
import psutil
from botocore.config import Config

from e2e.live import Live, wait_until

BUCKET = "platform"
CONNECTION = "object_store"
KEYS = ("robot", "not-a-secret-but-long-enough")


@dataclass
class ObjectStore:
    """Nothing answers at ``url`` until ``start``; ``freeze`` keeps connections open and answers nothing, until ``thaw``."""

    port: int
    _server: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        """Its address, whether or not it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, objects: dict[str, bytes]) -> None:
        """From now on it answers, with these objects in its bucket."""
        self._server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._accepts, within_s=60, what="the object store")
        self.client.create_bucket(Bucket=BUCKET)
        for key, body in objects.items():
            self.client.put_object(Bucket=BUCKET, Key=key, Body=body)

    @property
    def client(self) -> Any:
        """A client of the test's own."""
        quick = Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 2})
        return boto3.client(
            "s3", endpoint_url=self.url, region_name="us-east-1",
            aws_access_key_id=KEYS[0], aws_secret_access_key=KEYS[1], config=quick,
        )  # fmt: skip

    def published(self) -> list[str]:
        """The model versions in its bucket, each by where it lies."""
        found = self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return [each["Key"].removesuffix("/manifest.json") for each in found if each["Key"].endswith("/manifest.json")]

    def is_asked_by(self, process: psutil.Process) -> bool:
        """Whether the process has a connection to it."""
        try:
            return any(each.raddr and each.raddr.port == self.port for each in process.net_connections("inet"))
        except psutil.NoSuchProcess:
            return False

    def freeze(self) -> None:
        """It takes connections and answers nothing."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It answers again, what was asked meanwhile included."""
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """It is gone for good."""
        if self._server is not None:
            self._server.kill()
            self._server.wait(timeout=10)

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def object_store(live: Live) -> Iterator[ObjectStore]:
    """The platform's models and its dataset ``remote`` lie in an object store that does not answer yet; afterwards they
    lie where they lay."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        store = ObjectStore(port=probe.getsockname()[1])
    before = live.settings.file.read_text(encoding="utf-8")
    connection = {"connection_id": CONNECTION, "conn_type": "aws", "login": KEYS[0], "password": KEYS[1]}
    live.call("POST", "/api/v2/connections", connection).raise_for_status()
    try:
        live.settings.file.write_text(_with_store(before, store.url), encoding="utf-8")
        live.reopen(KEYS)
        yield store
    finally:
        store.end()
        live.settings.file.write_text(before, encoding="utf-8")
        live.reopen()
        live.call("DELETE", f"/api/v2/connections/{CONNECTION}")


def _with_store(text: str, url: str) -> str:
    where = f"  endpoint: {url}\n  region: us-east-1\n  connection: {CONNECTION}\n"
    changes = {
        "\ndatasets:\n": f"\ndatasets:\n  remote: s3://{BUCKET}/data\n",
        "\ndata:\n  roots:\n": f"\ndata:\n{where}  roots:\n    - s3://{BUCKET}/data\n",
        "\nmodels:\n  uri: null\n": f"\nmodels:\n  uri: s3://{BUCKET}/models\n{where}",
    }
    for old, new in changes.items():
        assert old in text, f"config/fermion.yaml has no {old!r} any more"
        text = text.replace(old, new)
    return text
