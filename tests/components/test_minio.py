"""The model repository on a real MinIO: every case of the contract suite, and what only a real store does."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "minio"), str(HERE.parent / "contract")]

import minio_server as server  # noqa: E402
import missing  # noqa: E402
import test_model_repository as contract  # noqa: E402
from model_repository_publisher import draft, opened_from  # noqa: E402

from fermion.adapters.models.s3 import S3Models  # noqa: E402
from fermion.adapters.s3.client import S3Options, S3Store  # noqa: E402
from fermion.errors import FermionError, OutsideUnavailable  # noqa: E402

pytestmark = [pytest.mark.components, pytest.mark.timeout(300)]

FIXTURES = {"output", "repository", "run_publisher"}
globals().update({name: it for name, it in vars(contract).items() if name.startswith("test_") or name in FIXTURES})


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Minio]:
    try:
        server.binary()
    except server.MinioMissing as error:
        missing.skip(str(error))
    with server.running(tmp_path_factory.mktemp("minio")) as running:
        yield running


@pytest.fixture
def place(minio: server.Minio) -> Mapping[str, str]:
    """A bucket of the test's own; it takes the place of the suite's fixture of this name."""
    bucket = f"models-{uuid4().hex[:12]}"
    opened(minio).client().create_bucket(Bucket=bucket)
    return {
        "kind": "s3",
        "endpoint": minio.endpoint,
        "bucket": bucket,
        "prefix": "team/models",
        "access_key": minio.access_key,
        "secret_key": minio.secret_key,
    }


def opened(minio: server.Minio, *, secret_key: str | None = None) -> S3Store:
    secret = secret_key or minio.secret_key
    options = S3Options(
        endpoint_url=minio.endpoint, region=server.REGION, access_key=minio.access_key, secret_key=secret, attempts=2
    )
    return S3Store(options)


def test_a_wrong_secret_is_refused_and_publishes_nothing(
    minio: server.Minio, place: Mapping[str, str], output: Path
) -> None:
    stranger = S3Models(opened(minio, secret_key="x" * 20), bucket=place["bucket"], prefix=place["prefix"])
    with pytest.raises(FermionError) as caught:
        stranger.publish(draft(), output, key="job-1-a1")

    assert not isinstance(caught.value, OutsideUnavailable) or not caught.value.retryable
    assert "x" * 20 not in str(caught.value)
    assert list(opened_from(place).versions("digits")) == []


def test_of_ten_conditional_creates_one_wins(minio: server.Minio, place: Mapping[str, str]) -> None:
    client = opened(minio).client()

    def create(number: int) -> str:
        try:
            client.put_object(Bucket=place["bucket"], Key="slot", Body=str(number).encode(), IfNoneMatch="*")
        except client.exceptions.ClientError as error:
            return str(error.response["Error"]["Code"])
        return "won"

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(create, range(10)))

    assert answers.count("won") == 1
    assert set(answers) <= {"won", "PreconditionFailed", "ConditionalRequestConflict"}
    stored = client.get_object(Bucket=place["bucket"], Key="slot")["Body"].read()
    assert stored == str(answers.index("won")).encode()


def test_in_a_bucket_with_versions_each_object_of_a_model_is_written_once(
    minio: server.Minio, place: Mapping[str, str], output: Path
) -> None:
    client = opened(minio).client()
    client.put_bucket_versioning(Bucket=place["bucket"], VersioningConfiguration={"Status": "Enabled"})
    models = opened_from(place)
    published = [models.publish(draft(), output, key=f"job-{number}-a1") for number in (1, 2)]
    assert models.publish(draft(), output, key="job-1-a1") == published[0]

    listed = client.list_object_versions(Bucket=place["bucket"])["Versions"]
    keys = [each["Key"] for each in listed if "/1/" in each["Key"] or "/2/" in each["Key"]]
    assert keys
    assert len(keys) == len(set(keys)), "a published object was overwritten"
    assert [list(models.verify(version)) for version in published] == [[], []]
