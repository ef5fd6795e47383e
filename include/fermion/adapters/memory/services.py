"""Services and their revisions in memory. Keeps ``ports.Services``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from fermion.adapters.memory.jsonlike import as_stored
from fermion.adapters.memory.tables import Draft
from fermion.adapters.wording import clean
from fermion.domain.serving.replicas import revision_id
from fermion.domain.serving.services import REVISION_FINAL, Revision, Service, slug_of
from fermion.errors import Conflict, NotFound


class MemoryServices:
    """Services and revisions, guarded by their versions."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    @property
    def _services(self) -> Mapping[str, Service]:
        return self._draft.see("services")

    @property
    def _revisions(self) -> Mapping[str, Revision]:
        return self._draft.see("revisions")

    def new_id(self, name: str) -> str:
        """Counted within the transaction."""
        prefix = f"inf-{slug_of(name)}"
        return f"{prefix}-{self._draft.next(prefix):03d}"

    def add(self, service: Service) -> bool:
        """Insert; False when its name or its route is taken.

        Raises:
            Conflict: another service has this id.
        """
        services, stored = self._draft.write("services"), as_stored(service)
        if any(_is_alike(service, other) for other in services.values()):
            return False
        if service.id in services:
            raise Conflict(f"service {service.id} exists already; ask for a new id", what="service")
        services[service.id] = stored
        return True

    def get(self, service_id: str) -> Service | None:
        """By id."""
        return self._services.get(service_id)

    def by_name(self, name: str) -> Service | None:
        """By the name of the open one."""
        named = (each for each in self._services.values() if each.is_open and clean(each.name) == clean(name))
        return next(named, None)

    def save(self, service: Service) -> Service | None:
        """Guarded by the version."""
        services = self._draft.write("services")
        stored: Service | None = services.get(service.id)
        if stored is None or stored.version != service.version:
            return None
        if any(_is_alike(service, other) for other in services.values() if other.id != service.id):
            raise Conflict(f"another open service has the name or the route of {service.id}", what="service")
        services[service.id] = as_stored(replace(service, version=service.version + 1))
        return self.get(service.id)

    def find(
        self,
        *,
        is_open: bool | None = None,
        pool: str | None = None,
        owner: str | None = None,
        before: str | None = None,
        limit: int | None = None,
    ) -> Sequence[Service]:
        """Newest first."""
        found = (
            service
            for service in self._newest_first(before)
            if (is_open is None or service.is_open == is_open)
            and (pool is None or service.pool == pool)
            and (owner is None or clean(service.owner) == clean(owner))
        )
        return list(islice(found, limit))

    def _newest_first(self, before: str | None) -> Iterator[Service]:
        if before is not None and before not in self._services:
            raise NotFound(
                f"service {before!r} does not exist; a page can only follow a service that does", what="service"
            )
        # Sorting keeps the order of equal ones, so of two created at one instant the later insert comes first.
        newest = sorted(list(self._services.values())[::-1], key=lambda service: service.created_at, reverse=True)
        ordered = iter(newest)
        if before is not None:
            next(service for service in ordered if service.id == before)
        return ordered

    # --- revisions --------------------------------------------------------------------------------------------------

    def add_revision(self, revision: Revision) -> bool:
        """Insert, or nothing."""
        revisions, stored = self._draft.write("revisions"), as_stored(revision)
        if revision.id in revisions or self._carries_another(revision):
            return False
        if revision.service_id not in self._services:
            raise NotFound(f"service {revision.service_id} does not exist", what="service")
        revisions[revision.id] = stored
        return True

    def revision(self, service_id: str, number: int) -> Revision | None:
        """By its number."""
        return self._revisions.get(revision_id(service_id, number))

    def revision_of_run(self, dag_id: str, run_id: str) -> Revision | None:
        """By the run that carries it."""
        return next((each for each in self._revisions.values() if each.run == (dag_id, run_id)), None)

    def revisions(self, service_id: str) -> Sequence[Revision]:
        """By number."""
        found = (each for each in self._revisions.values() if each.service_id == service_id)
        return sorted(found, key=lambda revision: revision.number)

    def save_revision(self, revision: Revision) -> Revision | None:
        """Guarded by the version."""
        revisions = self._draft.write("revisions")
        stored: Revision | None = revisions.get(revision.id)
        if stored is None or stored.version != revision.version:
            return None
        if self._carries_another(revision):
            raise Conflict(
                f"run {revision.run} carries another revision; {revision.id} cannot have it", what="revision"
            )
        revisions[revision.id] = as_stored(replace(revision, version=revision.version + 1))
        return self.revision(revision.service_id, revision.number)

    def open_revisions(self) -> Sequence[Revision]:
        """In order of insertion."""
        return [revision for revision in self._revisions.values() if revision.phase not in REVISION_FINAL]

    def _carries_another(self, revision: Revision) -> bool:
        carried = None if revision.run is None else self.revision_of_run(*revision.run)
        return carried is not None and carried.id != revision.id


def _is_alike(one: Service, other: Service) -> bool:
    """Whether both are open and could not be told apart by name or route."""
    if not (one.is_open and other.is_open):
        return False
    is_same_port = one.port is not None and one.port == other.port
    return is_same_port or clean(one.name) == clean(other.name) or clean(one.prefix) == clean(other.prefix)
