"""A program that publishes one model: the tests race and kill several of it.

Arguments: JSON of ``opened_from`` · folder · key · file to wait for. Prints the number that it got.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from fermion.adapters.models.local import LocalModels
from fermion.domain.artifacts import ModelDraft
from fermion.ports import ModelRepository

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def opened_from(place: Mapping[str, str]) -> ModelRepository:
    """The repository that a JSON-ready description names."""
    if place["kind"] == "local":
        return LocalModels(Path(place["root"]), reserve=0)
    from fermion.adapters.models.s3 import S3Models
    from fermion.adapters.s3.client import S3Options, S3Store

    options = S3Options(
        endpoint_url=place["endpoint"],
        region="us-east-1",
        access_key=place.get("access_key", "test"),
        secret_key=place.get("secret_key", "test"),
    )
    store = S3Store(options, part_size=5 << 20, workers=4)
    return S3Models(store, bucket=place["bucket"], prefix=place["prefix"])


def draft(model: str = "digits") -> ModelDraft:
    """A draft with some metrics and lineage."""
    return ModelDraft(model=model, metrics={"accuracy": 0.97}, lineage={"commit": "c" * 40}, created_at=NOW)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Publish once the start file appears."""
    place, folder, key, start = sys.argv[1:5]
    repository = opened_from(json.loads(place))
    _say("ready")
    until = time.monotonic() + 60
    while not Path(start).exists() and time.monotonic() < until:
        time.sleep(0.002)
    _say(str(repository.publish(draft(), Path(folder), key=key).number))


if __name__ == "__main__":
    main()
