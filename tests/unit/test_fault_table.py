"""The fault table's own bookkeeping, without a platform: what is ok, what falls short, and what its file holds."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from builders import make_revision, make_rollout, make_service
from e2e import fault_table
from e2e.fault_rows import ROWS, Row, Shown
from e2e.fault_table import Outcome, line, note, run_row, shortfalls
from e2e.outages import NotAllowed
from e2e.served import is_nonsense
from e2e.tables import exit_code, write
from fermion.cli.load import Seen
from fermion.domain.rollout.reasons import Explanation, Reason
from fermion.domain.rollout.rollouts import Phase
from fermion.usecases.serving.queries import Deployment

GOOD = Outcome(
    "good", status="rolled_back", reason="failed", run_state="failed", requests=100, bad_answers=4, serves=True, ok=True
)
SHORT = Outcome("short", detail="3 requests failed")


def seen(*, unserved_at: tuple[float, ...] = ()) -> Seen:
    return Seen(statuses=Counter({200: 100, 503: len(unserved_at)}), bad_at=[1.0, 2.5], unserved_at=list(unserved_at))


def shown(**changes: Any) -> Shown:
    why = Explanation(Reason.FAILED, "Look 3 failed.")
    rollout = make_rollout(phase=Phase.ROLLED_BACK, explanation=why)
    found = Deployment(service=make_service(), revision=make_revision(), rollout=rollout, holding=0)
    return replace(Shown(found, seen()), **changes)


class Nothing:
    """A stage on which nothing is left behind."""

    live: Any

    def __init__(self) -> None:
        self.live = self
        self.given_back = 0

    def settle(self) -> None:
        """It answers."""

    def give_back(self) -> None:
        """Nothing was borrowed."""
        self.given_back += 1

    def run_state(self, found: Deployment) -> str:
        """As after a rollback."""
        return "failed"

    def clear(self) -> None:
        """There is nothing."""


@pytest.fixture(autouse=True)
def _all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_left(served: object, outcome: Outcome) -> None:
        outcome.serves = True

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(fault_table, "_check_nothing_left", nothing_left)
    monkeypatch.setattr(fault_table, "_check_looks", lambda served, shown: None)


def make_row(run: Any = lambda served: shown(), **changes: Any) -> Row:
    return replace(Row("r", "rolled_back", ("failed",), run), **changes)


def broken(served: object) -> Shown:
    raise TimeoutError("it did not come true")


def refused(served: object) -> Shown:
    raise NotAllowed("nothing may be mounted here")


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        pytest.param(make_row(), "ok", id="as it should be"),
        pytest.param(make_row(status="promoted"), "FAIL", id="another status"),
        pytest.param(make_row(reasons=("canary_dead", "rejected")), "FAIL", id="another reason"),
        pytest.param(make_row(run_state="success"), "FAIL", id="another end of its run"),
        pytest.param(make_row(broken), "FAIL", id="an exception"),
        pytest.param(make_row(refused), "skip", id="not allowed"),
        pytest.param(make_row(lambda served: shown(seen=Seen())), "FAIL", id="no requests"),
        pytest.param(make_row(lambda served: shown(seen=seen(unserved_at=(1.0,)))), "FAIL", id="a request failed"),
    ],
)
def test_a_row_is_judged_by_its_end_and_by_what_the_clients_saw(row: Row, verdict: str) -> None:
    stage = Nothing()
    assert run_row(stage, row).verdict == verdict  # type: ignore[arg-type]
    assert stage.given_back


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({}, "", id="nothing"),
        pytest.param({"leaked": 1}, "1 GPUs leaked", id="a leaked GPU"),
        pytest.param({"orphans": 2}, "2 orphans", id="processes that are left"),
        pytest.param({"serves": False}, "the service does not serve", id="it does not serve"),
        pytest.param({"failed_requests": 1}, "1 requests failed ({})", id="one request"),
    ],
)
def test_whatever_falls_short_is_named(changes: dict[str, Any], words: str) -> None:
    assert shortfalls(make_row(), replace(GOOD, **changes)) == ([words] if words else [])


@pytest.mark.parametrize(
    ("unserved_s", "is_well"),
    [
        pytest.param(1.9, True, id="within"),
        pytest.param(2.0, True, id="at the limit is not over it"),
        pytest.param(2.1, False, id="beyond"),
    ],
)
def test_a_row_that_says_why_requests_fail_says_for_how_long(unserved_s: float, is_well: bool) -> None:
    row = make_row(unserved_s=2.0, why_unserved="there is one router")
    assert (not shortfalls(row, replace(GOOD, failed_requests=9, unserved_s=unserved_s))) is is_well


def test_a_row_that_lets_requests_fail_says_why() -> None:
    assert [row.name for row in ROWS if bool(row.unserved_s) != bool(row.why_unserved)] == []


def test_what_was_shown_is_written_down() -> None:
    outcome = Outcome("r")
    note(outcome, shown(seen=seen(unserved_at=(4.0, 5.25)), seconds_to_safe=1.504))
    assert (outcome.status, outcome.reason, outcome.detail) == ("rolled_back", "failed", "Look 3 failed.")
    assert (outcome.requests, outcome.failed_requests, outcome.bad_answers) == (102, 2, 2)
    assert outcome.failures == {"503": 2}
    assert (outcome.unserved_s, outcome.seconds_to_safe) == (1.25, 1.5)


@pytest.mark.parametrize(
    ("status", "body", "is_it"),
    [
        pytest.param(200, '{"outputs": [{"name": "confidence", "data": [null]}]}', True, id="as kserve writes it"),
        pytest.param(200, '{"outputs": [{"name": "confidence", "data": [0.9, NaN]}]}', True, id="as Python does"),
        pytest.param(200, '{"outputs": [{"name": "confidence", "data": [0.9]}]}', False, id="a number"),
        pytest.param(500, '{"error": "NaN"}', False, id="an error is none of it"),
    ],
)
def test_an_answer_whose_confidence_is_no_number_is_nonsense(status: int, body: str, is_it: bool) -> None:
    assert is_nonsense(httpx.Response(status, text=body)) is is_it


def test_one_row_that_falls_short_fails_the_table() -> None:
    assert exit_code([GOOD, SHORT]) == 1
    assert exit_code([GOOD]) == 0
    assert "–" in line(GOOD)
    assert line(SHORT).split()[:2] == ["FAIL", "short"]


def test_the_file_holds_what_programs_read(tmp_path: Path) -> None:
    write([replace(GOOD, seconds_to_safe=None)], tmp_path / "run" / "fault-table.json")
    (row,) = json.loads((tmp_path / "run" / "fault-table.json").read_text())
    wanted = ["row", "status", "reason", "leaked", "orphans", "failed_requests", "requests", "seconds_to_safe", "ok"]
    assert set(row) >= set(wanted)
    assert row["seconds_to_safe"] is None


def test_rows_have_names_of_their_own_and_five_are_smoke() -> None:
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names))
    assert sum(row.smoke for row in ROWS) == 5
