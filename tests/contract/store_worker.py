"""What the other processes of the store's tests do: ``python store_worker.py <url> <verb> [arguments]``."""

from __future__ import annotations

import os
import signal
import sys
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from builders import make_job, make_lease, make_service
from fermion.adapters.sql import migrate, open_store
from fermion.domain.records import Event
from fermion.errors import Conflict
from fermion.ports import Store, Transaction


def say(word: object) -> None:
    """One line to whoever started this."""
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def take_ids(store: Store, count: str) -> None:
    """Take ids, each in a transaction of its own, and say them."""
    for _ in range(int(count)):
        with store.begin() as tx:
            job_id = tx.jobs.new_id(date(2026, 3, 2))
            tx.jobs.add(make_job(job_id))
        say(job_id)


def take_service_ids(store: Store, count: str) -> None:
    """The same for services, all of one slug."""
    for _ in range(int(count)):
        with store.begin() as tx:
            service_id = tx.services.new_id("digits")
            tx.services.add(make_service(service_id, name=service_id))
        say(service_id)


def grab(store: Store, name: str) -> None:
    """Wait for a line on stdin, then try to hold the one device."""
    say("ready")
    sys.stdin.readline()
    try:
        with store.begin() as tx:
            tx.leases.add(make_lease(name))
        say("won")
    except Conflict:
        say("lost")


def write_all(tx: Transaction) -> None:
    """Something in every table that a grant touches."""
    tx.jobs.add(make_job())
    tx.leases.next_token()
    tx.leases.add(make_lease(gpus=4))
    tx.records.add_event(Event(actor="a", verb="job.granted", target="job-1", at=make_job().submitted_at))
    tx.leases.ledger()  # so that what waits for the commit is written too
    tx.records.events()


def die_inside(store: Store, lock: str) -> None:
    """Be killed in the middle of a transaction that holds a lock."""
    with store.begin(exclusive=lock) as tx:
        write_all(tx)
        say("inside")
        os.kill(os.getpid(), signal.SIGKILL)


def hold(store: Store, lock: str) -> None:
    """Hold a lock until a line comes."""
    with store.begin(exclusive=lock) as tx:
        tx.jobs.add(make_job())
        say("inside")
        sys.stdin.readline()
    say("done")


def ring(store: Store, topic: str) -> None:
    """Notify once a line comes."""
    say("ready")
    sys.stdin.readline()
    store.notify(topic, "from afar")
    say("rang")


def main() -> None:
    """Do what the arguments say."""
    url, verb, *arguments = sys.argv[1:]
    if verb == "migrate":
        say(migrate(url))
        return
    verbs = {
        "take_ids": take_ids,
        "take_service_ids": take_service_ids,
        "grab": grab,
        "die_inside": die_inside,
        "hold": hold,
        "ring": ring,
    }
    verbs[verb](open_store(url), *arguments)


if __name__ == "__main__":
    main()
