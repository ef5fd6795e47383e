"""``fermion logs``: a job's output, whole or while it goes on; on a platform in memory that moves on when the command sleeps."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from installations import Installation

from fermion.cli import jobs
from fermion.domain.jobs import Job
from fermion.domain.workloads import workload_name
from fermion.usecases.retain import FOLDERS
from platforms import Platform


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """The platform that the command finds."""
    made = Platform(tmp_path / "platform")
    monkeypatch.setattr("fermion.wiring.build", lambda settings: made.ctx)
    return made


@pytest.fixture
def job(platform: Platform) -> Job:
    """A job whose training has printed one line."""
    started = platform.start(platform.submit())
    say(platform, started, "epoch 1\n")
    return started


def say(platform: Platform, job: Job, text: str) -> None:
    platform.driver.workloads.print(workload_name(job.id, job.attempt), text)


def while_it_sleeps(monkeypatch: pytest.MonkeyPatch, *turns: Callable[[], object]) -> list[float]:
    """Each sleep of the command is one turn of the world; the sleeps."""
    left, slept = list(turns), []

    def turn(seconds: float) -> None:
        slept.append(seconds)
        assert left, "the command goes on after the job has ended"
        left.pop(0)()

    monkeypatch.setattr(jobs.time, "sleep", turn)
    return slept


def test_what_was_printed_so_far_is_answered(installed: Installation, platform: Platform, job: Job) -> None:
    answer = installed.called("logs", job.id)
    assert (answer.code, answer.out, answer.err) == (0, "epoch 1\n", "")


def test_the_log_as_json(installed: Installation, platform: Platform, job: Job) -> None:
    answer = installed.called("logs", job.id, "--json")
    assert answer.code == 0
    assert answer.document == {"job": job.id, "attempts": [1], "log": "epoch 1\n", "bytes": 8, "missing": None}


@pytest.mark.parametrize("word", ["-f", "--follow"])
def test_following_ends_with_the_job_and_misses_nothing(
    installed: Installation, platform: Platform, job: Job, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    slept = while_it_sleeps(
        monkeypatch,
        lambda: say(platform, job, "epoch 2\n"),
        lambda: (say(platform, job, "epoch 3\n"), platform.finish(job)),
    )
    answer = installed.called("logs", word, job.id)
    assert (answer.code, answer.out) == (0, "epoch 1\nepoch 2\nepoch 3\n")
    assert len(slept) == 2


def test_following_as_json_is_one_document_at_the_end(
    installed: Installation, platform: Platform, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    while_it_sleeps(monkeypatch, lambda: (say(platform, job, "Übung\n"), platform.finish(job, 1)))
    answer = installed.called("logs", "-f", job.id, "--json")
    assert (answer.code, answer.document["log"]) == (0, "epoch 1\nÜbung\n")
    assert answer.document["bytes"] == len("epoch 1\nÜbung\n".encode())


def test_following_an_ended_job_ends_at_once(
    installed: Installation, platform: Platform, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.finish(job)
    while_it_sleeps(monkeypatch)
    assert installed.called("logs", "-f", job.id).out == "epoch 1\n"


def test_a_job_that_has_printed_nothing_has_an_empty_log(installed: Installation, platform: Platform) -> None:
    silent = platform.start(platform.submit())
    answer = installed.called("logs", silent.id)
    assert (answer.code, answer.out, answer.err) == (0, "", f"{silent.id} has printed nothing.\n")
    assert installed.called("logs", silent.id, "--json").document["log"] == ""


def test_a_log_that_retention_deleted_is_not_called_empty(
    installed: Installation, platform: Platform, job: Job
) -> None:
    ended = platform.finish(job)
    platform.driver.workloads.delete_log(workload_name(job.id, 1))
    by_hand = installed.called("logs", job.id)
    assert by_hand.err == f"The log of {job.id} is not there any more; its file or its folder was deleted by hand.\n"

    assert ended.ended_at is not None
    with platform.ctx.store.begin() as tx:
        before = (ended.ended_at + timedelta(seconds=1)).isoformat()
        tx.records.put_memory(f"retain:{FOLDERS}", {"before": before}, now=ended.ended_at)
    answer = installed.called("logs", job.id)
    told = f"The log of {job.id} was deleted by retention; it is kept as long as workloads are."
    assert (answer.code, answer.out, answer.err) == (0, "", f"{told}\n")
    assert installed.called("logs", job.id, "--json").document["missing"] == told


def test_a_log_of_a_running_job_that_is_not_there_says_so(
    installed: Installation, platform: Platform, job: Job
) -> None:
    platform.driver.workloads.delete_log(workload_name(job.id, 1))
    assert "is not there; its file was deleted, or" in installed.called("logs", job.id).err


def test_following_goes_on_into_the_next_attempt(
    installed: Installation, platform: Platform, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose() -> None:
        platform.driver.workloads.lose(workload_name(job.id, 1))
        say(platform, platform.tend(job, rounds=4), "epoch 2\n")

    while_it_sleeps(monkeypatch, lose, lambda: platform.finish(platform.job(job.id)))
    answer = installed.called("logs", "-f", job.id)
    assert (answer.code, answer.out) == (0, "epoch 1\nepoch 2\n")
    assert answer.err == f"attempt 2 of {job.id}:\n", "what is no output of the job is not printed among it"


def test_an_earlier_attempt_can_be_named(installed: Installation, platform: Platform, job: Job) -> None:
    platform.driver.workloads.lose(workload_name(job.id, 1))
    again = platform.tend(job, rounds=4)
    assert again.attempt == 2
    say(platform, again, "epoch 2\n")
    assert installed.called("logs", job.id).out == "epoch 2\n"
    assert installed.called("logs", job.id, "--attempt", "1").out == "epoch 1\n"
