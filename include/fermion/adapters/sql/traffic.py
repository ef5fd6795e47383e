"""What the router counted, in the database. Keeps ``ports.Traffic``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from sqlalchemy import bindparam, delete, func, select

from fermion.adapters.sql.bulk import Duplicate, insert_all
from fermion.adapters.sql.codec import Values
from fermion.adapters.sql.link import Link
from fermion.adapters.sql.payload_rows import read_all
from fermion.adapters.sql.tables import traffic
from fermion.domain.payloads import to_payload
from fermion.domain.serving.traffic import Counters

_OF_BACKEND = traffic.c.backend == bindparam("of_backend")
_SINCE = bindparam("since", type_=traffic.c.at.type)
_BEFORE = select(func.max(traffic.c.at)).where(_OF_BACKEND, traffic.c.at < _SINCE).scalar_subquery()
_READINGS = (
    select(traffic.c.payload).where(_OF_BACKEND, traffic.c.at >= func.coalesce(_BEFORE, _SINCE)).order_by(traffic.c.at)
)


class SqlTraffic:
    """Readings by backend and time."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def add(self, counters: Sequence[Counters]) -> int:
        """One statement for all."""
        return insert_all(self._link, traffic, [_row(reading) for reading in counters], Duplicate.SKIPPED)

    def since(self, backends: Collection[str], at: datetime) -> Mapping[str, Sequence[Counters]]:
        """One statement for each backend: a range of the primary key, however much there is of others and before."""
        return {
            backend: read_all(self._link, Counters, _READINGS, {"of_backend": backend, "since": at})
            for backend in sorted(backends)
        }

    def forget(self, before: datetime) -> int:
        """One statement."""
        return self._link.write(delete(traffic).where(traffic.c.at < before))


def _row(reading: Counters) -> Values:
    return {"backend": reading.backend, "at": reading.observed_at, "payload": to_payload(reading)}
