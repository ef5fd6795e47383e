"""Record a deployment: verify the whole request, pin what its names mean, and make the revision. All problems at once.

A request that has problems leaves nothing behind. A run carries one revision: submitted again it is found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from fermion.domain.artifacts import ModelVersion
from fermion.domain.problems import Problem
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.records import Decision, Event
from fermion.domain.request import Reading
from fermion.domain.serving import engines, verdicts
from fermion.domain.serving.engine_presets import ENGINES
from fermion.domain.serving.limits import over_quota
from fermion.domain.serving.replicas import revision_id
from fermion.domain.serving.request import ServiceReading, read_service
from fermion.domain.serving.routing import Protocol, Route
from fermion.domain.serving.services import (
    SERVICE_DAG,
    ApiType,
    Capacity,
    Revision,
    RevisionPhase,
    Service,
    ServicePins,
    ServiceSpec,
)
from fermion.errors import Conflict, FermionError, RequestRefused
from fermion.ports import Router, Runs, Transaction
from fermion.usecases.context import Context
from fermion.usecases.examine import examine
from fermion.usecases.serving.giving_up import let_go
from fermion.usecases.serving.routes import with_share

RETRIED = "retry_failed"
"""The kind of the decisions that keep who had something tried again."""

RULE_VERSION = "failed_before/1"


@dataclass(slots=True)
class Examined:
    """What a request means, with all that is wrong with it. ``failed``: the revision that failed with the same thing."""

    problems: list[Problem]
    pins: ServicePins | None = None
    failed: Revision | None = None


def submit(
    ctx: Context,
    raw: Mapping[str, object],
    *,
    run_id: str | None,
    actor: str,
    dag_id: str = SERVICE_DAG,
    examined: Examined | None = None,
) -> Revision:
    """The revision that this run carries: made now, or found when it was made before. Without a run id its own id is the run's.

    Raises:
        RequestRefused: it can never be deployed as asked; all problems are listed and nothing was stored.
        OutsideUnavailable: something that must be asked does not answer; the same call may succeed later.
    """
    asked = read_service(raw).owned_by(actor)
    if run_id is not None and (found := _carried(ctx, dag_id, run_id)) is not None:
        return _same(found, asked, run_id)
    examined = examined or examine_service(ctx, asked)
    if examined.problems or examined.pins is None:
        raise RequestRefused(examined.problems, what="deployment request")
    spec = asked.spec()
    with ctx.store.begin(exclusive=f"service:{spec.name}") as tx:
        service = tx.services.by_name(spec.name) or _new_service(ctx, tx, spec)
        revision = _new_revision(ctx, service, spec, examined.pins, dag_id, run_id)
        if not tx.services.add_revision(revision):
            raise Conflict(f"run {run_id!r} carries another deployment already.", what="run")
        tx.services.save(
            replace(service, newest=revision.number, follow=spec.follow, changed_at=ctx.clock.now())
        )  # what the newest request says of following counts
        tx.records.add_event(
            Event(
                actor=actor,
                verb="revision.submitted",
                target=revision.id,
                at=revision.created_at,
                message=f"{revision.model_path} as {spec.name} on {spec.pool}",
            )
        )
        if examined.failed is not None:
            tx.records.add_decision(_tried_again(revision, examined.failed, actor))
    return revision


def launch(ctx: Context, runs: Runs, raw: Mapping[str, object], *, actor: str) -> Revision:
    """The revision, with its run started under the revision's id. The door of the command line and of the API.

    Raises:
        RequestRefused: the request can never be deployed as asked.
        OutsideUnavailable: the engine does not answer; then nothing was stored.
    """
    examined = examine_service(ctx, read_service(raw).owned_by(actor))
    if not examined.problems:  # else it is refused anyway
        runs.state(SERVICE_DAG, "-")
    revision = submit(ctx, raw, run_id=None, actor=actor, examined=examined)
    try:
        runs.trigger(SERVICE_DAG, revision.id, dict(raw))
    except FermionError as error:
        let_go(ctx, revision.service_id, revision.number, f"Its run could not be started: {error.message}")
        raise
    return revision


def examine_service(ctx: Context, asked: ServiceReading) -> Examined:
    """All problems of a request: those of its reading, and those of every look-up that what was read allows."""
    values = asked.values
    known = list(asked.problems)
    renamed = {"gpus_per_replica": "gpus_per_node"}
    shared = {
        renamed.get(name, name): values[name]
        for name in ("pool", "image", "repository", "ref", "memory_mib", "owner", "team", "gpus_per_replica")
        if values.get(name) is not None
    }
    found = examine(ctx, Reading(values={"nodes": 1, "max_runtime": None, **shared}), known=known)
    problems = [
        replace(each, field="gpus_per_replica") if each.field in ("gpus_per_node", "gpus") else each
        for each in found.problems
    ]
    examined = Examined(problems)
    version = _check_model(ctx, values, problems)
    spec = asked.spec() if not asked.problems else None
    if spec is not None:
        problems.extend(_check_engine(ctx, spec))
        problems.extend(engines.check_problems(spec))
        if version is not None and spec.engine in ENGINES:
            problems.extend(engines.layout_problems(spec, [entry.path for entry in version.files]))
        problems.extend(_check_place(ctx, spec))
    if spec is not None and version is not None and found.image_digest:
        pins = ServicePins(
            model_version=version.number,
            model_checksum=version.checksum,
            image_digest=found.image_digest,
            commit=found.commit or None,
        )
        examined.failed = _failed_before(ctx, spec, pins)
        if examined.failed is not None and not spec.retry_failed:
            problems.append(verdicts.refusal(examined.failed))
        examined.pins = None if problems else pins
    return examined


def _failed_before(ctx: Context, spec: ServiceSpec, pins: ServicePins) -> Revision | None:
    with ctx.store.read() as tx:
        service = tx.services.by_name(spec.name)
        if service is None:
            return None
        return verdicts.failed_before(spec, pins, tx.services.revisions(service.id), stable=service.stable)


def _check_model(ctx: Context, values: Mapping[str, object], problems: list[Problem]) -> ModelVersion | None:
    """The version that is meant; its files must be those that were published."""
    model = values.get("model")
    if not isinstance(model, str):
        return None
    wanted = values.get("version")
    versions = ctx.models.versions(model)
    if not versions:
        known = ", ".join(sorted(ctx.models.models())[:10]) or "none yet"
        problems.append(
            _problem("model", "unknown_model", f"no version of {model!r} is published.", f"There are: {known}.")
        )
        return None
    chosen = versions[0] if wanted is None else next((each for each in versions if each.number == wanted), None)
    if chosen is None:
        newest = versions[0].number
        message = f"{model} has no version {wanted}; its newest is {newest}."
        problems.append(_problem("version", "unknown_version", message, f"Name one of 1 to {newest}."))
        return None
    damaged = ctx.models.verify(chosen)
    if damaged:
        message = f"{chosen.path} is damaged: {'; '.join(damaged[:3])}"
        problems.append(_problem("model", "damaged_model", message, "Restore its files from a backup."))
        return None
    return chosen


def _check_engine(ctx: Context, spec: ServiceSpec) -> list[Problem]:
    driver = ctx.drivers.get(spec.pool.split("/", 1)[0])
    # What is in memory stands for a machine's own processes.
    kind = None if driver is None else "process" if driver.kind == "memory" else driver.kind
    return [] if kind is None else list(engines.problems_of(spec, kind))


def _check_place(ctx: Context, spec: ServiceSpec) -> list[Problem]:
    """The service that has the name, the route, and whether there are GPUs for all of it."""
    driver = ctx.drivers.get(spec.pool.split("/", 1)[0])
    if driver is None:
        return []
    problems: list[Problem] = []
    with ctx.store.begin() as tx:
        service = tx.services.by_name(spec.name)
        others = [each for each in tx.services.find(is_open=True) if service is None or each.id != service.id]
        pool = ctx.pools(tx).get(spec.pool)
    problems += _route_problems(spec, service, others)
    # A port that this very service listens on already is no problem of it.
    asks = partial(driver.router.problems_of, _route(spec, service))
    problems += _unless_same(asks, service, spec)
    problems += _split_problems(spec, service, driver.router)
    if pool is not None:
        beside = 1 if service is not None and service.stable is not None and spec.capacity is not Capacity.SWAP else 0
        size = max(spec.replicas, spec.autoscaling.max_replicas if spec.autoscaling else 0)
        problems += over_quota(pool, replicas=size, gpus_per_replica=spec.gpus_per_replica, team=spec.team, more=beside)
    if service is not None and service.owner != spec.owner:
        message = f"service {spec.name!r} is {service.owner}'s."
        problems.append(_problem("name", "not_yours", message, "Take another name, or ask its owner."))
    if service is not None and (service.pool, service.api_type) != (spec.pool, spec.api_type):
        message = f"{spec.name!r} runs on {service.pool} as {service.api_type}; a revision cannot change that."
        problems.append(
            _problem("pool", "other_place", message, "Deploy it under another name, then move your clients.")
        )
    return problems


def _unless_same(asks: Callable[[], object], service: Service | None, spec: ServiceSpec) -> list[Problem]:
    found = asks()
    problems = list(found) if isinstance(found, list | tuple) else []
    if service is not None and service.port == spec.port:
        problems = [each for each in problems if each.code != "port_taken"]
    return problems


def _route_problems(spec: ServiceSpec, service: Service | None, others: list[Service]) -> list[Problem]:
    problems = []
    prefix = spec.prefix or f"/{spec.name}"
    for other in others:
        if other.pool.split("/", 1)[0] != spec.pool.split("/", 1)[0]:
            continue
        if (
            other.prefix == prefix
            or f"{other.prefix}/".startswith(f"{prefix}/")
            or f"{prefix}/".startswith(f"{other.prefix}/")
        ):
            message = f"requests to {prefix} would also be service {other.name!r}'s, which has {other.prefix}."
            problems.append(_problem("prefix", "route_taken", message, "Choose a path of its own."))
        if spec.port is not None and other.port == spec.port:
            message = f"port {spec.port} is service {other.name!r}'s."
            problems.append(_problem("port", "port_taken", message, "Choose another port, or none."))
    if service is not None and spec.prefix is not None and spec.prefix != service.prefix:
        message = f"service {spec.name!r} is at {service.prefix}; a revision cannot move it."
        problems.append(_problem("prefix", "other_route", message, "Leave it out."))
    return problems


def _split_problems(spec: ServiceSpec, service: Service | None, router: Router) -> list[Problem]:
    """What the router says of each step's split and copies, as the fields that they were written in."""
    plain = _route(spec, service)
    problems = []
    for number, step in enumerate(spec.plan.steps):
        asked = plain.spreading(with_share(plain.spread, step.share, "candidate"))
        way = step.split and ("header" if step.split.header is not None else "cookie")
        fields = {"matches.0.name": f"split.{way}", "matches.0.value": "split.value", "sticky_cookie": f"split.{way}"}
        fields |= {"mirror.percent": "mirror_percent"}
        problems += [
            replace(each, field=f"plan.steps.{number}.{fields[each.field]}")
            for each in router.problems_of(asked)
            if each.field in fields
        ]
    return problems


def _route(spec: ServiceSpec, service: Service | None) -> Route:
    return Route(
        service=service.id if service else spec.name,
        name=spec.name,
        prefix=service.prefix if service else spec.prefix or f"/{spec.name}",
        port=spec.port,
        protocol=Protocol.GRPC if spec.api_type is ApiType.GRPC else Protocol.HTTP,
    )


# --- rows -----------------------------------------------------------------------------------------------------------


def _carried(ctx: Context, dag_id: str, run_id: str) -> Revision | None:
    with ctx.store.read() as tx:
        return tx.services.revision_of_run(dag_id, run_id)


def _same(found: Revision, asked: ServiceReading, run_id: str) -> Revision:
    if asked.problems or replace(asked.spec(), owner=found.spec.owner) != found.spec:
        problem = _problem(
            "run_id",
            "run_id_taken",
            f"run {run_id!r} already carries {found.id} with another request.",
            "Use a new run id for a new request.",
        )
        raise RequestRefused([*asked.problems, problem], what="deployment request")
    return found


def _new_service(ctx: Context, tx: Transaction, spec: ServiceSpec) -> Service:
    now = ctx.clock.now()
    service = Service(
        id=tx.services.new_id(spec.name),
        name=spec.name,
        owner=spec.owner,
        team=spec.team,
        pool=spec.pool,
        created_at=now,
        changed_at=now,
        prefix=spec.prefix or f"/{spec.name}",
        port=spec.port,
        api_type=spec.api_type,
        replicas=spec.replicas,
        autoscaling=spec.autoscaling,
        follow=spec.follow,
    )
    if not tx.services.add(service):
        problem = _problem("prefix", "route_taken", "another service took that route just now.", "Choose another.")
        raise RequestRefused([problem], what="deployment request")
    return service


def _new_revision(
    ctx: Context, service: Service, spec: ServiceSpec, pins: ServicePins, dag_id: str, run_id: str | None
) -> Revision:
    now, number = ctx.clock.now(), service.newest + 1
    name = revision_id(service.id, number)
    return Revision(
        service_id=service.id,
        number=number,
        spec=spec,
        pins=pins,
        phase=RevisionPhase.STAGING,
        explanation=Explanation(Reason.STAGING, "Image, model and code are being fetched."),
        created_at=now,
        changed_at=now,
        run=(dag_id, run_id or name),
    )


def _tried_again(revision: Revision, failed: Revision, actor: str) -> Decision:
    """Who had something tried again that failed before."""
    return Decision(
        id=f"{RETRIED}-{revision.id}",
        kind=RETRIED,
        subject=revision.id,
        verdict="allowed",
        reason=verdicts.FAILED_BEFORE,
        message=f"{actor} asked to try it again, although {verdicts.told(failed)}",
        rule_version=RULE_VERSION,
        decided_at=revision.created_at,
        inputs={"by": actor, "failed": failed.id, "checksum": revision.pins.model_checksum},
    )


def _problem(field: str, code: str, message: str, fix: str) -> Problem:
    return Problem(field=field, code=code, message=message, fix=fix)
