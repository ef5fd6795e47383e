"""Look up what a request names, as far as it could be read: all of its problems at once, and what its names mean.

Also a request that is wrong in some fields is looked up in the others, so that nobody mends one thing only to be told of
the next. It changes nothing but what is known of the cluster's nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import TypeVar

from fermion.domain.artifacts import DatasetVersion
from fermion.domain.entrypoints import script_of
from fermion.domain.limits import never_fits, over_memory
from fermion.domain.pools import Pool
from fermion.domain.problems import Problem
from fermion.domain.request import Reading
from fermion.errors import OutsideUnavailable, RequestRefused
from fermion.ports import Driver
from fermion.usecases.context import Context
from fermion.usecases.datasets import known_datasets

T = TypeVar("T")


@dataclass(slots=True)
class Findings:
    """Everything wrong with a request, and what its names mean now."""

    problems: list[Problem]
    image_digest: str = ""
    commit: str = ""
    datasets: dict[str, DatasetVersion] = field(default_factory=dict)
    unanswered: list[tuple[str, OutsideUnavailable]] = field(default_factory=list)


def examine(ctx: Context, asked: Reading, *, known: Sequence[Problem] = ()) -> Findings:
    """All problems of a request: those ``known`` already, those of its reading, and those of the look-ups.

    A request that is refused anyway is not kept waiting for something that does not answer: what could not be looked up is
    among its problems then.

    Raises:
        OutsideUnavailable: no problem was found, and something did not answer; the same call may succeed later.
    """
    found = Findings(problems=[*known, *asked.problems])
    drivers = _drivers(ctx, asked)
    _gather(found, "pool", partial(_check_pool, ctx, asked, found))
    if drivers:
        _gather(found, "image", partial(_check_image, drivers, asked, found))
        _gather(found, "repository", partial(_check_code, drivers[0], asked, found))
        _gather(found, "checkpoint", partial(_check_checkpoint, ctx, drivers, asked, found))
    _check_datasets(ctx, asked, found)
    if found.unanswered and not found.problems:
        raise found.unanswered[0][1]
    found.problems += [_not_looked_up(name, silent) for name, silent in found.unanswered]
    return found


def _drivers(ctx: Context, asked: Reading) -> Sequence[Driver]:
    """Where the names are looked up: on the pool's cluster; while that is not known, on any."""
    named = _named(ctx, asked)
    return [named] if named is not None else [driver for _, driver in sorted(ctx.drivers.items())]


def _named(ctx: Context, asked: Reading) -> Driver | None:
    return ctx.drivers.get(asked.values.get("pool", "").split("/", 1)[0])


def _check_pool(ctx: Context, asked: Reading, found: Findings) -> None:
    wanted = asked.values.get("pool")
    if wanted is None:
        return
    driver = _named(ctx, asked)
    fresh = tuple(driver.nodes.list_nodes()) if driver is not None else ()
    with ctx.store.begin() as tx:
        if fresh:
            tx.catalog.put_nodes(fresh[0].cluster, fresh)
        pools = ctx.pools(tx)
    if wanted not in pools:
        message = f"there is no pool {wanted!r}."
        found.problems.append(_problem("pool", "unknown_pool", message, f"Choose one of: {_listed(pools)}."))
        return
    found.problems.extend(_over_limits(asked, pools[wanted], pools.values()))
    found.problems.extend(_over_memory(asked, pools[wanted]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size:
    """What of a request a limit is checked against."""

    nodes: int
    gpus_per_node: int
    owner: str
    team: str
    max_runtime: timedelta | None

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


def _over_limits(asked: Reading, pool: Pool, cohort: Iterable[Pool]) -> Sequence[Problem]:
    values = asked.values
    if "gpus_per_node" not in values:
        return ()
    if "team" not in values:  # then no team's quota is judged
        pool = replace(pool, policy=replace(pool.policy, teams={}, team_budgets={}))
    size = _Size(
        nodes=values["nodes"],
        gpus_per_node=values["gpus_per_node"],
        owner=values.get("owner", ""),
        team=values.get("team", ""),
        max_runtime=values.get("max_runtime"),
    )
    return never_fits(size, pool, cohort=list(cohort))


def _over_memory(asked: Reading, pool: Pool) -> Sequence[Problem]:
    wanted = asked.values.get("memory_mib")
    return () if wanted is None else over_memory(wanted, pool, gpus_per_node=asked.values.get("gpus_per_node", 1))


def _check_image(drivers: Sequence[Driver], asked: Reading, found: Findings) -> None:
    wanted = asked.values.get("image")
    if wanted is None:
        return
    images = {image.id: image for driver in drivers for image in driver.images.known()}
    if wanted in images:
        found.image_digest = images[wanted].digest
        return
    message = f"there is no image {wanted!r} on {'this' if len(drivers) == 1 else 'any'} cluster."
    found.problems.append(_problem("image", "unknown_image", message, f"Choose one of: {_listed(images)}."))


def _check_code(driver: Driver, asked: Reading, found: Findings) -> None:
    repository, ref = asked.values.get("repository"), asked.values.get("ref")
    if repository is None:
        return
    try:
        commit = driver.code.resolve(repository, ref or "HEAD")
    except RequestRefused as refused:
        # Without a ref of its own only what is wrong with the repository is the request's fault.
        found.problems.extend(each for each in refused.problems if ref or each.field != "ref")
        return
    found.commit = commit
    script = script_of(asked.values["entrypoint"]) if "entrypoint" in asked.values else None
    if ref and script is not None and not driver.code.has_file(repository, commit, script):
        message = f"commit {commit[:12]} of {repository} has no file {script!r}."
        fix = "Name a file of the repository, relative to its root."
        found.problems.append(_problem("entrypoint", "entrypoint_missing", message, fix))


def _check_checkpoint(ctx: Context, drivers: Sequence[Driver], asked: Reading, found: Findings) -> None:
    wanted = asked.values.get("checkpoint")
    if wanted is None:
        return
    with ctx.store.read() as tx:
        other = tx.jobs.get(wanted)
    if other is None or not any(driver.space.has_checkpoint(wanted) for driver in drivers):
        message = f"job {wanted!r} left no checkpoint on this cluster."
        fix = "Name a job that wrote one, or leave the field empty to start from scratch."
        found.problems.append(_problem("checkpoint", "no_checkpoint", message, fix))


def _check_datasets(ctx: Context, asked: Reading, found: Findings) -> None:
    names = asked.values.get("datasets", ())
    known = _gather(found, "datasets", partial(known_datasets, ctx)) if names else None
    if known is None:
        return
    for name in names:
        uri = known.get(name)
        if uri is None:
            fix = f"Choose from: {_listed(known)}."
            found.problems.append(_problem("datasets", "unknown_dataset", f"there is no dataset {name!r}.", fix))
            continue
        scan = partial(ctx.dataset_source.scan, name, uri, now=ctx.clock.now())
        version = _gather(found, f"datasets.{name}", scan)
        if version is not None:
            found.datasets[name] = version
            if (driver := _named(ctx, asked)) is not None:
                found.problems.extend(driver.datasets.never_fits(version))


def _gather(found: Findings, name: str, look_up: Callable[[], T]) -> T | None:
    """The look-up's answer; what it refuses and what does not answer joins the findings, any other error passes through."""
    try:
        return look_up()
    except RequestRefused as refused:
        found.problems.extend(refused.problems)
    except OutsideUnavailable as silent:
        found.unanswered.append((name, silent))
    return None


def _not_looked_up(name: str, silent: OutsideUnavailable) -> Problem:
    message = f"it could not be looked up: {silent.message}"
    return _problem(name, "not_looked_up", message, "Whether it is right is not known yet.")


def _problem(name: str, code: str, message: str, fix: str) -> Problem:
    return Problem(field=name, code=code, message=message, fix=fix)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none is known yet"
