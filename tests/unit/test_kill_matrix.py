"""The kill matrix's own bookkeeping, without a platform: what is ok, what was skipped, and what falls short."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from builders import make_job
from e2e import kill_matrix
from e2e.kill_matrix import Outcome, line, run_row
from e2e.kill_rows import ROWS, Row
from e2e.live import Live
from e2e.outages import NotAllowed, small_disk
from e2e.tables import closing_line, exit_code, write
from fermion.domain.jobs import Job, Phase
from fermion.domain.reasons import Explanation, Reason

DONE = Outcome("done", status="completed", reason="model_published", restarted=True, ok=True)
SHORT = Outcome("short", status="failed", reason="killed", detail="KILLED from outside")
SKIPPED = Outcome("skipped", skipped="nothing may be mounted here")


class Nothing:
    """A platform on which nothing is left behind."""

    def settle(self) -> None:
        """It answers."""

    def give_back(self) -> None:
        """Nothing was borrowed."""

    def open_jobs(self) -> list[Job]:
        """None."""
        return []


@pytest.fixture(autouse=True)
def _all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(kill_matrix, "_check_nothing_left", lambda live, outcome: None)
    monkeypatch.setattr(kill_matrix, "_restart", lambda live, row, job: True)


def ended(reason: Reason = Reason.USER_CODE) -> Job:
    return make_job(phase=Phase.FAILED, explanation=Explanation(reason, "It ended."))


def refused(live: object) -> Job:
    raise NotAllowed("nothing may be mounted here")


def broken(live: object) -> Job:
    raise TimeoutError("it did not come true")


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        pytest.param(Row("r", "failed", ("user_code",), lambda live: ended()), "ok", id="as it should be"),
        pytest.param(Row("r", "completed", ("user_code",), lambda live: ended()), "FAIL", id="another status"),
        pytest.param(Row("r", "failed", ("killed", "hang"), lambda live: ended()), "FAIL", id="another reason"),
        pytest.param(Row("r", "failed", ("user_code",), broken), "FAIL", id="an exception"),
        pytest.param(Row("r", "failed", ("user_code",), refused), "skip", id="not allowed"),
    ],
)
def test_a_row_is_judged_by_status_reason_and_what_came_in_between(row: Row, verdict: str) -> None:
    assert run_row(Nothing(), row).verdict == verdict  # type: ignore[arg-type]


@pytest.mark.parametrize("spoilt", [{"leaked": 1}, {"orphans": 1}], ids=["a leaked GPU", "a process that is left"])
def test_a_row_that_leaves_something_falls_short(spoilt: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def find(live: object, outcome: Outcome) -> None:
        for name, value in spoilt.items():
            setattr(outcome, name, value)

    monkeypatch.setattr(kill_matrix, "_check_nothing_left", find)
    row = Row("r", "failed", ("user_code",), lambda live: ended())
    assert run_row(Nothing(), row).verdict == "FAIL"  # type: ignore[arg-type]


def test_a_row_whose_job_cannot_be_restarted_falls_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kill_matrix, "_restart", lambda live, row, job: False)
    row = Row("r", "failed", ("user_code",), lambda live: ended())
    assert run_row(Nothing(), row).verdict == "FAIL"  # type: ignore[arg-type]


def test_a_skipped_row_is_told_with_its_reason_and_is_no_failure(tmp_path: Path) -> None:
    outcomes = [DONE, SKIPPED]
    assert line(SKIPPED).split(maxsplit=2) == ["skip", "skipped", "nothing may be mounted here"]
    assert closing_line(outcomes) == "1 passed, 0 failed, 1 skipped"
    assert exit_code(outcomes) == 0
    write(outcomes, tmp_path / "run" / "kill-matrix.json")
    done, skipped = json.loads((tmp_path / "run" / "kill-matrix.json").read_text())
    assert (done["ok"], done["skipped"]) == (True, "")
    assert (skipped["ok"], skipped["skipped"]) == (False, "nothing may be mounted here")
    assert set(done) >= {"row", "status", "reason", "leaked", "orphans", "restarted", "seconds", "ok"}


def test_on_ci_nothing_may_be_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    outcome = run_row(Nothing(), Row("r", "failed", ("save_failed",), refused))  # type: ignore[arg-type]
    assert (outcome.verdict, outcome.skipped) == ("FAIL", "")
    assert "nothing may be mounted here" in outcome.detail
    assert exit_code([DONE, outcome]) == 1


def test_one_row_that_falls_short_fails_the_matrix() -> None:
    assert exit_code([DONE, SHORT]) == 1
    assert closing_line([DONE, SHORT]) == "1 passed, 1 failed"


@pytest.mark.parametrize("run", [lambda live: ended(), broken, refused], ids=["done", "broken", "skipped"])
def test_what_a_row_borrowed_is_given_back_whatever_came_of_it(run: Callable[[Live], Job]) -> None:
    given_back = []

    class Lender(Nothing):
        def give_back(self) -> None:
            given_back.append(True)

    run_row(Lender(), Row("r", "failed", ("user_code",), run))  # type: ignore[arg-type]
    assert given_back


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(subprocess.CompletedProcess([], 32, "", "mount: permission denied.\n"), id="no right"),
        pytest.param(FileNotFoundError("mount"), id="no such command"),
    ],
)
def test_where_nothing_may_be_mounted_a_small_disk_is_not_allowed(
    answer: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*words: object, **options: object) -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("e2e.outages.subprocess.run", run)
    with pytest.raises(NotAllowed, match="cannot be mounted"), small_disk(tmp_path / "models"):
        pass


def test_rows_have_names_of_their_own_and_five_are_smoke() -> None:
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names))
    assert sum(row.smoke for row in ROWS) == 5
