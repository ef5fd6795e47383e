"""How fast a model is published to an object store, checksums included, against the AWS CLI on the same store.

The store is a real MinIO on this machine. Both sides upload the same files and have the store check SHA-256 of all they
send; ours also writes the manifest and claims the version number. The CLI stands in an environment of its own, and its
start counts, because who saves a model with it pays for it. They take turns, after one small upload each.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from tests.benchmarks.lines import Line, skipped
from tests.benchmarks.platforms import write_files
from tests.benchmarks.stores import fresh_folder

from fermion.adapters.models.s3 import S3Models
from fermion.adapters.s3.client import S3Options, S3Store
from fermion.domain.artifacts import ModelDraft

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "components" / "minio"))

import minio_server

AWS_CLI = "awscli==1.46.3"
BAR = 0.9
BUCKET = "models"
ROUNDS = 3


@dataclass(frozen=True)
class Sides:
    """The same store as both sides see it."""

    models: S3Models
    aws: Path
    environ: dict[str, str]
    endpoint: str

    def ours(self, folder: Path, key: str) -> float:
        """Seconds to publish."""
        draft = ModelDraft(model="bench", metrics={}, lineage={}, created_at=datetime.now(UTC))
        begin = time.perf_counter()
        self.models.publish(draft, folder, key=key)
        return time.perf_counter() - begin

    def theirs(self, folder: Path, key: str) -> float:
        """Seconds of ``aws s3 cp``."""
        command = [str(self.aws), "--endpoint-url", self.endpoint, "s3", "cp", "--recursive", "--only-show-errors"]
        command += ["--checksum-algorithm", "SHA256", str(folder), f"s3://{BUCKET}/cli/{key}"]
        begin = time.perf_counter()
        subprocess.run(command, env=self.environ, check=True, capture_output=True, timeout=600)
        return time.perf_counter() - begin

    def forget(self) -> None:
        """Empty the bucket, so that every upload finds the same disk."""
        paginator = self.models.store.client().get_paginator("list_objects_v2")
        for page in paginator.paginate(Bucket=BUCKET):
            for each in page.get("Contents", ()):
                self.models.store.client().delete_object(Bucket=BUCKET, Key=each["Key"])


def main(given: argparse.Namespace) -> Iterator[Line]:
    """One line."""
    bar = f"ratio of speeds >= {BAR}"
    try:
        minio_server.binary()
    except minio_server.MinioMissing as missing:
        yield skipped("model_save", bar, str(missing))
        return
    mib = 256 if given.short else 2048
    ours: list[float] = []
    theirs: list[float] = []
    with fresh_folder() as folder, _sides(folder) as sides:
        write_files(folder / "model", mib)
        write_files(folder / "warm", 32)
        sides.ours(folder / "warm", "warm")
        sides.theirs(folder / "warm", "warm")
        for number in range(ROUNDS):
            ours.append(sides.ours(folder / "model", f"job-{number}-a1"))
            sides.forget()
            theirs.append(sides.theirs(folder / "model", f"job-{number}"))
            sides.forget()
    ratio = median(theirs) / median(ours)
    yield Line(
        bench="model_save",
        bar=bar,
        holds=ratio >= BAR if not given.short else None,
        ratio=ratio,
        raw={
            "mib": mib,
            "ours_s": [round(each, 2) for each in ours],
            "aws_cli_s": [round(each, 2) for each in theirs],
            "ours_mib_per_s": round(mib / median(ours)),
            "aws_cli_mib_per_s": round(mib / median(theirs)),
            "aws_cli": AWS_CLI,
        },
    )


@contextmanager
def _sides(folder: Path) -> Iterator[Sides]:
    with minio_server.running(folder / "minio") as minio:
        options = S3Options(
            endpoint_url=minio.endpoint,
            region=minio_server.REGION,
            access_key=minio.access_key,
            secret_key=minio.secret_key,
        )
        store = S3Store(options)
        store.client().create_bucket(Bucket=BUCKET)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        keys = {"AWS_ACCESS_KEY_ID": minio.access_key, "AWS_SECRET_ACCESS_KEY": minio.secret_key}
        about = {
            "AWS_DEFAULT_REGION": minio_server.REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }
        models = S3Models(store, bucket=BUCKET, prefix="ours")
        yield Sides(models, _aws_cli(), {**kept, **keys, **about, "HOME": str(folder)}, minio.endpoint)


def _aws_cli() -> Path:
    """The CLI in an environment of its own, made once."""
    place = minio_server.CACHE / AWS_CLI.replace("==", "-")
    program = place / "bin" / "aws"
    if not program.exists():
        shutil.rmtree(place, ignore_errors=True)
        uv = str(Path(sys.executable).with_name("uv"))
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(place)], check=True, timeout=120)
        install = [uv, "pip", "install", "-q", "--python", str(place / "bin" / "python"), AWS_CLI]
        subprocess.run(install, check=True, timeout=300)
    return program
