"""What ``fermion explain`` says beside its sentence."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import pytest

from fermion.cli.explaining import told
from fermion.cli.output import Paper

TODAY = datetime.now(UTC).replace(hour=10, minute=20, second=30, microsecond=0).isoformat()
HOLDERS = [{"holder": "job-1", "kind": "job", "owner": "ann", "gpus": 4}]
PROBLEM = {"field": "gpus", "code": "too_many", "message": "it asks for 9 GPUs.", "fix": "Ask for 8."}
START = {"p50": TODAY, "p90": TODAY, "reason": None}


def words(phase: str, message: str, numbers: dict[str, object], expected: object = None) -> list[str]:
    """The lines that are printed, each with single spaces."""
    answer = {"phase": phase, "message": message, "numbers": numbers, "expected_start": expected}
    paper = Paper(file=io.StringIO(), highlight=False)
    for line in told(answer):
        paper.print(line)
    assert isinstance(paper.file, io.StringIO)
    return [" ".join(line.split()) for line in paper.file.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("phase", "message", "numbers", "rows"),
    [
        pytest.param("failed", "The training code exited with code 1; its log says why.", {"code": 1, "signal": None}, [], id="said, and empty"),
        pytest.param("failed", "Stopped by ann.", {"why": "stopped", "message": "Stopped by ann."}, [], id="what it was asked for"),
        pytest.param("failed", "It has 1 problem: gpus: it asks for 9 GPUs.", {"problems": [PROBLEM]}, [], id="problems"),
        pytest.param("completed", "Published digits/11.", {"path": "digits/1", "checksum": "sha256:ab"}, ["path digits/1", "checksum sha256:ab"], id="no part of another word counts"),
        pytest.param("failed", "It ran out of memory.", {"memory_mib": 1024, "max_rss_mib": 1030.25}, ["memory 1024 MiB", "max rss 1030.25 MiB"], id="what is not said"),
        pytest.param("waiting", "pool has 4 of 4 GPUs in use.", {"in_use": 4, "holders": HOLDERS, "excluded_nodes": []}, ["in use 4", "holders job-1 (ann, 4)"], id="in line all numbers"),
        pytest.param("running", "The training process is alive.", {"gpus": 2, "running_since": TODAY, "expected_end": TODAY}, ["gpus 2", "running since 10:20:30 UTC", "expected end 10:20:30 UTC"], id="running"),
    ],
)  # fmt: skip
def test_beside_the_sentence_stand_the_numbers_that_it_does_not_hold(
    phase: str, message: str, numbers: dict[str, object], rows: list[str]
) -> None:
    assert words(phase, message, numbers) == [message, *rows]


def test_when_a_job_is_expected_to_start() -> None:
    half = "10:20:30 UTC (half of the time), 10:20:30 UTC (nine times of ten)"
    assert words("waiting", "It waits.", {}, START) == ["It waits.", f"Expected start: {half}"]
    unknown = {"p50": None, "p90": None, "reason": "no run time is known"}
    assert words("waiting", "It waits.", {}, unknown)[1] == "Expected start: unknown, no run time is known"
