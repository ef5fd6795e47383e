"""Which datasets there are, and which of them have a new version, so that each version is announced.

There are those of the configuration and those that people have registered.

An announcement is sure once the task that made it has ended well; before that it is made again. So a crash in the middle
repeats one rather than losing it, and whoever acts on it does so once per version (its partition names the version).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta

from fermion.domain.artifacts import DatasetVersion
from fermion.domain.problems import Problem
from fermion.domain.records import Event
from fermion.domain.request import bad_dataset_name, is_dataset_name
from fermion.errors import FermionError, NotFound, RequestRefused
from fermion.ports import Transaction
from fermion.usecases.context import Context

log = logging.getLogger(__name__)

MEMORY = "datasets:announced"
REGISTERED = "datasets:registered"
SHARE = 20
"""Looking through a dataset takes at most one part in this many of the time; what takes long is looked at less often."""
QUICK = timedelta(seconds=1)
"""A dataset seen within this is looked at in every round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcer:
    """The task that announces what it is given."""

    dag_id: str
    run_id: str
    task_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What was last announced of one dataset, by whom, whether that is sure, and when to look again (ISO, or always)."""

    checksum: str
    dag_id: str
    run_id: str
    task_id: str
    sure: bool = False
    next_look: str | None = None


def known_datasets(ctx: Context) -> Mapping[str, str]:
    """Name to URI of every dataset. The configuration's word counts before what was registered."""
    with ctx.store.read() as tx:
        return {**_registered(tx), **ctx.rules.datasets}


@dataclass(frozen=True, slots=True)
class Registration:
    """What was registered. ``is_new``: the dataset never had this content before."""

    version: DatasetVersion
    is_new: bool


def register_dataset(ctx: Context, name: str, uri: str, *, actor: str) -> Registration:
    """The version that lies there now; jobs may ask for the dataset from now on, and the next sync announces the version.

    Registered again it gets its next version, or moves to the other place.

    Raises:
        RequestRefused: the name, the place or what lies there has problems; all are listed.
        OutsideUnavailable: the place does not answer.
    """
    problems = [] if is_dataset_name(name) else [bad_dataset_name(name, field="name")]
    if ctx.rules.datasets.get(name, uri) != uri:
        message = f"the configuration says that dataset {name!r} is at {ctx.rules.datasets[name]}."
        problems.append(Problem(field="name", code="configured", message=message, fix="Take another name, or edit it."))
    try:
        version = ctx.dataset_source.scan(name, uri, now=ctx.clock.now())
    except RequestRefused as refused:
        raise RequestRefused([*problems, *refused.problems], what="dataset") from refused
    if problems:
        raise RequestRefused(problems, what="dataset")
    with ctx.store.begin(exclusive=REGISTERED) as tx:
        tx.records.put_memory(REGISTERED, {**_registered(tx), name: uri}, now=ctx.clock.now())
        is_new = tx.catalog.put_dataset_version(version)
        _tell(ctx, tx, actor, "dataset.registered", name, f"{name} at {uri}, {version.checksum}")
    return Registration(version, is_new)


def forget_dataset(ctx: Context, name: str, *, actor: str) -> None:
    """No further job can ask for the dataset; its files and its versions, which jobs have pinned, stay.

    Raises:
        NotFound: nobody registered it; those of the configuration are taken out there, and the message says where.
    """
    with ctx.store.begin(exclusive=REGISTERED) as tx:
        registered = _registered(tx)
        if name not in registered:
            how = "`fermion datasets` lists what is"
            if name in ctx.rules.datasets:
                how = "it is configured; take it out of datasets in config/fermion.yaml"
            raise NotFound(f"dataset {name!r} is not registered: {how}.", what="dataset")
        tx.records.put_memory(
            REGISTERED, {other: uri for other, uri in registered.items() if other != name}, now=ctx.clock.now()
        )
        _tell(ctx, tx, actor, "dataset.forgotten", name, f"{name}, which was at {registered[name]}")


def _registered(tx: Transaction) -> Mapping[str, str]:
    return {name: str(uri) for name, uri in (tx.records.memory(REGISTERED) or {}).items()}


def _tell(ctx: Context, tx: Transaction, actor: str, verb: str, name: str, message: str) -> None:
    tx.records.add_event(Event(actor=actor, verb=verb, target=name, at=ctx.clock.now(), message=message))


def announce_datasets(ctx: Context, by: Announcer) -> Sequence[DatasetVersion]:
    """The versions that ``by`` has to announce now. A source that does not answer is looked at next time."""
    with ctx.store.read() as tx:
        remembered = tx.records.memory(MEMORY) or {}
    known = {name: _Known(**entry) for name, entry in remembered.items() if isinstance(entry, Mapping)}
    announced: list[DatasetVersion] = []
    after: dict[str, object] = {}
    for name, uri in sorted(known_datasets(ctx).items()):
        before = known.get(name)
        now_known, version = _look(ctx, name, uri, before, by)
        if now_known is not None:
            after[name] = asdict(now_known)
        if version is not None:
            announced.append(version)
    if announced or after != remembered:
        with ctx.store.begin() as tx:
            for version in announced:
                tx.catalog.put_dataset_version(version)
            tx.records.put_memory(MEMORY, after, now=ctx.clock.now())
    return announced


def _look(
    ctx: Context, name: str, uri: str, before: _Known | None, by: Announcer
) -> tuple[_Known | None, DatasetVersion | None]:
    """What is known of one dataset after this look, and its version where that has to be announced."""
    began = ctx.clock.now()
    if before is not None and before.sure and began < _from_iso(before.next_look):
        return before, None
    try:
        version = ctx.dataset_source.scan(name, uri, now=began)
    except FermionError as error:
        log.warning("dataset %s could not be looked at this time: %s", name, error)
        return before, None
    took = ctx.clock.now() - began
    next_look = None if took < QUICK else (began + took * SHARE).isoformat()
    if before is not None and before.checksum == version.checksum and _is_sure(ctx, before, by):
        return replace(before, sure=True, next_look=next_look), None
    made = _Known(
        checksum=version.checksum, dag_id=by.dag_id, run_id=by.run_id, task_id=by.task_id, next_look=next_look
    )
    return made, version


def _from_iso(text: str | None) -> datetime:
    return datetime.min.replace(tzinfo=UTC) if text is None else datetime.fromisoformat(text)


def _is_sure(ctx: Context, known: _Known, by: Announcer) -> bool:
    """Whether it was announced: its task has ended well. A further try of the same task announces again."""
    if known.sure or ctx.runs is None:
        return True
    if (known.dag_id, known.run_id) == (by.dag_id, by.run_id):
        return False
    try:
        return ctx.runs.state(known.dag_id, known.run_id).tasks.get(known.task_id) == "success"
    except FermionError as error:
        log.warning("the engine did not tell whether a dataset version was announced: %s", error)
        return False
