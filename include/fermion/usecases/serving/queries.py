"""What can be asked about services and their deployments. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from fermion.domain.rollout.rollouts import Approval, Phase, Rollout
from fermion.domain.serving.replicas import ReplicaSeen, ReplicaState
from fermion.domain.serving.routing import Spread
from fermion.domain.serving.services import (
    HOLDING,
    REVISION_FINAL,
    SERVICE_DAG,
    Replica,
    ReplicaPhase,
    Revision,
    RevisionPhase,
    Service,
)
from fermion.domain.serving.traffic import Window, merged, quantile_ms, window
from fermion.errors import FermionError, NotFound
from fermion.ports import Driver
from fermion.usecases.context import Context
from fermion.usecases.serving.routes import route_of
from fermion.usecases.serving.steer import rollout_id
from fermion.usecases.serving.writing import load_service

DAY = timedelta(hours=24)
LATELY = timedelta(minutes=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One revision on its way: where it, its service and its rollout are. ``approval`` is a person's last answer."""

    service: Service
    revision: Revision
    rollout: Rollout | None
    holding: int
    old: Revision | None = None
    approval: Approval | None = None

    @property
    def is_asked(self) -> bool:
        """Whether a person must answer now: the step has passed, and nobody has answered since."""
        rollout, answer = self.rollout, self.approval
        if rollout is None or rollout.phase is not Phase.AWAITING_APPROVAL:
            return False
        return answer is None or answer.step != rollout.step or answer.at < rollout.changed_at

    @property
    def may_be_asked(self) -> bool:
        """Whether a person is asked now, or may be at this step or a later one."""
        rollout = self.rollout
        if rollout is None or rollout.is_final or rollout.phase in (Phase.PROMOTING, Phase.ROLLING_BACK):
            return False
        return any(step.approval for step in rollout.plan.steps[rollout.step :])

    def may_be_asked_at(self, step: int) -> bool:
        """Whether a person is asked before that step is left, now or later."""
        rollout = self.rollout
        return rollout is not None and self.may_be_asked and step >= rollout.step and rollout.plan.steps[step].approval

    @property
    def is_over(self) -> bool:
        """Whether the revision does not come to serve any more."""
        return self.revision.phase in REVISION_FINAL or self.revision.phase is RevisionPhase.RETIRING

    @property
    def serves(self) -> bool:
        """Whether it serves, and is tried no more."""
        return self.service.stable == self.revision.number and self.service.candidate != self.revision.number

    @property
    def has_served(self) -> bool:
        """Whether it came to serve all requests, also where another one has taken its place since."""
        promoted = self.rollout is not None and self.rollout.phase is Phase.PROMOTED
        return self.serves or promoted or self.revision.phase is RevisionPhase.WARM

    @property
    def failure(self) -> str:
        """Why it does not serve."""
        return f"revision {self.revision.id} is {self.revision.phase}: {self.revision.explanation.message}"


def deployment_of_run(ctx: Context, dag_id: str, run_id: str) -> Deployment:
    """The deployment that a run carries.

    Raises:
        NotFound: the run carries none (its request was refused).
    """
    with ctx.store.read() as tx:
        revision = tx.services.revision_of_run(dag_id, run_id)
    if revision is None:
        raise NotFound(f"run {run_id!r} of {dag_id} carries no deployment: its request was refused.", what="revision")
    return deployment(ctx, revision.service_id, revision.number)


def deployment(ctx: Context, service_id: str, number: int) -> Deployment:
    """One deployment as it is now.

    Raises:
        NotFound: there is no such revision.
    """
    with ctx.store.read() as tx:
        service, revision = tx.services.get(service_id), tx.services.revision(service_id, number)
        if service is None or revision is None:
            raise NotFound(f"service {service_id} has no revision {number}.", what="revision")
        rows = [row for row in tx.replicas.find(service_id=service_id) if row.revision == revision.id]
        rollout = tx.rollouts.get(rollout_id(revision.id))
        approval = tx.rollouts.approval(rollout.id) if rollout is not None else None
        old = None
        if rollout is not None:
            old = next((each for each in tx.services.revisions(service_id) if each.id == rollout.stable), None)
    return Deployment(
        service=service,
        revision=revision,
        rollout=rollout,
        holding=sum(row.phase in HOLDING for row in rows),
        old=old,
        approval=approval,
    )


STAGES = ("granted", "ready", "judged", "asked", "answered", "promoted", "retired")
"""What a task of a deployment may wait for, in order."""


def has_reached(found: Deployment, stage: str, *, step: int | None = None) -> bool:
    """Whether nothing is left to be waited for in that stage; one that is over, or was replaced since, has reached all.

    ``granted``: a replica holds GPUs. ``ready``: requests are sent to it. ``judged``: its canary has ended, or a person must
    approve what comes next. ``asked``: a person must answer now, or ``answered``: nobody will be asked any more.
    ``promoted``: it serves all. ``retired``: the revision before it gets no requests. With ``step`` only what is asked before
    that one is left counts.
    """
    rollout = found.rollout
    if found.is_over or found.revision.phase is RevisionPhase.WARM:
        return True
    if stage == "granted":
        return found.holding > 0
    if stage == "ready":
        return found.serves or (rollout is not None and rollout.has_had_traffic)
    if found.serves:
        return stage != "retired" or found.old is None or found.old.phase is not RevisionPhase.SERVING
    if rollout is None:
        return False
    if stage == "judged":
        return rollout.is_final or rollout.phase in (Phase.PROMOTING, Phase.AWAITING_APPROVAL)
    if stage == "asked" and step is not None:
        return not found.may_be_asked_at(step) or (found.is_asked and rollout.step == step)
    if stage in ("asked", "answered"):
        return not found.may_be_asked or (stage == "asked" and found.is_asked)
    return False


# --- services for people ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceState:
    """A service with what is true of it now. ``lately`` and ``day`` are its traffic of two minutes and 24 hours.

    Both are of all its revisions; None where nothing was measured, ``trouble`` then says why. ``source`` is who counted.
    ``spread`` is how the router says that it spreads its requests; None where it does not answer.
    """

    service: Service
    revisions: Sequence[Revision]
    rollout: Rollout | None
    replicas: Sequence[tuple[Replica, ReplicaSeen | None]]
    spread: Spread | None
    endpoint: str | None
    lately: Window | None = None
    day: Window | None = None
    source: str = "router"
    trouble: str = ""

    @property
    def weights(self) -> dict[str, int] | None:
        """Backend to percent, by the router's own word."""
        return None if self.spread is None else dict(self.spread.weights)

    @property
    def ready(self) -> int:
        """Ready replicas, of all revisions."""
        return sum(seen is not None and seen.state is ReplicaState.READY for _, seen in self.replicas)

    @property
    def current(self) -> int:
        """Replicas that hold a lease."""
        return sum(row.phase in HOLDING for row, _ in self.replicas)

    @property
    def status(self) -> str:
        """One word, by what is true: ``closed``, ``pending``, ``down``, ``degraded`` or ``ready``."""
        if not self.service.is_open:
            return "closed"
        if self.service.stable is None:
            return "pending"
        stable = next((each.id for each in self.revisions if each.number == self.service.stable), None)
        ready = sum(
            row.revision == stable and seen is not None and seen.state is ReplicaState.READY
            for row, seen in self.replicas
        )
        if not ready:
            return "down"
        return "ready" if ready >= self.service.replicas else "degraded"

    @property
    def p95_ms(self) -> float | None:
        """95 of 100 requests of the last two minutes were answered within that; None without requests."""
        return None if self.lately is None else quantile_ms(self.lately, 0.95)


def service_states(ctx: Context, *, is_open: bool | None = True) -> Sequence[ServiceState]:
    """Every service, newest first."""
    with ctx.store.read() as tx:
        services = tx.services.find(is_open=is_open)
    return [service_state(ctx, service.id) for service in services]


def service_state(ctx: Context, name_or_id: str, *, traffic_of: Collection[timedelta] = (LATELY, DAY)) -> ServiceState:
    """One service as it is now; what cannot be asked now is None.

    ``traffic_of`` says of which of the two spans its traffic is wanted: counting a day's costs a large read.

    Raises:
        NotFound: there is none.
    """
    now = ctx.clock.now()
    with ctx.store.read() as tx:
        service = load_service(tx, name_or_id)
        revisions = tx.services.revisions(service.id)
        rows = [row for row in tx.replicas.find(service_id=service.id) if row.phase is not ReplicaPhase.ENDED]
        rollouts = tx.rollouts.of_service(service.id, 1)
    driver = ctx.driver_of(service.pool)
    route = route_of(service, revisions)
    try:
        seen = {row.name: driver.replicas.look(row.name) for row in rows}
        spread = driver.router.applied().get(service.name, Spread())
        endpoint = driver.router.address(route)
    except FermionError:
        seen, spread, endpoint = {}, None, None
    traffic = _traffic(ctx, driver, [each.id for each in revisions], now, traffic_of)
    return ServiceState(
        service=service,
        revisions=revisions,
        rollout=rollouts[0] if rollouts else None,
        replicas=[(row, seen.get(row.name)) for row in rows],
        spread=spread,
        endpoint=endpoint,
        lately=traffic.lately,
        day=traffic.day,
        source=traffic.source,
        trouble=traffic.trouble,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Traffic:
    source: str = "router"
    lately: Window | None = None
    day: Window | None = None
    trouble: str = ""


def _traffic(
    ctx: Context, driver: Driver, revisions: Sequence[str], now: datetime, spans: Collection[timedelta]
) -> _Traffic:
    """Of all the revisions together, from the metrics system where there is one, else from the router's own counters."""
    if not spans:
        return _Traffic()
    if ctx.measurements is None:
        return _counted(ctx, driver, revisions, now, spans)
    source = ctx.measurements.source
    found: dict[timedelta, Window | None] = {}
    try:
        for span in spans:
            windows = ctx.measurements.windows(revisions, now - span, now, latencies=span == LATELY)
            found[span] = _sum(windows.values())
    except FermionError as error:
        return _Traffic(source=source, trouble=error.message)
    silent = LATELY in spans and found[LATELY] is None
    return _Traffic(
        source=source,
        lately=found.get(LATELY),
        day=found.get(DAY),
        trouble=f"{source} has recorded nothing of it in the last two minutes." if silent else "",
    )


def _counted(
    ctx: Context, driver: Driver, revisions: Sequence[str], now: datetime, spans: Collection[timedelta]
) -> _Traffic:
    """What was written down at every sync, and what the router says now."""
    with ctx.store.read() as tx:
        readings = tx.traffic.since(revisions, now - max(spans))
    trouble = ""
    try:
        fresh = driver.router.counters(revisions)
    except FermionError as error:
        fresh, trouble = {}, error.message
    known = {name: [*readings.get(name, ()), *([fresh[name]] if name in fresh else [])] for name in revisions}

    def within(span: timedelta) -> Window | None:
        recent = ([each for each in readings if each.observed_at >= now - span] for readings in known.values())
        return _sum([window(each) for each in recent if len(each) > 1]) if span in spans else None

    return _Traffic(lately=within(LATELY), day=within(DAY), trouble=trouble)


def _sum(found: Collection[Window]) -> Window | None:
    return merged(list(found)) if found else None


__all__ = [
    "SERVICE_DAG",
    "STAGES",
    "Deployment",
    "ServiceState",
    "deployment",
    "deployment_of_run",
    "has_reached",
    "service_state",
    "service_states",
]
