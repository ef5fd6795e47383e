"""What probes conclude from answers, with Kubernetes' meaning of their numbers. Time is passed by hand, nobody is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from fermion.adapters.process.runner import probes
from fermion.adapters.process.runner.asking import Answer, Asked
from fermion.adapters.process.runner.probes import Probing

YES, NO = Answer(ok=True, words="it answered"), Answer(ok=False, words="it answered 503")
NOBODY = Answer(ok=False, words="nothing listens there", nobody_listens=True)
ASKED = Asked({"http": 20_000}, "/", {}, lambda: None)


class Silent:
    """A question that is never answered."""

    reader: int | None = None
    writer: int | None = None

    def __init__(self) -> None:
        self.is_closed = False

    def step(self) -> Answer | None:
        return None

    def reaped(self, ended: Mapping[int, int]) -> Answer | None:
        return None

    def close(self) -> None:
        self.is_closed = True


class World:
    """Answers by the path that is asked, and when each was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.answers: dict[str, Answer | Silent] = {}
        self.asked: list[tuple[str, float]] = []
        monkeypatch.setattr(probes, "ask", self._ask)

    def _ask(self, probe: Mapping[str, Any], asked: Asked) -> Answer | Silent:
        self.asked.append((probe["path"], round(self.now - 100.0, 3)))
        return self.answers.get(probe["path"], YES)

    def times(self, path: str) -> list[float]:
        return [at for name, at in self.asked if name == path]

    def probing(self, **orders: dict[str, Any]) -> Probing:
        return Probing(orders, ASKED, self.now)

    def until(self, probing: Probing, at: float) -> None:
        """Step as the runner does, until that many seconds after the beginning."""
        while probing.until() <= 100.0 + at:
            self.now = max(self.now, probing.until())
            probing.step(self.now, [], {})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def probe(path: str, **changes: object) -> dict[str, Any]:
    """An order's probe, asked once a second."""
    numbers: dict[str, Any] = {"period_s": 1.0, "timeout_s": 1.0, "success_threshold": 1, "failure_threshold": 3}
    return {"kind": "http", "path": path, "port": "http", "command": [], **numbers, **changes}


def follow(world: World, probing: Probing, answers: Sequence[Answer]) -> list[bool | None]:
    """Whether it is ready after each answer to its readiness probe."""
    seen = []
    for number, answer in enumerate(answers):
        world.answers["/ready"] = answer
        world.until(probing, number)
        seen.append(probing.is_ready)
    return seen


def test_without_probes_it_is_ready_and_nothing_is_due(world: World) -> None:
    probing = world.probing()
    assert (probing.has_started, probing.is_ready, probing.failure) == (True, True, None)
    assert probing.until() == float("inf")


@pytest.mark.parametrize(
    ("numbers", "answers", "expected"),
    [
        pytest.param({}, [YES, NO, NO, NO], [True, True, True, False], id="three failures in a row"),
        pytest.param({}, [YES, NO, NO, YES, NO, NO], [True] * 6, id="a success between starts counting again"),
        pytest.param({}, [NO, NO, NO, YES], [None, None, False, True], id="undecided at first"),
        pytest.param({"failure_threshold": 1}, [NO, YES, NO], [False, True, False], id="a threshold of one"),
        pytest.param(
            {"success_threshold": 2}, [YES, NO, YES, YES], [None, None, None, True], id="two successes in a row"
        ),
    ],
)
def test_readiness_counts_answers_in_a_row(
    world: World, numbers: dict[str, int], answers: list[Answer], expected: list[bool | None]
) -> None:
    assert follow(world, world.probing(readiness=probe("/ready", **numbers)), answers) == expected


def test_the_others_are_asked_once_startup_has_succeeded_and_startup_no_more(world: World) -> None:
    world.answers["/start"] = NO
    probing = world.probing(
        startup=probe("/start", failure_threshold=10), readiness=probe("/ready"), liveness=probe("/live")
    )
    world.until(probing, 2.5)
    assert {path for path, _ in world.asked} == {"/start"}
    assert (probing.has_started, probing.is_ready) == (False, None)
    world.answers["/start"] = YES
    world.until(probing, 3.5)
    assert (probing.has_started, probing.is_ready) == (True, True)
    assert world.times("/ready")[0] == world.times("/live")[0] == 3.0
    world.until(probing, 5)
    assert world.times("/start")[-1] == 3.0


@pytest.mark.parametrize("name", ["startup", "liveness"])
def test_startup_and_liveness_that_fail_say_why_it_must_be_started_again(world: World, name: str) -> None:
    world.answers["/x"] = NO
    probing = world.probing(**{name: probe("/x")})
    world.until(probing, 1)
    assert probing.failure is None
    world.until(probing, 2)
    assert probing.failure == f"its {name} probe failed 3 times in a row: it answered 503"


def test_readiness_never_asks_for_a_new_start(world: World) -> None:
    world.answers["/ready"] = NO
    probing = world.probing(readiness=probe("/ready"))
    world.until(probing, 60)
    assert (probing.is_ready, probing.failure) == (False, None)
    assert probing.words == "readiness probe: it answered 503"


def test_while_nobody_listens_it_is_looked_for_often_and_counted_once_a_period(world: World) -> None:
    world.answers["/start"] = NOBODY
    probing = world.probing(startup=probe("/start", failure_threshold=4))
    world.until(probing, 3.9)
    assert probing.failure is None
    assert len(world.times("/start")) > 20
    world.until(probing, 4.3)
    assert probing.failure is not None
    gaps = [after - before for before, after in zip(world.times("/start"), world.times("/start")[1:], strict=False)]
    assert max(gaps) <= 0.25


def test_a_server_that_was_ready_and_vanished_is_asked_and_counted_as_usual(world: World) -> None:
    probing = world.probing(readiness=probe("/ready"))
    world.until(probing, 0)
    world.answers["/ready"] = NOBODY
    world.until(probing, 2)
    assert probing.is_ready
    world.until(probing, 3)
    assert probing.is_ready is False
    assert world.times("/ready") == [0, 1, 2, 3]


def test_no_answer_within_the_timeout_is_a_failure_and_the_question_is_given_up(world: World) -> None:
    silent = Silent()
    world.answers["/ready"] = silent
    probing = world.probing(readiness=probe("/ready", timeout_s=0.25, failure_threshold=2))
    world.until(probing, 0.5)
    assert silent.is_closed
    assert probing.words == "readiness probe: no answer within 0.25 s"
    world.until(probing, 1.5)
    assert probing.is_ready is False
    assert world.times("/ready") == [0, 1]


def test_a_timeout_longer_than_the_period_delays_the_next_question(world: World) -> None:
    world.answers["/ready"] = Silent()
    probing = world.probing(readiness=probe("/ready", timeout_s=2.5))
    world.until(probing, 6)
    assert world.times("/ready") == [0, 2.5, 5]


def test_whether_any_probe_ever_succeeded_is_remembered(world: World) -> None:
    assert world.probing().has_answered is None
    world.answers["/ready"] = NO
    probing = world.probing(readiness=probe("/ready"))
    world.until(probing, 5)
    assert probing.has_answered is False
    world.answers["/ready"] = YES
    world.until(probing, 6)
    probing.close()
    assert probing.has_answered is True
    assert probing.until() == float("inf")
