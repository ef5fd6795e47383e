"""From the moment a canary goes wrong to the last answer of it that a client saw, on a whole platform under load.

The canary bakes and is well; then it answers errors, or slowly, as a file tells it. Each fault crosses an absolute guard, and
one look of two seconds has enough requests to see that. It may begin anywhere between two looks.
"""

from __future__ import annotations

import argparse
import http.client
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tests.benchmarks.lines import Line
from tests.benchmarks.services import Serving, serving_platform
from tests.e2e.live import wait_until

from fermion.domain.rollout.rollouts import Phase

INTERVAL_S = 2.0
LOOKS = 2
SLACK_S = 1.0
ROUNDS = 4
CLIENTS = 16
PER_SECOND = 120.0
WEIGHT = 20
ANSWER_S = 10.0
MOST_S = 180.0
PLAN = {
    "steps": [WEIGHT, 100],
    "interval": f"{INTERVAL_S:g}s",
    "warm_up": "1s",
    "bake_min": "2m",
    "bake_max": "3m",
    "min_requests": 10,
    "metrics": [{"name": "error_rate", "guard": "10%"}, {"name": "latency_p95", "guard": "250ms"}],
}


@dataclass
class Clients:
    """Clients that ask at a fixed rate while entered. ``wrong`` holds when each wrong answer came, in seconds since the epoch."""

    url: str
    requests: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: list[float] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Clients:
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * ANSWER_S)

    def _ask(self) -> None:
        place = urlsplit(self.url)
        until = time.monotonic() + MOST_S
        client = http.client.HTTPConnection(place.netloc, timeout=ANSWER_S)
        due = time.monotonic()
        while not self._over.is_set() and time.monotonic() < until:
            try:
                client.request("POST", f"{place.path}/x", body=b"{}")
                answer = client.getresponse()
                answer.read()
                if answer.getheader("fault"):
                    self.wrong.append(time.time())
                elif answer.status != http.client.OK:  # the servers answer 200, or say what is wrong
                    self.failed.append(f"status {answer.status}")
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(type(error).__name__)
                client.close()
            self.requests += 1
            due = max(due + CLIENTS / PER_SECOND, time.monotonic())
            self._over.wait(max(0.0, due - time.monotonic()))
        client.close()


@dataclass(frozen=True)
class Round:
    """One fault."""

    to_safe_s: float
    wrong_answers: int
    requests: int
    failed: list[str]
    verdict: str


def main(given: argparse.Namespace) -> Iterator[Line]:
    """A line for each kind of fault."""
    rounds = 1 if given.short else ROUNDS
    with serving_platform(slots=3) as serving:
        url = serving.wait_until_serving(serving.deploy("digits", plan=PLAN))
        for kind in ("errors", "slow"):
            # Where between two looks a fault begins is spread evenly over the rounds.
            seen = [_one(serving, url, kind, after_s=INTERVAL_S * number / rounds) for number in range(rounds)]
            yield _line(kind, seen, judged=not given.short)


def _one(serving: Serving, url: str, kind: str, *, after_s: float) -> Round:
    fault = Path(serving.live.folder) / f"fault-{time.time_ns()}"
    with Clients(url) as clients:
        made = serving.deploy("digits", plan=PLAN, environment={"FAULT": str(fault)})
        wait_until(lambda: _looked(serving, made.id), what=f"a first look at {made.id}")
        time.sleep(after_s)
        draft = fault.with_suffix(".draft")
        draft.write_text(kind)
        began = time.time()
        draft.rename(fault)
        wait_until(lambda: (each := serving.rollout(made)) and each.phase is Phase.ROLLED_BACK, what="the way back")
        time.sleep(1)  # whatever is still wrong would be seen now
    wait_until(lambda: serving.found(made).is_over, what=f"the end of {made.id}")
    rollout = serving.rollout(made)
    if not clients.wrong or rollout is None:
        raise RuntimeError(f"no client saw the fault of {made.id}")
    return Round(
        to_safe_s=max(clients.wrong) - began,
        wrong_answers=len(clients.wrong),
        requests=clients.requests,
        failed=clients.failed,
        verdict=rollout.explanation.message,
    )


def _looked(serving: Serving, revision_id: str) -> bool:
    """Whether it bakes, and a look has found it well; fails at once when it does not come to that."""
    with serving.live.ctx.store.read() as tx:
        rollouts = [each for each in tx.rollouts.open() if each.canary == revision_id]
        return any(
            each.phase is Phase.BAKING and (look := tx.rollouts.newest_look(each.id)) is not None and look.number >= 1
            for each in rollouts
        )


def _line(kind: str, seen: list[Round], *, judged: bool) -> Line:
    bar = LOOKS * INTERVAL_S + SLACK_S
    worst = max(each.to_safe_s for each in seen)
    failed = [each for one in seen for each in one.failed]
    return Line(
        bench=f"fault_to_safe_{kind}",
        bar=f"<= {LOOKS} looks of {INTERVAL_S:g} s + {SLACK_S:g} s = {bar:g} s in every round, no failed request",
        holds=worst <= bar and not failed if judged else None,
        value=worst,
        raw={
            "seconds": [round(each.to_safe_s, 2) for each in seen],
            "wrong_answers": [each.wrong_answers for each in seen],
            "requests": [each.requests for each in seen],
            "failed": failed[:5],
            "failed_requests": len(failed),
            "weight_percent": WEIGHT,
            "verdict": seen[-1].verdict,
        },
    )
