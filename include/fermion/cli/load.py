"""Clients of a service: a bounded stream of real requests through the router, and what became of each."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

CLIENTS = 4
TIMEOUT_S = 10.0
UNSERVED = frozenset({502, 503, 504})
"""With these the router says that nobody answered it; a model server of ours answers with none of them."""


@dataclass(slots=True)
class Seen:
    """What the clients saw. ``failed`` are requests that nobody answered; ``bad`` are answers of class 5xx.

    ``bad_at`` holds the times (``time.monotonic``) of bad answers, or of what the clients were told to take for bad;
    ``unserved_at`` those of requests that nobody served.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    bad_at: list[float] = field(default_factory=list)
    unserved_at: list[float] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """All of them."""
        return self.statuses.total() + self.failed.total()

    @property
    def bad(self) -> int:
        """Answers of class 5xx."""
        return sum(count for status, count in self.statuses.items() if status >= 500)

    @property
    def unserved(self) -> int:
        """Requests that no replica answered: refused, reset or timed out, or answered by the router itself."""
        return self.failed.total() + sum(self.statuses[status] for status in UNSERVED)

    @property
    def bad_for_s(self) -> float | None:
        """From the first bad answer to the last; None without any."""
        return self.bad_at[-1] - self.bad_at[0] if self.bad_at else None


class Load:
    """Sends ``body`` to ``url`` about ``per_second`` times a second from several clients while it is entered.

    ``headers`` come with every request. ``is_bad`` judges an answer (an ``httpx.Response``, read to its end); without it those of class 5xx are bad.
    """

    def __init__(
        self,
        url: str,
        body: object,
        *,
        per_second: float,
        most_s: float = 300.0,
        is_bad: Callable[[Any], bool] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._url, self._body, self._headers = url, body, dict(headers or {})
        self._is_bad = is_bad or (lambda answer: answer.status_code >= 500)
        self._pause_s = CLIENTS / per_second
        self._until = time.monotonic() + most_s
        self._stop = threading.Event()
        self._guard = threading.Lock()
        self._clients = [threading.Thread(target=self._send, daemon=True) for _ in range(CLIENTS)]
        self.seen = Seen()

    def __enter__(self) -> Load:
        for client in self._clients:
            client.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for client in self._clients:
            client.join(TIMEOUT_S + 5)

    def _send(self) -> None:
        import httpx

        with httpx.Client(timeout=TIMEOUT_S, trust_env=False, headers=self._headers) as client:
            due = time.monotonic()
            while not self._stop.is_set() and time.monotonic() < self._until:
                self._one(client, httpx.HTTPError)
                due = max(due + self._pause_s, time.monotonic() - self._pause_s)
                self._stop.wait(max(0.0, due - time.monotonic()))

    def _one(self, client: Any, problem: type[Exception]) -> None:
        try:
            answer = client.post(self._url, json=self._body)
        except problem as error:
            with self._guard:
                self.seen.failed[type(error).__name__] += 1
                self.seen.unserved_at.append(time.monotonic())
            return
        is_bad, status = self._is_bad(answer), int(answer.status_code)
        with self._guard:
            self.seen.statuses[status] += 1
            if is_bad:
                self.seen.bad_at.append(time.monotonic())
            if status in UNSERVED:
                self.seen.unserved_at.append(time.monotonic())
