"""``fermion pools``, ``ledger``, ``models`` and ``report``: what they answer, and their exit codes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from installations import Installation

from builders import NOW, at, make_job, make_lease, make_node
from fermion.domain.artifacts import ModelDraft, ModelVersion
from fermion.domain.jobs import Phase
from fermion.domain.leases import LeasePhase, end
from fermion.domain.reasons import Explanation, Reason

JOB = "job-20260302-001"


# --- pools ------------------------------------------------------------------------------------------------------------


def test_a_pool_is_shown_with_what_is_held_of_it(installed: Installation) -> None:
    installed.put(make_job(JOB), nodes=[make_node("n0", gpus=4), make_node("n1", gpus=4)], leases=[make_lease(gpus=3)])
    answer = installed.called("pools", "--json")
    (pool,) = answer.document
    assert (answer.code, pool["id"], pool["cluster"]) == (0, "local/declared", "local")
    assert (pool["gpu_model"], pool["method"], pool["created_at"]["method"]) == ("declared", "declared", "derived")
    figures = {name: figure["value"] for name, figure in pool["figures"].items()}
    assert figures == {"capacity": 8, "allocated": 3, "free": 5, "waiting": 1}
    assert [(node["name"], node["gpus"], node["usable"]) for node in pool["nodes"]] == [
        ("n0", 4, True),
        ("n1", 4, True),
    ]
    told = installed.called("pools", columns=160)
    assert told.code == 0
    assert "local/declared  declared (declared)  2      8     3     5     1" in told.out


def test_before_the_first_sync_there_is_no_pool(installed: Installation) -> None:
    assert (installed.called("pools").code, installed.called("pools", "--json").document) == (0, [])


# --- ledger -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def held(installed: Installation) -> Installation:
    """One lease that ended and one that lives."""
    ended, live = make_lease("lease-1", gpus=2, holder_id=JOB), make_lease("lease-2", first=2, holder_id="job-2")
    installed.put(leases=[ended, live])
    with installed.rows() as tx:
        assert tx.leases.end(end(ended, LeasePhase.RELEASED, cause="workload_gone", now=NOW))
    return installed


def test_the_ledger_has_who_holds_and_every_entry(held: Installation) -> None:
    answer = held.called("ledger", "--json")
    (live,) = answer.document["live"]
    assert (answer.code, live["id"], live["holder"], live["gpus"]) == (0, "lease-2", "job:job-2", 1)
    assert (live["devices"], live["phase"], live["ended_at"]) == (["n0-2"], "held", None)
    entries = [(entry["lease"], entry["gpus"], entry["cause"]) for entry in answer.document["entries"]]
    assert [entry[:2] for entry in entries] == [("lease-1", 2), ("lease-2", 1), ("lease-1", -2)]
    assert entries[-1][2] == "workload_gone"


def test_the_ledger_is_told_newest_last(held: Installation) -> None:
    told = held.called("ledger", columns=160)
    assert told.code == 0
    assert "lease-2" in told.out.split("Ledger")[0]
    assert "lease-1" not in told.out.split("Ledger")[0]
    assert "workload_gone" in told.out.splitlines()[-1]
    (entry,) = held.called("ledger", "--limit", "1", "--json").document["entries"]
    assert entry["gpus"] == -2


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def version(installed: Installation) -> ModelVersion:
    """One published version of ``digits``."""
    draft = ModelDraft(model="digits", metrics={"accuracy": 0.9712}, lineage={"job": JOB}, created_at=NOW)
    return installed.publish(draft, {"model.bin": b"weights"})


def test_models_are_listed_with_checksum_metrics_and_lineage(installed: Installation, version: ModelVersion) -> None:
    for words in ((), ("digits",)):
        answer = installed.called("models", *words, "--json")
        (listed,) = answer.document
        assert (answer.code, listed["path"], listed["checksum"]) == (0, "digits/1", version.checksum)
        assert (listed["size_bytes"], listed["metrics"], listed["lineage"]) == (7, {"accuracy": 0.9712}, {"job": JOB})
        assert (listed["uri"], listed["created_at"]) == (version.uri, NOW.isoformat())
        assert "problems" not in listed, "nothing was verified"
        assert "digits/1" in installed.called("models", *words).out


def test_a_model_whose_bytes_are_right_verifies(installed: Installation, version: ModelVersion) -> None:
    answer = installed.called("models", "digits", "--verify", "--json")
    assert (answer.code, answer.document[0]["problems"]) == (0, [])
    assert installed.called("models", "--verify").code == 0


def test_a_model_whose_bytes_have_changed_does_not(installed: Installation, version: ModelVersion) -> None:
    file = installed.root / "run" / "models" / "digits" / "1" / "model.bin"
    file.chmod(0o644)
    file.write_bytes(b"WEIGHTS")
    answer = installed.called("models", "digits", "--verify", "--json")
    assert answer.code == 1
    (problem,) = answer.document[0]["problems"]
    assert problem.startswith("model.bin has sha256 ")
    told = installed.called("models", "--verify", columns=400)
    assert told.code == 1
    assert problem in told.out


def test_an_empty_repository_has_no_models(installed: Installation) -> None:
    assert (installed.called("models").code, installed.called("models", "--json").document) == (0, [])


# --- report -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ended(installed: Installation) -> Installation:
    """A job that failed after it had held two GPUs for a minute."""
    explanation = Explanation(Reason.USER_CODE, "The training code exited with code 1; its log says why.", {"code": 1})
    job = make_job(JOB, phase=Phase.FAILED, explanation=explanation, started_at=at(-60), ended_at=NOW)
    lease = make_lease(gpus=2, holder_id=JOB)
    installed.put(job, leases=[lease])
    with installed.rows() as tx:
        gone = replace(lease, exec_at=at(-58), exit_at=at(-1))
        assert tx.leases.end(end(gone, LeasePhase.RELEASED, cause="user_code", now=NOW))
    return installed


def test_a_report_is_printed_as_json(ended: Installation) -> None:
    answer = ended.called("report", JOB, "--json")
    report = answer.document
    assert (answer.code, report["job"]["id"], report["outcome"]["status"]) == (0, JOB, "failed")
    assert report["outcome"]["message"] == "The training code exited with code 1; its log says why."


def test_a_report_is_written_and_its_place_is_told(ended: Installation) -> None:
    answer = ended.called("report", JOB, columns=400)
    page = ended.root / "run" / "reports" / f"{JOB}.html"
    assert (answer.code, answer.out.strip()) == (0, str(page))
    assert JOB in page.read_text(encoding="utf-8")


def test_what_would_be_forgotten_is_told_and_nothing_is_deleted(tmp_path: Path) -> None:
    here = Installation(tmp_path)
    with (here.root / "config" / "fermion.yaml").open("a") as file:
        file.write("caches: {models_gib: 0.000001}\n")
    entry = here.root / "run" / "work" / "cache" / "models" / "sha256-old"
    entry.mkdir(parents=True)
    (entry / "weights").write_bytes(bytes(5000))
    told = "1 staged models of cluster local, 5,000 bytes"
    answer = here.called("retain", "--dry-run", "--json")
    assert (answer.code, answer.document) == (0, {"dry_run": True, "forgotten": [told]})
    assert f"would go: {told}" in here.called("retain", "--dry-run").out
    assert entry.exists()
