"""The startup, readiness and liveness probes of one process, with the meaning that Kubernetes gives their numbers.

Time is an argument; the questions themselves are asked by ``asking``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .asking import Answer, Asked, Question, ask

_SOONEST_S = 0.02
_EAGERNESS = 0.05  # while nobody listens yet, look again after this part of the time that has passed


class Probe:
    """One probe of one process. ``result`` is None until enough answers in a row agreed."""

    def __init__(self, order: Mapping[str, Any], asked: Asked, now: float) -> None:
        self.result: bool | None = None
        self.words = ""
        self.question: Question | None = None
        self._order = order
        self._asked = asked
        self._began = self._next = now
        self._counts_from = now + order["period_s"]
        self._asked_at = now
        self._successes = self._failures = 0

    def step(self, now: float, ready: list[int], ended: Mapping[int, int]) -> None:
        """Go on: take what is ready, then give up what is late, then ask what is due."""
        if self.question is not None:
            self._go_on(self.question, now, ready, ended)
        if self.question is None and now >= self._next:
            self._begin(now)

    def until(self) -> float:
        """When to step at the latest."""
        return self._next if self.question is None else self._asked_at + float(self._order["timeout_s"])

    def close(self) -> None:
        """Ask no more."""
        if self.question is not None:
            self.question.close()
            self.question = None

    def _begin(self, now: float) -> None:
        self._asked_at = now
        asked = ask(self._order, self._asked)
        if isinstance(asked, Answer):
            self._settle(asked, now)
        else:
            self.question = asked

    def _go_on(self, question: Question, now: float, ready: list[int], ended: Mapping[int, int]) -> None:
        answer = question.reaped(ended) if ended else None
        if answer is None and (question.reader in ready or question.writer in ready):
            answer = question.step()
        if answer is None and now >= self.until():
            answer = Answer(ok=False, words=f"no answer within {self._order['timeout_s']:g} s")
        if answer is not None:
            self.close()
            self._settle(answer, now)

    def _settle(self, answer: Answer, now: float) -> None:
        self.words = "" if answer.ok else answer.words
        if answer.nobody_listens and self.result is not True:
            self._settle_unheard(now)
            return
        self._count(answer.ok)
        self._counts_from = self._asked_at + self._order["period_s"]
        self._next = max(now, self._counts_from)

    def _settle_unheard(self, now: float) -> None:
        """A server that is still on its way: looked for more often, but counted once a period."""
        if now >= self._counts_from:
            self._count(ok=False)
            self._counts_from = now + self._order["period_s"]
        self._next = min(self._counts_from, now + max(_SOONEST_S, (now - self._began) * _EAGERNESS))

    def _count(self, ok: bool) -> None:
        self._successes, self._failures = (self._successes + 1, 0) if ok else (0, self._failures + 1)
        if self._successes >= self._order["success_threshold"]:
            self.result = True
        if self._failures >= self._order["failure_threshold"]:
            self.result = False


class Probing:
    """All probes of one process."""

    def __init__(self, orders: Mapping[str, Mapping[str, Any] | None], asked: Asked, now: float) -> None:
        self._orders = orders
        self._asked = asked
        self._active: dict[str, Probe] = {}
        self._succeeded = False
        self.has_started = orders.get("startup") is None
        self._open(("readiness", "liveness") if self.has_started else ("startup",), now)

    @property
    def is_ready(self) -> bool | None:
        """Whether it may get requests; None while it was not asked often enough to tell."""
        readiness = self._active.get("readiness")
        if not self.has_started:
            return None
        return True if readiness is None else readiness.result

    @property
    def has_answered(self) -> bool | None:
        """Whether any probe ever succeeded; None: there is none that could."""
        return self._succeeded if any(self._orders.values()) else None

    @property
    def failure(self) -> str | None:
        """Why the process must be started again, if it must."""
        for name in ("startup", "liveness"):
            probe = self._active.get(name)
            if probe is not None and probe.result is False:
                times = self._orders[name] or {}
                return f"its {name} probe failed {times.get('failure_threshold')} times in a row: {probe.words}"
        return None

    @property
    def words(self) -> str:
        """What went wrong last, of the probes that do not succeed now."""
        return "; ".join(f"{name} probe: {probe.words}" for name, probe in self._active.items() if probe.words)

    def step(self, now: float, ready: list[int], ended: Mapping[int, int]) -> None:
        """Go on with every probe; the others begin when startup has succeeded."""
        for probe in list(self._active.values()):
            probe.step(now, ready, ended)
            self._succeeded = self._succeeded or probe.result is True
        startup = self._active.get("startup")
        if startup is not None and startup.result:
            startup.close()
            del self._active["startup"]
            self.has_started = True
            self._open(("readiness", "liveness"), now)

    def readers(self) -> list[int]:
        """Descriptors to wait for until they can be read."""
        return [question.reader for question in self._questions() if question.reader is not None]

    def writers(self) -> list[int]:
        """Descriptors to wait for until they can be written."""
        return [question.writer for question in self._questions() if question.writer is not None]

    def until(self) -> float:
        """When to step at the latest; infinity when nothing is asked."""
        return min((probe.until() for probe in self._active.values()), default=float("inf"))

    def close(self) -> None:
        """Ask no more."""
        for probe in self._active.values():
            probe.close()
        self._active = {}

    def _questions(self) -> Iterator[Question]:
        for probe in self._active.values():
            if probe.question is not None:
                yield probe.question

    def _open(self, names: Iterable[str], now: float) -> None:
        for name in names:
            order = self._orders.get(name)
            if order is not None:
                self._active[name] = Probe(order, self._asked, now)
