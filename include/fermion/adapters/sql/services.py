"""Services and their revisions in the database. Keeps ``ports.Services``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Select, bindparam, or_, select, tuple_

from fermion.adapters.sql.codec import Values
from fermion.adapters.sql.counters import next_value
from fermion.adapters.sql.link import Link
from fermion.adapters.sql.payload_rows import guarded, read_all, read_one, save
from fermion.adapters.sql.tables import OPEN_REVISION, revisions, services
from fermion.domain.payloads import to_payload
from fermion.domain.serving.services import Revision, Service, slug_of
from fermion.errors import Conflict, NotFound

_SERVICES = select(services.c.payload)
_SERVICE = _SERVICES.where(services.c.id == bindparam("service_id"))
_OPEN_SERVICE = _SERVICES.where(services.c.closed_at.is_(None), services.c.name == bindparam("open_name"))
_IN_THE_WAY = select(services.c.id).where(
    services.c.closed_at.is_(None),
    or_(*(services.c[name] == bindparam(f"wanted_{name}") for name in ("name", "prefix", "port"))),
)
_SAVE_SERVICE = guarded(services.c.id)

_REVISIONS = select(revisions.c.payload)
_OF_SERVICE = _REVISIONS.where(revisions.c.service_id == bindparam("service")).order_by(revisions.c.number)
_REVISION = _REVISIONS.where(
    revisions.c.service_id == bindparam("service"), revisions.c.number == bindparam("revision_number")
)
_OF_RUN = _REVISIONS.where(revisions.c.dag_id == bindparam("dag"), revisions.c.run_id == bindparam("run"))
_OPEN_REVISIONS = _REVISIONS.where(OPEN_REVISION).order_by(revisions.c.seq)
_SAVE_REVISION = guarded(revisions.c.id)


class SqlServices:
    """Services and revisions, guarded by their versions; partial unique indexes keep names and routes apart."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def new_id(self, name: str) -> str:
        """Counted within the transaction, like a job's id."""
        prefix = f"inf-{slug_of(name)}"
        return f"{prefix}-{next_value(self._link, prefix):03d}"

    def add(self, service: Service) -> bool:
        """Insert; False when its name or its route is taken.

        Raises:
            Conflict: another service has this id.
        """
        if self._link.write(self._link.insert(services).on_conflict_do_nothing(), _service_row(service)):
            return True
        wanted = {"wanted_name": service.name, "wanted_prefix": service.prefix, "wanted_port": service.port}
        is_taken = service.is_open and self._link.row(_IN_THE_WAY, wanted) is not None
        if is_taken or self.get(service.id) is None:
            return False
        raise Conflict(f"service {service.id} exists already; ask for a new id", what="service")

    def get(self, service_id: str) -> Service | None:
        """By id."""
        return read_one(self._link, Service, _SERVICE, {"service_id": service_id})

    def by_name(self, name: str) -> Service | None:
        """By the name of the open one."""
        return read_one(self._link, Service, _OPEN_SERVICE, {"open_name": name})

    def save(self, service: Service) -> Service | None:
        """One guarded UPDATE."""
        saved = replace(service, version=service.version + 1)
        try:
            return saved if save(self._link, _SAVE_SERVICE, _service_row(saved), key="id") else None
        except Conflict as error:
            message = f"another open service has the name or the route of {service.id}"
            raise Conflict(message, what="service") from error

    def find(
        self,
        *,
        is_open: bool | None = None,
        pool: str | None = None,
        owner: str | None = None,
        before: str | None = None,
        limit: int | None = None,
    ) -> Sequence[Service]:
        """Newest first.

        Raises:
            NotFound: ``before`` is no service.
        """
        query = _SERVICES.order_by(services.c.created_at.desc(), services.c.seq.desc()).limit(limit)
        if is_open is not None:
            query = query.where(services.c.closed_at.is_(None) if is_open else services.c.closed_at.is_not(None))
        if pool is not None:
            query = query.where(services.c.pool == pool)
        if owner is not None:
            query = query.where(services.c.owner == owner)
        if before is not None:
            query = self._below(query, before)
        return read_all(self._link, Service, query)

    def _below(self, query: Select[tuple[object]], before: str) -> Select[tuple[object]]:
        last = self._link.row(select(services.c.created_at, services.c.seq).where(services.c.id == before))
        if last is None:
            raise NotFound(
                f"service {before!r} does not exist; a page can only follow a service that does", what="service"
            )
        return query.where(tuple_(services.c.created_at, services.c.seq) < (last.created_at, last.seq))

    # --- revisions --------------------------------------------------------------------------------------------------

    def add_revision(self, revision: Revision) -> bool:
        """Insert, or nothing."""
        return bool(self._link.write(self._link.insert(revisions).on_conflict_do_nothing(), _revision_row(revision)))

    def revision(self, service_id: str, number: int) -> Revision | None:
        """By its number."""
        return read_one(self._link, Revision, _REVISION, {"service": service_id, "revision_number": number})

    def revision_of_run(self, dag_id: str, run_id: str) -> Revision | None:
        """By the run that carries it."""
        return read_one(self._link, Revision, _OF_RUN, {"dag": dag_id, "run": run_id})

    def revisions(self, service_id: str) -> Sequence[Revision]:
        """By number."""
        return read_all(self._link, Revision, _OF_SERVICE, {"service": service_id})

    def save_revision(self, revision: Revision) -> Revision | None:
        """One guarded UPDATE."""
        saved = replace(revision, version=revision.version + 1)
        try:
            return saved if save(self._link, _SAVE_REVISION, _revision_row(saved), key="id") else None
        except Conflict as error:
            message = f"run {revision.run} carries another revision; {revision.id} cannot have it"
            raise Conflict(message, what="revision") from error

    def open_revisions(self) -> Sequence[Revision]:
        """One statement; its index holds only open ones."""
        return read_all(self._link, Revision, _OPEN_REVISIONS)


def _service_row(service: Service) -> Values:
    return {
        "id": service.id,
        "version": service.version,
        "name": service.name,
        "prefix": service.prefix,
        "port": service.port,
        "pool": service.pool,
        "owner": service.owner,
        "created_at": service.created_at,
        "closed_at": service.closed_at,
        "payload": to_payload(service),
    }


def _revision_row(revision: Revision) -> Values:
    dag_id, run_id = revision.run or (None, None)
    return {
        "id": revision.id,
        "service_id": revision.service_id,
        "number": revision.number,
        "version": revision.version,
        "phase": str(revision.phase),
        "dag_id": dag_id,
        "run_id": run_id,
        "payload": to_payload(revision),
    }
