"""What failed in a service before, and what counts as the same thing."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from builders import make_plan, make_revision, make_service_spec
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.serving.replicas import Probe, ProbeKind, Probes
from fermion.domain.serving.services import ApiType, Revision, RevisionPhase, ServicePins
from fermion.domain.serving.verdicts import failed_before, is_same, refusal

SPEC = make_service_spec()
PINS = ServicePins(model_version=2, model_checksum="sha256:m", image_digest="sha256:i", commit="c0ffee")
WHY = Explanation(Reason.ROLLED_BACK, "error_rate fails: 31 % beside 0 %.")


def revision(number: int = 2, *, failed: bool = True, **changes: Any) -> Revision:
    defaults = {"spec": SPEC, "pins": PINS, "phase": RevisionPhase.FAILED, "explanation": WHY, "failed": failed}
    return make_revision(number, **{**defaults, **changes})


@pytest.mark.parametrize(
    ("spec", "pins", "same"),
    [
        pytest.param({}, {}, True, id="all of it"),
        pytest.param({}, {"model_version": 9}, True, id="the same files under another number"),
        pytest.param({"version": 9, "ref": "v2", "image": "digits:latest"}, {}, True, id="other names for it"),
        pytest.param({"replicas": 3, "plan": make_plan(alpha=0.2), "priority": 1}, {}, True, id="tried otherwise"),
        pytest.param({"keep_warm": timedelta(hours=1), "follow": True, "retry_failed": True}, {}, True, id="wishes"),
        pytest.param({}, {"model_checksum": "sha256:n"}, False, id="other files"),
        pytest.param({}, {"image_digest": "sha256:j"}, False, id="another image"),
        pytest.param({}, {"commit": "decaf"}, False, id="another commit of the server"),
        pytest.param({"engine": "mlserver"}, {}, False, id="another engine"),
        pytest.param({"command": ("serve", "--safely")}, {}, False, id="another command"),
        pytest.param({"environment": {"A": "b"}}, {}, False, id="another environment"),
        pytest.param({"api_type": ApiType.GRPC}, {}, False, id="another protocol"),
        pytest.param({"memory_mib": 4096}, {}, False, id="more memory"),
        pytest.param({"cpus": 2.0}, {}, False, id="more cores"),
        pytest.param({"gpus_per_replica": 2}, {}, False, id="more GPUs"),
        pytest.param({"probes": Probes(startup=Probe(kind=ProbeKind.TCP))}, {}, False, id="other probes"),
    ],
)
def test_the_same_thing_is_what_its_replicas_are_made_of(
    spec: dict[str, Any], pins: dict[str, Any], same: bool
) -> None:
    assert is_same(replace(SPEC, **spec), replace(PINS, **pins), revision()) is same


REPLACED = Explanation(Reason.REPLACED, "inf-digits-001-r9 serves in its place.")
OTHER = replace(PINS, model_checksum="sha256:other")


@pytest.mark.parametrize(
    ("others", "stable", "expected"),
    [
        pytest.param([], None, None, id="nothing was there before"),
        pytest.param([revision(2)], 1, 2, id="it failed"),
        pytest.param([revision(2, failed=False)], 1, None, id="it was given up without a verdict"),
        pytest.param([revision(2, pins=OTHER)], 1, None, id="something else failed"),
        pytest.param([revision(2), revision(3)], 1, 3, id="twice: the newest is told"),
        pytest.param([revision(1, failed=False), revision(2)], 1, 2, id="it failed beside the same that serves"),
        pytest.param([revision(2), revision(3, failed=False)], 3, None, id="tried again, and it serves"),
        pytest.param([revision(2), revision(3, failed=False, explanation=REPLACED)], 4, None, id="it served since"),
        pytest.param([revision(2), revision(3, failed=False)], 1, 2, id="tried again, and given up by hand"),
        pytest.param([revision(3, failed=False), revision(4)], 3, 4, id="it served, and fails now"),
    ],
)
def test_the_newest_verdict_on_the_same_thing_counts(
    others: list[Revision], stable: int | None, expected: int | None
) -> None:
    found = failed_before(SPEC, PINS, others, stable=stable)
    assert (found.number if found else None) == expected


def test_a_refusal_names_what_failed_when_why_and_how_to_have_it_tried() -> None:
    problem = refusal(revision(run=("deploy_service", "nightly-7")))
    assert (problem.field, problem.code) == ("model", "failed_before")
    for words in ("inf-digits-001-r2 (run nightly-7)", "2026-", " UTC", "31 % beside 0 %"):
        assert words in problem.message
    assert "retry_failed: true" in problem.fix
    assert "fermion deploy --retry-failed" in problem.fix
    assert "(run" not in refusal(revision(run=("deploy_service", "inf-digits-001-r2"))).message
