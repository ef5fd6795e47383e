"""The platform's state in memory. Keeps ``ports.Store``: commits are atomic, readers keep their moment."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from fermion.adapters.memory.catalog import MemoryCatalog
from fermion.adapters.memory.jobs import MemoryJobs
from fermion.adapters.memory.leases import MemoryLeases
from fermion.adapters.memory.records import MemoryRecords
from fermion.adapters.memory.replica_rows import MemoryReplicaRows
from fermion.adapters.memory.rollouts import MemoryRollouts
from fermion.adapters.memory.services import MemoryServices
from fermion.adapters.memory.tables import Draft, Tables
from fermion.adapters.memory.traffic import MemoryTraffic
from fermion.errors import OutsideUnavailable

PATIENCE_S = 10
"""How long a transaction waits for the one before it."""


class MemoryTransaction:
    """The repositories of one transaction."""

    def __init__(self, draft: Draft) -> None:
        self.jobs = MemoryJobs(draft)
        self.leases = MemoryLeases(draft)
        self.catalog = MemoryCatalog(draft)
        self.records = MemoryRecords(draft)
        self.services = MemoryServices(draft)
        self.replicas = MemoryReplicaRows(draft)
        self.rollouts = MemoryRollouts(draft)
        self.traffic = MemoryTraffic(draft)


class MemoryStore:
    """One process's state; threads may share it. ``fail`` makes every call raise until ``recover``."""

    def __init__(self) -> None:
        self._tables = Tables()
        self._writing = threading.Lock()
        self._rung = threading.Condition()
        self._rings: Counter[str] = Counter()
        self._heard: dict[str, int] = {}
        self._outage: str | None = None

    def fail(self, why: str = "the database does not answer") -> None:
        """A lever: from now on nobody answers."""
        self._outage = why

    def recover(self) -> None:
        """A lever: answer again, with all that was committed."""
        self._outage = None

    def _answer(self) -> None:
        if self._outage is not None:
            raise OutsideUnavailable(self._outage, what="store")

    @contextmanager
    def begin(self, *, exclusive: str | None = None) -> Iterator[MemoryTransaction]:
        """One writer at a time, so every transaction is exclusive."""
        self._answer()
        if not self._writing.acquire(timeout=PATIENCE_S):
            raise OutsideUnavailable(
                f"the store is locked: another transaction writes for over {PATIENCE_S} s", what="store"
            )
        try:
            draft = Draft(self._tables, read_only=False)
            yield MemoryTransaction(draft)
            self._answer()
            self._tables = draft.published()
        finally:
            self._writing.release()

    @contextmanager
    def read(self) -> Iterator[MemoryTransaction]:
        """The last commit, whatever is committed meanwhile."""
        self._answer()
        yield MemoryTransaction(Draft(self._tables, read_only=True))

    def notify(self, topic: str, payload: str = "") -> None:
        """Wake the waiters."""
        with self._rung:
            self._rings[topic] += 1
            self._rung.notify_all()

    def wait(self, topics: Collection[str], timeout: timedelta) -> str | None:
        """What rang since this store's last wait for the topic counts too."""
        self._answer()
        until = time.monotonic() + timeout.total_seconds()
        with self._rung:
            start = {topic: self._heard.setdefault(topic, self._rings[topic]) for topic in sorted(topics)}
            while True:
                for topic, number in start.items():
                    if self._rings[topic] > number:
                        self._heard[topic] = self._rings[topic]
                        return topic
                left = until - time.monotonic()
                if left <= 0:
                    return None
                self._rung.wait(left)

    def check(self) -> str:
        """As ``memory, 3 jobs``."""
        self._answer()
        return f"memory, {len(self._tables.jobs)} jobs"


if TYPE_CHECKING:
    from fermion.ports import Store

    def _keeps_the_port(kept: MemoryStore) -> Store:
        return kept
