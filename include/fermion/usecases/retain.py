"""Forget what its retention has ended, and what was only kept to be quick. What is kept for ever, and why, is a table in
``docs/data.md``: published models, leases, the ledger and the jobs themselves are never touched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial

from fermion.domain.counting import counted
from fermion.domain.jobs import FINAL, Job, Pins
from fermion.domain.retention import Freed
from fermion.errors import FermionError
from fermion.ports import Driver, Transaction
from fermion.usecases.context import Context
from fermion.usecases.tend import OPEN

log = logging.getLogger(__name__)

FOLDERS = "folders"
RECORDS = ("events", "decisions", "points")
PAGE = 200
SLICE = timedelta(hours=1)
"""Records are deleted an hour of the past at a time, each in a transaction of its own: nobody waits long for its locks."""
LEFTOVERS = timedelta(days=1)
"""No publish takes this long: what is older belongs to one that died."""
UPKEEP_DAGS = ("sync_platform", "keep_house")
UPKEEP_RUNS = timedelta(days=1)
"""Runs of the platform's own upkeep (2,880 a day) tell nothing after this; what they found is among the events."""


def retain(ctx: Context, *, dry_run: bool = False) -> Sequence[str]:
    """One sentence for each kind of thing that was forgotten. One that cannot be reached is left for the next time.

    With ``dry_run`` nothing is deleted; it tells what the staged models would give up, the only ones that know beforehand.

    Raises:
        FermionError: the last of those that could not be reached, after everything else was done.
    """
    if dry_run:
        return _each(ctx, tuple(_models(ctx, dry_run=True)))
    steps = (
        _forget_records,
        _forget_folders,
        *_replicas(ctx),
        _forget_reports,
        *_caches(ctx),
        *_models(ctx),
        _clear_models,
        _forget_runs,
    )
    return _each(ctx, steps)


def forgotten_before(tx: Transaction, what: str) -> datetime | None:
    """What ended before then has been forgotten; None where nothing of the kind was yet."""
    remembered = (tx.records.memory(f"retain:{what}") or {}).get("before")
    return datetime.fromisoformat(str(remembered)) if remembered else None


def _each(ctx: Context, steps: Sequence[Callable[[Context], list[str]]]) -> list[str]:
    done: list[str] = []
    failed: FermionError | None = None
    for step in steps:
        try:
            done += step(ctx)
        except FermionError as error:
            log.warning("%s", error)
            failed = error
    if failed is not None:
        raise failed
    return done


def _forget_records(ctx: Context) -> list[str]:
    done = []
    for kind in RECORDS:
        age: timedelta | None = getattr(ctx.rules.retention, kind)
        if age is None:
            continue
        count = sum(_forget_slice(ctx, kind, before) for before in _slices(ctx, kind, ctx.clock.now() - age))
        if count:
            done.append(f"{count} {kind} older than {age.days} days")
    return done


def _slices(ctx: Context, kind: str, end: datetime) -> Iterator[datetime]:
    """Where each slice ends, from where the last time came to until ``end``."""
    with ctx.store.read() as tx:
        at = forgotten_before(tx, kind) or end
    while (at := at + SLICE) < end:
        yield at
    yield end


def _forget_slice(ctx: Context, kind: str, before: datetime) -> int:
    with ctx.store.begin() as tx:
        tx.records.put_memory(f"retain:{kind}", {"before": before.isoformat()}, now=ctx.clock.now())
        return tx.records.forget(before=before, kinds=[kind])


def _forget_folders(ctx: Context) -> list[str]:
    """Logs, outputs and checkpoints; those that an open job resumes from stay."""

    def forget(job: Job) -> None:
        if job.spec.pool.split("/", 1)[0] in ctx.drivers:
            ctx.driver_of(job.spec.pool).space.forget(job.id)

    return _forget_jobs(ctx, FOLDERS, ctx.rules.retention.workloads, forget)


def _forget_reports(ctx: Context) -> list[str]:
    return _forget_jobs(ctx, "reports", ctx.rules.retention.reports, lambda job: ctx.reports.forget(job.id))


def _forget_jobs(ctx: Context, what: str, age: timedelta | None, forget: Callable[[Job], None]) -> list[str]:
    """Apply ``forget`` to the jobs that came of that age since the last time."""
    if age is None:
        return []
    before, key = ctx.clock.now() - age, f"retain:{what}"
    with ctx.store.read() as tx:
        since = forgotten_before(tx, what)
        needed = {job.spec.checkpoint for job in tx.jobs.find(phases=OPEN)}
    count, kept = 0, []
    for job in _ended(ctx, since, before):
        if job.id in needed:
            kept.append(job.ended_at or before)
            continue
        forget(job)
        count += 1
    with ctx.store.begin() as tx:
        tx.records.put_memory(key, {"before": min([before, *kept]).isoformat()}, now=ctx.clock.now())
    return [f"{what} of {counted(count, 'job')} that ended more than {age.days} days ago"] if count else []


def _ended(ctx: Context, since: datetime | None, before: datetime) -> Iterator[Job]:
    """Jobs that ended from ``since`` on and before ``before``, page by page."""
    last = None
    while True:
        with ctx.store.read() as tx:
            page = tx.jobs.find(phases=FINAL, changed_since=since, before=last, limit=PAGE)
        if not page:
            return
        yield from (job for job in page if job.ended_at is not None and job.ended_at < before)
        last = page[-1].id


def _replicas(ctx: Context) -> Iterator[Callable[[Context], list[str]]]:
    """One step for each cluster; a replica that is there keeps its log, whatever its age."""
    age = ctx.rules.retention.workloads
    if age is None:
        return
    for name, driver in sorted(ctx.drivers.items()):
        yield partial(_forget_replicas, driver, age, f"logs of replicas of cluster {name}")


def _forget_replicas(driver: Driver, age: timedelta, what: str, ctx: Context) -> list[str]:
    return _told(driver.replicas.forget(ctx.clock.now() - age), f"{what} removed more than {age.days} days ago")


def _caches(ctx: Context) -> Iterator[Callable[[Context], list[str]]]:
    """One step for each cache of each cluster, so that one that cannot be reached keeps no other from being tidied."""
    for name, driver in sorted(ctx.drivers.items()):
        yield partial(_tidy, driver.images.tidy, f"images of cluster {name}")
        yield partial(_tidy, driver.datasets.tidy, f"staged datasets of cluster {name}")
        yield partial(_tidy, driver.code.tidy, f"checkouts and mirrors of cluster {name}")


def _tidy(tidy: Callable[[Collection[Pins]], Freed], what: str, ctx: Context) -> list[str]:
    """Bring a cache below its cap; nothing leaves that an open job or an open revision has pinned, whether it runs or waits."""
    with ctx.store.read() as tx:
        needed = [job.pins for job in tx.jobs.find(phases=OPEN) if job.pins is not None]
        served = [revision.pins for revision in tx.services.open_revisions()]
    needed += [Pins(image_digest=pins.image_digest, commit=pins.commit or "") for pins in served]
    return _told(tidy(needed), what)


def _models(ctx: Context, *, dry_run: bool = False) -> Iterator[Callable[[Context], list[str]]]:
    for name, driver in sorted(ctx.drivers.items()):
        yield partial(_tidy_models, driver, f"staged models of cluster {name}", dry_run)


def _tidy_models(driver: Driver, what: str, dry_run: bool, ctx: Context) -> list[str]:
    """As ``_tidy``; what an open revision has pinned stays, whether its replicas run, wait, or are kept warm. No job has any."""
    with ctx.store.read() as tx:
        needed = {revision.pins.model_checksum for revision in tx.services.open_revisions()}
    return _told(driver.models.tidy(needed, dry_run=dry_run), what)


def _clear_models(ctx: Context) -> list[str]:
    return _told(ctx.models.clear_leftovers(older_than=LEFTOVERS, now=ctx.clock.now()), "leftovers of dead publishers")


def _told(freed: Freed, what: str) -> list[str]:
    return [f"{freed.items} {what}, {freed.size_bytes:,} bytes"] if freed.items else []


def _forget_runs(ctx: Context) -> list[str]:
    """The engine's ended runs with their logs; nothing of a run that still carries an open job."""
    age = ctx.rules.retention.runs
    if ctx.upkeep is None:
        return []
    now = ctx.clock.now()
    done = ctx.upkeep.forget(now - UPKEEP_RUNS, dags=UPKEEP_DAGS)
    if age is None:
        return [done]
    with ctx.store.read() as tx:
        begun = [job.submitted_at for job in tx.jobs.find(phases=OPEN)]
    return [done, ctx.upkeep.forget(min([now - age, *begun]))]
