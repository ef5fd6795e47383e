"""Waking whoever waits: NOTIFY on Postgres, a polled row on SQLite. Keeps the two halves of ``ports.Store`` about it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from sqlalchemy import Engine, bindparam, select, text

from fermion.adapters.sql.link import Link, first_line, translated
from fermion.adapters.sql.tables import notices
from fermion.adapters.wording import clean
from fermion.errors import OutsideUnavailable

POLL_S = 0.1
"""How often SQLite's waiters look: the longest that a wake-up is late."""

_CHANNEL = "fermion"
_PAYLOAD_BYTES = 7900  # Postgres refuses 8000


class Bell(Protocol):
    """Rings and hears."""

    def ring(self, topic: str, payload: str) -> None:
        """Wake whoever waits for the topic."""
        ...

    def wait(self, topics: Collection[str], timeout_s: float) -> str | None:
        """The first topic that rang, or None at the timeout."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class Linking(Protocol):
    """What the SQLite bell needs of its store."""

    def linked(self, *, read_only: bool) -> AbstractContextManager[Link]:
        """A transaction of its own."""
        ...


_NUMBERS = select(notices.c.topic, notices.c.number).where(notices.c.topic.in_(bindparam("topics", expanding=True)))


class SqliteBell:
    """A row per topic with a number that grows. A waiter remembers the number that it saw last."""

    def __init__(self, store: Linking) -> None:
        self._store = store
        self._heard: dict[str, int] = {}

    def ring(self, topic: str, payload: str) -> None:
        """Raise the topic's number."""
        with self._store.linked(read_only=False) as link:
            query = link.insert(notices).on_conflict_do_update(
                index_elements=["topic"], set_={"number": notices.c.number + 1, "payload": payload}
            )
            link.write(query, {"topic": topic, "number": 1, "payload": payload})

    def wait(self, topics: Collection[str], timeout_s: float) -> str | None:
        """Look each ``POLL_S``."""
        until = time.monotonic() + timeout_s
        numbers = self._numbers(topics)
        start = {topic: self._heard.setdefault(topic, numbers.get(topic, 0)) for topic in sorted(topics)}
        while True:
            for topic, number in start.items():
                if numbers.get(topic, 0) > number:
                    self._heard[topic] = numbers[topic]
                    return topic
            left = until - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(POLL_S, left))
            numbers = self._numbers(topics)

    def _numbers(self, topics: Collection[str]) -> Mapping[str, int]:
        with self._store.linked(read_only=True) as link:
            return {row.topic: row.number for row in link.rows(_NUMBERS, {"topics": sorted(topics)})}

    def close(self) -> None:
        """Nothing is held."""


class PostgresBell:
    """LISTEN on one connection of its own. Of several threads that wait, one reads and tells the others."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._told = threading.Condition()
        self._is_read = False
        self._heard: Counter[str] = Counter()
        self._answered: dict[str, int] = {}
        self._connection: Any = None

    def ring(self, topic: str, payload: str) -> None:
        """NOTIFY, at once."""
        body = clean(f"{topic}\n{payload}").encode()[:_PAYLOAD_BYTES].decode(errors="ignore")
        with translated(), self._engine.begin() as connection:
            connection.execute(text("SELECT pg_notify(:channel, :body)"), {"channel": _CHANNEL, "body": body})

    def wait(self, topics: Collection[str], timeout_s: float) -> str | None:
        """Until one of the topics is heard; notifications that came since the last wait are still to be read."""
        until = time.monotonic() + timeout_s
        with self._told:
            start = {topic: self._answered.setdefault(topic, self._heard[topic]) for topic in sorted(topics)}
        left, has_looked = timeout_s, False
        while True:
            with self._told:
                rung = next((topic for topic, count in start.items() if self._heard[topic] > count), None)
                if rung is not None:
                    self._answered[rung] = self._heard[rung]
                    return rung
                if has_looked and left <= 0:
                    return None
                reads = not self._is_read
                self._is_read = True
                if not reads:
                    self._told.wait(left)
            if reads:
                self._read(left)
            left, has_looked = max(0.0, until - time.monotonic()), True

    def _read(self, timeout_s: float) -> None:
        heard: list[str] = []
        try:
            with translated():
                heard = self._listen(timeout_s)
        except BaseException:
            self.close()
            raise
        finally:
            with self._told:
                self._is_read = False
                self._heard.update(heard)
                self._told.notify_all()

    def _listen(self, timeout_s: float) -> list[str]:
        import psycopg  # only here: with SQLite it is never loaded

        if self._connection is None:
            self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            self._connection.exec_driver_sql(f"LISTEN {_CHANNEL}")
        driver: psycopg.Connection[Any] = self._connection.connection.driver_connection
        try:
            notices = list(driver.notifies(timeout=timeout_s, stop_after=1))
        except psycopg.Error as error:
            raise OutsideUnavailable(f"the database does not answer: {first_line(error)}", what="store") from error
        return [notice.payload.partition("\n")[0] for notice in notices]

    def close(self) -> None:
        """Close the listening connection; the next wait opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()
