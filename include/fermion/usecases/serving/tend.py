"""Look after every open service: see its replicas, steer its rollout, bring the router to what is wanted, end what is over.

The triggerer does this several times a second while somebody waits for a deployment, ``sync_platform`` every 30 s; both may
at once: each row's version decides. Nothing here remembers anything that matters.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial

from fermion.domain.leases import TERM, HolderKind, Lease, LeasePhase, end, renew
from fermion.domain.pools import Pool
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.serving import fleet
from fermion.domain.serving.fleet import Due, Fleet, Step
from fermion.domain.serving.replicas import ReplicaSeen, ReplicaState
from fermion.domain.serving.services import (
    HOLDING,
    Replica,
    ReplicaPhase,
    Revision,
    RevisionPhase,
    Service,
)
from fermion.domain.workloads import ExitCause
from fermion.errors import FermionError
from fermion.ports import Driver, Transaction
from fermion.usecases.admit import admit_safely, leave_of
from fermion.usecases.claims import lease_id
from fermion.usecases.context import Context
from fermion.usecases.moving import PLATFORM
from fermion.usecases.serving import routes
from fermion.usecases.serving.stage import MAKING, locations_of, prepare
from fermion.usecases.serving.steer import Steering
from fermion.usecases.serving.writing import write_replica, write_revision, write_service

log = logging.getLogger(__name__)

INSIST_EVERY = timedelta(seconds=2)
ROUTABLE = frozenset(ReplicaPhase) - {ReplicaPhase.ENDED}


@dataclass(slots=True)
class State:
    """One cluster's services as they were read, with what was seen of their replicas."""

    driver: Driver
    services: dict[str, Service]
    revisions: list[Revision]
    rows: list[Replica]
    seen: dict[str, ReplicaSeen] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)

    def of(self, service: Service) -> tuple[list[Revision], list[Replica]]:
        """That service's revisions and replicas."""
        return (
            [each for each in self.revisions if each.service_id == service.id],
            [row for row in self.rows if row.service_id == service.id],
        )


@dataclass(slots=True)
class ServiceTender:
    """One caller's rounds over all open services."""

    ctx: Context
    steering: Steering = field(init=False)
    troubles: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.steering = Steering(self.ctx)

    def round(self) -> None:
        """Look after every open service once."""
        with self.ctx.store.read() as tx:
            services = tx.services.find(is_open=True)
            revisions = tx.services.open_revisions()
            rows = tx.replicas.find(phases=frozenset(ReplicaPhase) - {ReplicaPhase.ENDED})
            pools = self.ctx.pools(tx) if rows else {}
            leases = {each.id: each for each in tx.leases.live() if each.holder_kind is HolderKind.SERVICE}
        for cluster, driver in sorted(self.ctx.drivers.items()):
            here = {each.id: each for each in services if each.pool.split("/", 1)[0] == cluster}
            if not here:
                continue
            state = State(
                driver=driver,
                services=here,
                revisions=[each for each in revisions if each.service_id in here],
                rows=[row for row in rows if row.service_id in here],
                leases=leases,
            )
            self._safely(f"cluster {cluster}", partial(self._tend, cluster, state, pools))
        if any(row.phase is ReplicaPhase.WAITING for row in rows):
            admit_safely(self.ctx)

    def _tend(self, cluster: str, state: State, pools: Mapping[str, Pool]) -> None:
        for row in state.rows:
            if row.prepared_at is not None:
                state.seen[row.name] = self._look(state, row, pools)
        for row in state.rows:
            if row.phase is ReplicaPhase.HOLDING and _could_not_start(state.seen.get(row.name)):
                self._safely(f"files of {row.name}", partial(self._put_right, state, row))
        for service in list(state.services.values()):
            self._safely(service.name, partial(self._steer, state, service))
        routed = self._route(cluster, state)
        for service in list(state.services.values()):
            self._safely(f"{service.name}'s replicas", partial(self._keep, state, service, routed))

    def _safely(self, what: str, do: Callable[[], None]) -> None:
        """What goes wrong with one is told once, and keeps nobody from looking after the others."""
        trouble = ""
        try:
            do()
        except FermionError as error:
            trouble = str(error)
            if trouble != self.troubles.get(what):
                log.warning("%s could not be looked after this time: %s", what, error)
        except Exception as error:
            trouble = repr(error)
            if trouble != self.troubles.get(what):
                log.exception("%s could not be looked after", what)
        self.troubles[what] = trouble

    def _steer(self, state: State, service: Service) -> None:
        revisions, rows = state.of(service)
        steered = self.steering.steer(state.driver, service, revisions, rows, state.seen)
        state.services[service.id] = steered.service
        state.revisions = [steered.revisions.get(each.id, each) for each in state.revisions]

    # --- seeing -----------------------------------------------------------------------------------------------------

    def _look(self, state: State, row: Replica, pools: Mapping[str, Pool]) -> ReplicaSeen:
        """One look; a granted one that still waits is resumed, and the lease of a live one is renewed."""
        replicas = state.driver.replicas
        seen = replicas.look(row.name)
        lease = state.leases.get(lease_id(row.name))
        if row.phase is ReplicaPhase.HOLDING and seen.state is ReplicaState.SUSPENDED and lease is not None:
            replicas.resume(row.name, leave_of(lease, pools.get(row.pool)))
            seen = replicas.look(row.name)
        if seen.state is ReplicaState.LOST and seen.orphans:
            replicas.end_orphans()
            seen = replicas.look(row.name)
        if lease is not None and row.phase in HOLDING:
            self._note(lease, seen)
        return seen

    def _note(self, lease: Lease, seen: ReplicaSeen) -> None:
        """Renew the lease while anything of the replica lives, and note when its process began."""
        now = self.ctx.clock.now()
        noted = replace(lease, exec_at=lease.exec_at or seen.exec_at)
        if not seen.is_gone and lease.expires_at - now < TERM * 2 / 3:
            noted = renew(noted, now)
        if noted != lease:
            with self.ctx.store.begin() as tx:
                tx.leases.update(noted)

    # --- routing ----------------------------------------------------------------------------------------------------

    def _route(self, cluster: str, state: State) -> frozenset[str]:
        """Bring the router to what is wanted; the replicas that it has as endpoints now.

        Several callers may be at it at once. Under the lock each makes its table from the rows as they are then, so that
        nobody who read them earlier puts back weights that were changed since. A service that is taken down loses its route
        before it is closed: afterwards nobody looks after it.
        """
        with self.ctx.store.begin(exclusive=f"router:{cluster}") as tx:
            fresh = {each.id: each for each in tx.services.find(is_open=True) if each.id in state.services}
            revisions = [each for each in tx.services.open_revisions() if each.service_id in fresh]
            rows = [row for row in tx.replicas.find(phases=ROUTABLE) if row.service_id in fresh]
            left = {revision.service_id for revision in revisions} | {row.service_id for row in rows}
            routable = [each for each in fresh.values() if not each.closing or each.id in left]
            table = routes.table_of(routable, revisions, rows, state.seen)
            state.driver.router.apply(table)
        return routes.routed_names(table, fresh, rows, state.seen)

    # --- keeping the fleet ------------------------------------------------------------------------------------------

    def _keep(self, state: State, service: Service, routed: frozenset[str]) -> None:
        revisions, rows = state.of(service)
        seen_of = Fleet(
            service=service,
            revisions=revisions,
            replicas=rows,
            seen=state.seen,
            routed=routed,
            active=self._active(state, rows) if _drains(rows) else {},
        )
        due = fleet.decide(seen_of, self.ctx.clock.now())
        by_name = {row.name: row for row in rows}
        by_id = {revision.id: revision for revision in revisions}
        for step in due.steps:
            row = by_name[step.name]
            self._take(state, by_id[row.revision], row, step)
        for number, count in due.missing.items():
            self._add(service, next(each for each in revisions if each.number == number), count)
        for revision in revisions:
            self._settle(revision, rows)
        if service.closing and not revisions and not rows:
            with self.ctx.store.begin() as tx:
                closed = replace(service, closed_at=self.ctx.clock.now())
                write_service(self.ctx, tx, closed, "service.closed", "Nothing of it is left.", PLATFORM)

    def _active(self, state: State, rows: Sequence[Replica]) -> dict[str, int]:
        """Requests on their way by revision; where the router does not tell, they are taken to be there."""
        names = sorted({row.revision for row in rows})
        try:
            counters = state.driver.router.counters(names)
        except FermionError as error:
            log.warning("requests on their way are not known: %s", error)
            return dict.fromkeys(names, 1)
        return {name: each.active for name, each in counters.items()}

    def _take(self, state: State, revision: Revision, row: Replica, step: Step) -> None:
        """Carry one step out. Each may be repeated: whoever comes next finds what a killed one left."""
        replicas = state.driver.replicas
        if step.due is Due.PREPARE:
            self._safely(f"replica {row.name}", partial(self._prepare, state.driver, revision, row))
        elif step.due is Due.GIVE_UP:
            if self._move(row, ReplicaPhase.ENDED, Reason.NOT_WANTED, step.why) is not None:
                replicas.remove(row.name)
        elif step.due is Due.DRAIN:
            self._move(row, ReplicaPhase.DRAINING, Reason.NOT_WANTED, step.why)
        elif step.due is Due.STOP:
            if self._move(row, ReplicaPhase.STOPPING, Reason.DRAINED, step.why) is not None:
                replicas.stop(row.name, grace=fleet.DRAIN_MOST, why=step.why)
        elif step.due is Due.INSIST:
            if self.ctx.clock.now() - row.changed_at > INSIST_EVERY:
                replicas.stop(row.name, grace=fleet.DRAIN_MOST, why=step.why)
        else:
            self._close(state, row, step.why)

    def _prepare(self, driver: Driver, revision: Revision, row: Replica) -> None:
        """What keeps it from being made stands in its row, and keeps nothing else of the service from being done."""
        with self._told_in(row):
            prepare(self.ctx, driver, revision, row)

    def _put_right(self, state: State, row: Replica) -> None:
        """Its server could not be executed: if its files were changed, they are fetched again before the next start."""
        revision = next(each for each in state.revisions if each.id == row.revision)
        with self._told_in(row):
            locations_of(self.ctx, state.driver, revision)
        if row.explanation.reason is Reason.STAGING_FAILED:
            self._explain(row, Explanation(Reason.STAGING, "Its files are there again; its server is started again."))

    @contextmanager
    def _told_in(self, row: Replica) -> Iterator[None]:
        """What went wrong is kept in the row before it is raised."""
        try:
            yield
        except FermionError as error:
            self._explain(row, Explanation(Reason.STAGING_FAILED, error.message))
            raise

    def _explain(self, row: Replica, why: Explanation) -> None:
        if row.explanation != why:
            with self.ctx.store.begin() as tx:
                tx.replicas.save(replace(row, explanation=why))

    def _move(self, row: Replica, to: ReplicaPhase, reason: Reason, message: str) -> Replica | None:
        with self.ctx.store.begin() as tx:
            return write_replica(self.ctx, tx, row, to, Explanation(reason, message))

    def _close(self, state: State, row: Replica, why: str) -> None:
        """The replica is gone: its row and its lease end together."""
        seen = state.seen.get(row.name)
        with self.ctx.store.begin() as tx:
            moved = write_replica(self.ctx, tx, row, ReplicaPhase.ENDED, Explanation(Reason.REPLICA_ENDED, why))
            if moved is None:
                return
            self._end_lease(tx, state.leases.get(lease_id(row.name)), seen, row)
        state.driver.replicas.remove(row.name)
        self.ctx.store.notify("leases", row.pool)

    def _end_lease(self, tx: Transaction, lease: Lease | None, seen: ReplicaSeen | None, row: Replica) -> None:
        if lease is None:
            return
        record = seen.exit if seen is not None else None
        noted = replace(
            lease,
            exec_at=lease.exec_at or (seen.exec_at if seen is not None else None),
            exit_at=record.exit_at if record is not None else lease.exit_at,
        )
        tx.leases.end(end(noted, LeasePhase.RELEASED, cause=str(row.explanation.reason), now=self.ctx.clock.now()))

    def _add(self, service: Service, revision: Revision, count: int) -> None:
        """So many replicas more, in line from now on."""
        now = self.ctx.clock.now()
        with self.ctx.store.begin() as tx:
            saved = tx.services.save_revision(replace(revision, replica_count=revision.replica_count + count))
            if saved is None:
                return
            tx.replicas.add_all(
                [
                    Replica(
                        revision=revision.id,
                        service_id=service.id,
                        number=revision.replica_count + place,
                        pool=service.pool,
                        phase=ReplicaPhase.WAITING,
                        explanation=MAKING,
                        queued_at=now,
                        changed_at=now,
                    )
                    for place in range(1, count + 1)
                ]
            )

    def _settle(self, revision: Revision, rows: Sequence[Replica]) -> None:
        """A revision that retires, and of which nothing is left, has retired (or failed)."""
        if revision.phase is not RevisionPhase.RETIRING or any(row.revision == revision.id for row in rows):
            return
        to = RevisionPhase.FAILED if revision.failed else RevisionPhase.RETIRED
        with self.ctx.store.begin() as tx:
            write_revision(self.ctx, tx, revision, to, revision.explanation)


def _could_not_start(seen: ReplicaSeen | None) -> bool:
    if seen is None or seen.state is not ReplicaState.BACKING_OFF or seen.last_exit is None:
        return False
    return seen.last_exit.cause is ExitCause.NEVER_STARTED


def _drains(rows: Sequence[Replica]) -> bool:
    return any(row.phase is ReplicaPhase.DRAINING for row in rows)
