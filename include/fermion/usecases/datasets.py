"""See which datasets have a new version, so that each version is announced.

An announcement is sure once the task that made it has ended well; before that it is made again. So a crash in the middle
repeats one rather than losing it, and whoever acts on it does so once per version (its partition names the version).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta

from fermion.domain.artifacts import DatasetVersion
from fermion.errors import FermionError
from fermion.usecases.context import Context

log = logging.getLogger(__name__)

MEMORY = "datasets:announced"
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


def announce_datasets(ctx: Context, by: Announcer) -> Sequence[DatasetVersion]:
    """The versions that ``by`` has to announce now. A source that does not answer is looked at next time."""
    with ctx.store.read() as tx:
        remembered = tx.records.memory(MEMORY) or {}
    known = {name: _Known(**entry) for name, entry in remembered.items() if isinstance(entry, Mapping)}
    announced: list[DatasetVersion] = []
    after: dict[str, object] = {}
    for name, uri in sorted(ctx.rules.datasets.items()):
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
