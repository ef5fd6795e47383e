"""Writes that nobody waits for, on both databases: what they refuse is told, takes the transaction back, and harms no later one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import text

from builders import make_job
from fermion.adapters.sql.link import Link
from fermion.adapters.sql.store import SqlStore
from fermion.errors import Conflict, OutsideUnavailable

_AGAIN = text("INSERT INTO counters (name, value) VALUES ('twice', 1)")
_HERE = text("SELECT count(*) FROM counters WHERE name = 'twice'")


def jobs(store: SqlStore) -> list[str]:
    with store.read() as tx:
        return [job.id for job in tx.jobs.find()]


def post_twice(store: SqlStore, then: Callable[[Link], object]) -> None:
    with store.linked(read_only=False) as link:
        link.post(_AGAIN)
        link.post(_AGAIN)
        then(link)


def end_between_posts(store: SqlStore) -> None:
    with store.linked(read_only=False) as link:
        pid = link.scalar(text("SELECT pg_backend_pid()"))
        link.post(_AGAIN)
        with store.linked(read_only=False) as other:
            assert other.scalar(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
        link.post(_AGAIN)


@pytest.mark.parametrize("asks", [True, False], ids=["by the next question", "by the commit"])
def test_what_a_posted_write_refuses_is_told(database: SqlStore, asks: bool) -> None:
    with pytest.raises(Conflict):
        post_twice(database, lambda link: link.scalar(_HERE) if asks else None)

    with database.linked(read_only=False) as link:
        assert link.scalar(_HERE) == 0, "the transaction was taken back"
        link.post(_AGAIN)
        assert link.scalar(_HERE) == 1, "whoever asks sees what was posted before"
    with database.linked(read_only=True) as link:
        assert link.scalar(_HERE) == 1


def test_the_first_error_is_told_and_not_what_posted_writes_say_after_it(postgres_store: SqlStore) -> None:
    def fail(_link: Link) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        post_twice(postgres_store, fail)
    with postgres_store.linked(read_only=True) as link:
        assert link.scalar(_HERE) == 0


def test_a_connection_that_ends_under_posted_writes_is_unavailable(postgres_store: SqlStore) -> None:
    with pytest.raises(OutsideUnavailable):
        end_between_posts(postgres_store)

    with postgres_store.begin() as tx:
        assert tx.jobs.add(make_job())
    assert len(jobs(postgres_store)) == 1
