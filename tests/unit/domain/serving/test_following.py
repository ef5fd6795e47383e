"""Which versions a service that follows a model is given, and in what order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from builders import NOW, at, make_revision, make_service, make_service_spec
from fermion.domain.artifacts import ModelVersion
from fermion.domain.serving.following import due_versions, follow_run
from fermion.domain.serving.services import Revision, ServicePins

SERVICE = make_service(follow=True)


def version(number: int, *, model: str = "digits", published_s: float = 0) -> ModelVersion:
    return ModelVersion(
        model=model,
        number=number,
        checksum=f"sha256:{number}",
        files=(),
        uri="file:///models",
        created_at=at(published_s),
    )


def revision(number: int, gives: int, **spec: Any) -> Revision:
    pins = ServicePins(model_version=gives, model_checksum=f"sha256:{gives}", image_digest="sha256:cd")
    asked = make_service_spec(**{"follow": True, **spec})
    return make_revision(number, spec=asked, pins=pins, created_at=at(-60 + number))


def numbers(revisions: Sequence[Revision], versions: Sequence[ModelVersion], upto: int | None = None) -> list[int]:
    return [each.number for each in due_versions(SERVICE, revisions, versions, upto=upto)]


PUBLISHED = [version(number) for number in (4, 3, 2, 1)]


@pytest.mark.parametrize(
    ("revisions", "upto", "expected"),
    [
        pytest.param([revision(1, 1)], 2, [2], id="the next one"),
        pytest.param([revision(1, 1)], 4, [2, 3, 4], id="several at once are not merged, oldest first"),
        pytest.param([revision(1, 1)], None, [2, 3, 4], id="whatever there is"),
        pytest.param([revision(1, 1), revision(2, 2), revision(3, 3)], 3, [], id="the same one again"),
        pytest.param([revision(1, 1), revision(2, 3)], 2, [], id="never an older one after a newer one"),
        pytest.param([revision(1, 3), revision(2, 1)], 4, [4], id="somebody went back and follows on"),
        pytest.param([revision(1, 1, model="letters")], 4, [], id="another model"),
        pytest.param([], 4, [], id="nothing to make again"),
    ],
)
def test_each_version_is_due_once_and_in_order(
    revisions: list[Revision], upto: int | None, expected: list[int]
) -> None:
    assert numbers(revisions, PUBLISHED, upto) == expected


def test_a_request_that_named_a_version_follows_what_was_published_since() -> None:
    pinned = revision(1, 1, version=1)
    versions = [version(2, published_s=-3600), version(3, published_s=3600)]
    assert numbers([pinned], versions) == [3]
    later = [pinned, revision(2, 3, version=3)]
    assert numbers(later, [*versions, version(4, published_s=7200)]) == [4]


def test_a_service_that_does_not_follow_or_is_taken_down_is_given_nothing() -> None:
    for service in (
        replace(SERVICE, follow=False),
        replace(SERVICE, closing=True),
        replace(SERVICE, closed_at=NOW),
    ):
        assert due_versions(service, [revision(1, 1)], PUBLISHED) == ()


def test_the_run_of_a_version_has_a_name_that_the_engine_takes() -> None:
    assert follow_run("inf-digits-001", version(3, model="vision/digits")) == "inf-digits-001-follows-vision~digits-3"
