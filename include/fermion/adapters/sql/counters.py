"""Numbers that only grow: the day's jobs, fencing tokens."""

from __future__ import annotations

from sqlalchemy import bindparam

from fermion.adapters.sql.link import Link
from fermion.adapters.sql.tables import counters


def next_value(link: Link, name: str, *, count: int = 1) -> int:
    """The next number of that counter, from 1; with ``count`` the last of that many that are the caller's from now on.

    Callers wait for each other, so no two committed ones are equal.
    """
    query = link.insert(counters).values(name=bindparam("counter"), value=bindparam("count"))
    query = query.on_conflict_do_update(
        index_elements=["name"], set_={"value": counters.c.value + query.excluded.value}
    )
    return int(link.scalar(query.returning(counters.c.value), {"counter": name, "count": count}))
