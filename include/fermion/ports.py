"""Everything outside, as small Protocols. Use cases see only these; adapters keep them; ``wiring`` joins the two.

Each port that belongs to a cluster says how the process, Docker and Kubernetes drivers keep it, so that none is drawn
for one driver only (Karmada keeps the Kubernetes words through its cluster proxy). A *location* is an opaque string that
only the same cluster's driver can read: a path on the process driver, a volume on Docker, a claim on Kubernetes.
Every call may be repeated: after a crash the caller simply calls again. Every call may raise ``OutsideUnavailable``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Protocol

from fermion.domain.artifacts import DatasetVersion, Image, ModelDraft, ModelVersion
from fermion.domain.jobs import Job, Phase, Pins
from fermion.domain.leases import HolderKind, Lease
from fermion.domain.pools import Node
from fermion.domain.problems import Problem
from fermion.domain.records import Decision, Event, LedgerEntry, MetricPoint, StageSpan, SyncRecord
from fermion.domain.report import Report
from fermion.domain.retention import Freed
from fermion.domain.rollout.looks import Look
from fermion.domain.rollout.rollouts import Approval, Rollout, Wish
from fermion.domain.serving.replicas import ReplicaSeen, ReplicaSpec
from fermion.domain.serving.routing import Route, RouteTable, Spread
from fermion.domain.serving.services import Replica, ReplicaPhase, Revision, Service
from fermion.domain.serving.tensors import Signature, Target, Tensor
from fermion.domain.serving.traffic import Counters, Window
from fermion.domain.workloads import Chunk, Grant, Seen, WorkloadSpec

# --- time -----------------------------------------------------------------------------------------------------------


class Clock(Protocol):
    """The only source of the present."""

    def now(self) -> datetime:
        """The present as aware UTC."""
        ...


# --- state ----------------------------------------------------------------------------------------------------------


class Jobs(Protocol):
    """Training jobs."""

    def new_id(self, day: date) -> str:
        """The next ``job-YYYYMMDD-NNN`` of that UTC day; never given twice, also to concurrent callers."""
        ...

    def add(self, job: Job) -> bool:
        """Insert; False when this run (dag id, run id) carries an open job already: then nothing was written.

        A run that is cleared trains again, so it may carry several jobs, one after the other; only one of them is open.
        """
        ...

    def get(self, job_id: str) -> Job | None:
        """The job, or None."""
        ...

    def by_run(self, dag_id: str, run_id: str) -> Job | None:
        """The job that this run carries, the newest of them, or None."""
        ...

    def save(self, job: Job) -> Job | None:
        """Write if the stored version is still ``job.version``; the job with its new version, or None for a lost race."""
        ...

    def save_all(self, jobs: Sequence[Job]) -> Mapping[str, Job]:
        """``save`` of many different jobs at once, their specs, pins and runs unchanged: those written, by id; the others lost."""
        ...

    def get_all(
        self, ids: Collection[str], *, pools: Collection[str] | None = None, phases: Collection[Phase] | None = None
    ) -> Sequence[Job]:
        """Those of the jobs that exist (in these pools and phases), by id, to be written: nobody else changes them meanwhile."""
        ...

    def hold(self, jobs: Collection[Job]) -> Sequence[Job]:
        """Those of the jobs that are stored as they are here, by id, to be written: nobody else changes them meanwhile."""
        ...

    def pools(self, phases: Collection[Phase]) -> frozenset[str]:
        """The pools that have jobs in one of these phases."""
        ...

    def find(
        self,
        *,
        phases: Collection[Phase] | None = None,
        pool: str | None = None,
        owner: str | None = None,
        changed_since: datetime | None = None,
        before: str | None = None,
        limit: int | None = None,
    ) -> Sequence[Job]:
        """Jobs that match all given filters, newest submission first; ``before`` is the id that ends the last page."""
        ...


class Leases(Protocol):
    """Leases, and the ledger that each grant and end writes in the same transaction."""

    def next_token(self) -> int:
        """A fencing token greater than every one before it."""
        ...

    def next_tokens(self, count: int) -> Sequence[int]:
        """That many tokens, ascending."""
        ...

    def add(self, lease: Lease) -> None:
        """Insert a held lease and its ledger entry (+gpus).

        Raises:
            Conflict: the holder's attempt has a lease already, or one of the devices is held by a live lease.
        """
        ...

    def add_all(self, leases: Sequence[Lease]) -> None:
        """``add`` of many at once, in their order. After a Conflict the transaction must be given up."""
        ...

    def end(self, lease: Lease) -> bool:
        """Write an ended lease and its ledger entry (-gpus); False when it was ended by somebody else."""
        ...

    def update(self, lease: Lease) -> bool:
        """Write ``expires_at``, ``exec_at``, ``exit_at`` of a live lease; False when it is not live any more."""
        ...

    def of_holder(self, kind: HolderKind, holder_id: str, *, live_only: bool = False) -> Sequence[Lease]:
        """Leases of one holder, oldest first."""
        ...

    def live(self, *, pool: str | None = None) -> Sequence[Lease]:
        """Leases that hold GPUs now."""
        ...

    def overlapping(self, since: datetime, *, pools: Collection[str] | None = None) -> Sequence[Lease]:
        """Leases live at or after ``since``, of these pools only if given: what usage, fair share and budgets are computed from."""
        ...

    def ledger(self, *, since: datetime | None = None, limit: int | None = None) -> Sequence[LedgerEntry]:
        """Ledger entries, oldest first."""
        ...


class Catalog(Protocol):
    """What was synced or registered: nodes, images, dataset versions, when a pool was first seen."""

    def put_nodes(self, cluster: str, nodes: Sequence[Node]) -> None:
        """Replace that cluster's nodes; nodes that are gone leave, pools first seen now get their time."""
        ...

    def nodes(self, *, cluster: str | None = None) -> Sequence[Node]:
        """Nodes as last seen."""
        ...

    def pool_first_seen(self, pool_id: str, *, now: datetime) -> datetime:
        """When the pool was first seen; records ``now`` at the first call."""
        ...

    def put_image(self, image: Image) -> None:
        """Insert or replace by id."""
        ...

    def images(self) -> Sequence[Image]:
        """All images, by id."""
        ...

    def put_dataset_version(self, version: DatasetVersion) -> bool:
        """Insert; False when the dataset has a version with this checksum: it keeps its time and gets the URI, where it is now."""
        ...

    def dataset_versions(self, dataset: str | None = None) -> Sequence[DatasetVersion]:
        """Versions newest first. ``files`` is filled only when a dataset is named."""
        ...


class Records(Protocol):
    """What is only ever appended."""

    def add_decision(self, decision: Decision) -> None:
        """Append a decision."""
        ...

    def decisions(self, *, subject: str | None = None, kind: str | None = None, limit: int = 100) -> Sequence[Decision]:
        """Decisions, newest first."""
        ...

    def add_event(self, event: Event) -> None:
        """Append an event."""
        ...

    def events(self, *, target: str | None = None, after: int = 0, limit: int = 100) -> Sequence[tuple[int, Event]]:
        """Events with their sequence number greater than ``after``, oldest first."""
        ...

    def touched(self, after: int | None, *, pools: Collection[str]) -> tuple[int, frozenset[str]]:
        """The newest event's number, and the targets of those after ``after`` (None: of none) that are not about other pools.

        Whoever goes on from that number misses no event that is committed later.
        """
        ...

    def add_points(self, points: Sequence[MetricPoint]) -> int:
        """Append metric points; those already there (job, attempt, kind, number, name) are skipped. How many were new."""
        ...

    def points(self, job_id: str, *, kind: str | None = None, name: str | None = None) -> Sequence[MetricPoint]:
        """A job's points in order of time."""
        ...

    def put_span(self, span: StageSpan) -> None:
        """Insert or replace by (job, attempt, stage)."""
        ...

    def put_spans(self, spans: Sequence[StageSpan]) -> None:
        """``put_span`` of many different stages at once."""
        ...

    def spans(self, job_id: str) -> Sequence[StageSpan]:
        """A job's stages by start."""
        ...

    def put_sync(self, sync: SyncRecord) -> None:
        """Keep the newest sync of each source."""
        ...

    def syncs(self) -> Sequence[SyncRecord]:
        """The newest sync of each source."""
        ...

    def put_memory(self, key: str, payload: Mapping[str, object], *, now: datetime) -> None:
        """Keep what one round of a repeated decision leaves to the next, replacing what was kept under the key."""
        ...

    def memory(self, key: str) -> Mapping[str, object] | None:
        """What was kept under the key, or None."""
        ...

    def forget(self, *, before: datetime, kinds: Collection[str]) -> int:
        """Delete events, decisions and points (named in ``kinds``) older than ``before``; how many."""
        ...


class Services(Protocol):
    """Services and their revisions.

    Writing what belongs to a service that does not exist raises ``NotFound``; the transaction must be given up then.
    """

    def new_id(self, name: str) -> str:
        """The next ``inf-<slug>-NNN`` of that name's slug; never given twice, also to concurrent callers."""
        ...

    def add(self, service: Service) -> bool:
        """Insert; False when an open service has its name, its prefix or its port: then nothing was written."""
        ...

    def get(self, service_id: str) -> Service | None:
        """The service, or None."""
        ...

    def by_name(self, name: str) -> Service | None:
        """The open service of that name, or None."""
        ...

    def save(self, service: Service) -> Service | None:
        """Write if the stored version is still ``service.version``; with its new version, or None for a lost race.

        Raises:
            Conflict: another open service has its name, its prefix or its port; the transaction must be given up.
        """
        ...

    def find(
        self,
        *,
        is_open: bool | None = None,
        pool: str | None = None,
        owner: str | None = None,
        before: str | None = None,
        limit: int | None = None,
    ) -> Sequence[Service]:
        """Services that match all given filters, newest first; ``before`` is the id that ends the last page."""
        ...

    def add_revision(self, revision: Revision) -> bool:
        """Insert; False when the service has that number, or its run carries another revision: then nothing was written."""
        ...

    def revision(self, service_id: str, number: int) -> Revision | None:
        """The revision, or None."""
        ...

    def revision_of_run(self, dag_id: str, run_id: str) -> Revision | None:
        """The revision that this run carries, or None."""
        ...

    def revisions(self, service_id: str) -> Sequence[Revision]:
        """The service's revisions, oldest first."""
        ...

    def save_revision(self, revision: Revision) -> Revision | None:
        """As ``save``.

        Raises:
            Conflict: its run carries another revision; the transaction must be given up.
        """
        ...

    def open_revisions(self) -> Sequence[Revision]:
        """Those of all services that are not in a final phase, oldest first."""
        ...


class ReplicaRows(Protocol):
    """The rows of replicas; whether one is ready is not among what is stored."""

    def add_all(self, rows: Sequence[Replica]) -> None:
        """Insert all.

        Raises:
            Conflict: one of these names is there already; the transaction must be given up.
            NotFound: one belongs to a revision that does not exist; likewise.
        """
        ...

    def get(self, name: str) -> Replica | None:
        """The replica's row, or None."""
        ...

    def save(self, row: Replica) -> Replica | None:
        """Write if the stored version is still ``row.version``; with its new version, or None for a lost race."""
        ...

    def find(
        self,
        *,
        service_id: str | None = None,
        phases: Collection[ReplicaPhase] | None = None,
        pools: Collection[str] | None = None,
    ) -> Sequence[Replica]:
        """Rows that match all given filters, in the order in which they joined the line."""
        ...


class Rollouts(Protocol):
    """Rollouts with what people asked of them and what was seen.

    Writing what belongs to a service or a rollout that does not exist raises ``NotFound``; the transaction must be given
    up then. NaN and infinity are refused with a ValueError: a look says None there.
    """

    def add(self, rollout: Rollout) -> bool:
        """Insert; False when the service has a rollout that has not ended: then nothing was written."""
        ...

    def get(self, rollout_id: str) -> Rollout | None:
        """The rollout, or None."""
        ...

    def save(self, rollout: Rollout) -> Rollout | None:
        """Write if the stored version is still ``rollout.version``; with its new version, or None for a lost race.

        Raises:
            Conflict: it was opened again while its service has another open one; the transaction must be given up.
        """
        ...

    def of_service(self, service_id: str, limit: int | None = None) -> Sequence[Rollout]:
        """Rollouts of one service, newest first."""
        ...

    def open(self) -> Sequence[Rollout]:
        """Those of all services that have not ended, oldest first."""
        ...

    def put_wish(self, rollout_id: str, wish: Wish) -> None:
        """Append what a person asked for; the rollout's version stays as it is."""
        ...

    def wish(self, rollout_id: str) -> Wish | None:
        """The wish that was put last, or None."""
        ...

    def put_approval(self, rollout_id: str, approval: Approval) -> None:
        """Append a person's answer; the rollout's version stays as it is."""
        ...

    def approval(self, rollout_id: str) -> Approval | None:
        """The answer that was put last, or None."""
        ...

    def add_look(self, rollout_id: str, look: Look) -> bool:
        """Insert; False when the rollout has a look of that number: of two who look, one wins."""
        ...

    def looks(self, rollout_id: str, *, after: int = 0, limit: int | None = None) -> Sequence[Look]:
        """Looks with a number greater than ``after``, in order."""
        ...

    def newest_look(self, rollout_id: str) -> Look | None:
        """The look with the greatest number, or None."""
        ...


class Traffic(Protocol):
    """What the router counted, reading by reading."""

    def add(self, counters: Sequence[Counters]) -> int:
        """Append readings; of those already there (backend, time) the first stays. How many were new."""
        ...

    def since(self, backends: Collection[str], at: datetime) -> Mapping[str, Sequence[Counters]]:
        """Readings of each of the backends at or after ``at``, in order of time, after the newest one before ``at``.

        So the first is where a difference over all of the time since ``at`` begins. A backend without readings has none.
        """
        ...

    def forget(self, before: datetime) -> int:
        """Delete readings older than ``before``; how many."""
        ...


class Transaction(Protocol):
    """One atomic unit of work; leaves with a commit, or with a rollback when an exception passes through."""

    @property
    def jobs(self) -> Jobs:
        """Training jobs."""
        ...

    @property
    def leases(self) -> Leases:
        """Leases and the ledger."""
        ...

    @property
    def catalog(self) -> Catalog:
        """What was synced or registered."""
        ...

    @property
    def records(self) -> Records:
        """What is only ever appended."""
        ...

    @property
    def services(self) -> Services:
        """Services and their revisions."""
        ...

    @property
    def replicas(self) -> ReplicaRows:
        """The rows of replicas."""
        ...

    @property
    def rollouts(self) -> Rollouts:
        """Rollouts, looks, wishes and approvals."""
        ...

    @property
    def traffic(self) -> Traffic:
        """What the router counted."""
        ...


class Store(Protocol):
    """The platform's own database."""

    def begin(self, *, exclusive: str | None = None) -> AbstractContextManager[Transaction]:
        """A writing transaction. ``exclusive`` names a lock: no two transactions with one name overlap, anywhere.

        SQLite: ``BEGIN IMMEDIATE``. Postgres: ``pg_advisory_xact_lock`` of the name's hash.
        """
        ...

    def read(self) -> AbstractContextManager[Transaction]:
        """A read-only view of one moment."""
        ...

    def notify(self, topic: str, payload: str = "") -> None:
        """Wake whoever waits on ``topic``, in any process; best effort. Postgres: NOTIFY. SQLite: a row that waiters poll."""
        ...

    def wait(self, topics: Collection[str], timeout: timedelta) -> str | None:
        """Block until one of the topics is notified, at most ``timeout``; the topic, or None."""
        ...

    def check(self) -> str:
        """One sentence about the database (kind, version, schema revision).

        Raises:
            OutsideUnavailable: it does not answer or its schema is not this program's.
        """
        ...


# --- clusters -------------------------------------------------------------------------------------------------------


class Nodes(Protocol):
    """The machines of a cluster.

    process: one node, this machine; devices from NVML by UUID, else the declared slots of the configuration.
    docker: the engine's host, likewise. kubernetes: Node objects with GPU capacity, model from labels, Ready condition.
    """

    def list_nodes(self) -> Sequence[Node]:
        """All nodes now. A cluster that does not answer raises; it never returns an empty list for that."""
        ...


class Images(Protocol):
    """What trainings run in.

    process: an environment, a name and a locked requirements file; digest = hash of the lock; pull = materialised once
    with uv in a content-addressed folder. docker: a reference and its registry digest; pull = the engine's pull.
    kubernetes: the same reference; pull = a pre-pull Job on the pool's nodes, or nothing but the digest check.
    """

    def known(self) -> Sequence[Image]:
        """The images this cluster can run, with today's digests."""
        ...

    def pull(self, image_id: str, digest: str) -> str:
        """The location of exactly that content, fetched if absent; concurrent pulls share one.

        Raises:
            OutsideBroken: the content behind the name has another digest now.
        """
        ...

    def tidy(self, needed: Collection[Pins]) -> Freed:
        """Delete the least recently used until the rest fits its cap, and what killed callers left half made.

        Nothing that ``needed`` names or that a workload uses. docker: the engine's images of ours. kubernetes: nothing, each
        node's kubelet does it.
        """
        ...


class Datasets(Protocol):
    """Staging of datasets near the GPUs, read-only, one copy shared by all jobs.

    process: a content-addressed folder under the cache. docker: the same folder, mounted ``:ro``.
    kubernetes: a claim filled by a staging Job, mounted read-only.
    """

    def stage(self, version: DatasetVersion) -> str:
        """The location of that version, every file verified by its checksum; nothing half is ever visible.

        Raises:
            OutsideBroken: the source's content is not that version any more (the message names the files).
        """
        ...

    def never_fits(self, version: DatasetVersion) -> Sequence[Problem]:
        """Why that version could never be staged here, however empty it gets; asked once, before the line.

        process, docker: it is larger than the cache may be. kubernetes: larger than the largest claim.
        """
        ...

    def tidy(self, needed: Collection[Pins]) -> Freed:
        """As ``Images.tidy``. kubernetes: claims of versions."""
        ...


class DatasetSource(Protocol):
    """Where datasets come from (a local folder, an ``s3://`` prefix). Belongs to no cluster."""

    def scan(self, dataset: str, uri: str, *, now: datetime) -> DatasetVersion:
        """The dataset's content now, with checksums.

        Raises:
            RequestRefused: outside the allowed roots, or a symlink leads out of the dataset.
        """
        ...


class Code(Protocol):
    """Training code in git.

    process, docker: a read-only checkout of the commit from a local mirror, shared by jobs of the same commit.
    kubernetes: the same checkout put into a claim by a staging Job (or an init container).
    """

    def resolve(self, repository: str, ref: str) -> str:
        """The commit (40 hex digits) that a branch, tag or commit means now.

        Raises:
            RequestRefused: the URL is not allowed, or no such ref.
        """
        ...

    def checkout(self, repository: str, commit: str) -> str:
        """The location of that commit's files.

        Raises:
            RequestRefused: the code needs submodules or LFS and they cannot be had; the message says which.
        """
        ...

    def has_file(self, repository: str, commit: str, path: str) -> bool:
        """Whether the commit holds a regular file at ``path`` that is not a link out of the repository."""
        ...

    def tidy(self, needed: Collection[Pins]) -> Freed:
        """As ``Images.tidy``, of checkouts and mirrors together. kubernetes: claims of checkouts."""
        ...


class Workloads(Protocol):
    """What runs. Names are deterministic (job, attempt), so "already exists" means found.

    process: a detached runner with its own session, folder, log and exit record; suspended = the runner waits for its go.
    docker: a container with labels; suspended = a created container whose runner waits for its go (devices come with the
    go, so they are named by the environment, not by the creation). kubernetes: a Job (TrainJob, PyTorchJob) with
    ``suspend: true``; the grant patches node affinity and unsuspends; the exit record is the pod's termination state.
    """

    def prepare(self, spec: WorkloadSpec) -> None:
        """Create it suspended: after this only the grant is missing. Found by name if it exists."""
        ...

    def resume(self, name: str, grant: Grant) -> None:
        """Give the grant. Repeated with the same token it does nothing; an older token than the one given is refused.

        Raises:
            NotFound: nothing prepared by that name.
            Conflict: it runs under a newer token.
        """
        ...

    def look(self, name: str) -> Seen:
        """What is true of it now; ABSENT when nothing is there."""
        ...

    def stop(self, name: str, *, grace: timedelta, why: str) -> None:
        """Ask it to end: TERM, then KILL after ``grace``. Returns at once; a suspended one is removed. Absent is fine."""
        ...

    def remove(self, name: str) -> None:
        """Forget an ended or suspended workload; its log, output and checkpoints stay. Absent is fine."""
        ...

    def names(self) -> Sequence[str]:
        """Every workload of this platform on the cluster, whatever its state."""
        ...

    def orphans(self) -> Sequence[str]:
        """Live processes (pods, containers) marked as ours that belong to no workload known here, one description each."""
        ...

    def end_orphans(self) -> int:
        """End them; how many."""
        ...

    def log(self, name: str, *, offset: int = 0, limit: int = 65536) -> Chunk:
        """A piece of the workload's combined output as text; readable after the workload is removed."""
        ...

    def progress(self, name: str, *, offset: int = 0, limit: int = 262144) -> Chunk:
        """A piece of the raw progress lines (one JSON object a line, unchecked); whole lines only."""
        ...


class Space(Protocol):
    """Per-job places that outlive workloads.

    process, docker: folders. kubernetes: claims (ReadWriteMany or an object store prefix).
    """

    def output(self, job_id: str, attempt: int) -> str:
        """Where that attempt writes its model; made if absent."""
        ...

    def checkpoints(self, job_id: str) -> str:
        """Where all attempts of that job keep checkpoints; made if absent."""
        ...

    def log(self, job_id: str, attempt: int) -> str:
        """Where that attempt's log lies."""
        ...

    def fetch_output(self, location: str) -> Path:
        """A local folder with the files of an output location, to publish from."""
        ...

    def has_checkpoint(self, job_id: str) -> bool:
        """Whether that job left a checkpoint to resume from."""
        ...

    def forget(self, job_id: str) -> None:
        """Delete everything of that job but what was published."""
        ...


class ModelCache(Protocol):
    """Published models near the replicas that serve them: read-only, one copy shared by all of a cluster's machine.

    process, docker: a content-addressed folder. kubernetes: a claim filled by a staging Job, mounted read-only.
    """

    def stage(self, version: ModelVersion) -> str:
        """The location of that version's files, each verified by its checksum; nothing half is ever visible.

        Raises:
            OutsideBroken: the repository's files are not that version any more (the message names them).
        """
        ...

    def tidy(self, needed: Collection[str], *, dry_run: bool = False) -> Freed:
        """As ``Images.tidy``; ``needed`` are checksums. With ``dry_run`` nothing is deleted: what would be."""
        ...


class Replicas(Protocol):
    """Model servers. Names are deterministic (revision, number), so "already exists" means found.

    process: a detached runner per replica; it starts the server again when it ends, asks the probes, and chooses its ports.
    docker: a container per replica with the same runner as its first process. kubernetes: one Deployment per revision,
    paused at 0; a grant raises ``replicas`` by one, ``stop`` lowers it, names map to its pods by age; probes and restarts
    are the kubelet's.
    """

    def prepare(self, spec: ReplicaSpec) -> None:
        """Create it suspended: after this only the grant is missing. Found by name if it exists."""
        ...

    def resume(self, name: str, grant: Grant) -> None:
        """Give the grant; as ``Workloads.resume``."""
        ...

    def look(self, name: str) -> ReplicaSeen:
        """What is true of it now; ABSENT when nothing is there."""
        ...

    def stop(self, name: str, *, grace: timedelta, why: str) -> None:
        """Ask it to end for good: TERM, then KILL after ``grace``. Returns at once; a suspended one is removed. Absent is fine."""
        ...

    def remove(self, name: str) -> None:
        """Forget an ended or suspended replica; its log stays. Absent is fine."""
        ...

    def names(self) -> Sequence[str]:
        """Every replica of this platform on the cluster, whatever its state."""
        ...

    def orphans(self) -> Sequence[str]:
        """As ``Workloads.orphans``."""
        ...

    def end_orphans(self) -> int:
        """End them; how many."""
        ...

    def log(self, name: str, *, offset: int = 0, limit: int = 65536) -> Chunk:
        """A piece of what all its processes printed; readable after it is removed."""
        ...

    def log_location(self, name: str) -> str:
        """Where a replica of that name keeps its log."""
        ...

    def forget(self, before: datetime) -> Freed:
        """Delete what replicas left that were removed before then: their logs. kubernetes: nothing, a pod's log goes with it."""
        ...


class Router(Protocol):
    """What carries requests to replicas. It keeps no wish of its own: the table is made from the store, whenever it is asked for.

    process, docker: Envoy beside the platform, told by files that it watches. kubernetes: an Istio VirtualService or a
    Gateway API HTTPRoute with one Service per revision.
    """

    def problems_of(self, route: Route) -> Sequence[Problem]:
        """What of the route this router cannot do, all at once; it would be refused, never left out."""
        ...

    def apply(self, table: RouteTable) -> None:
        """Make it so, without a restart and without a failed request. The same table again changes nothing.

        Raises:
            DriverCannot: a route has problems; nothing was changed.
        """
        ...

    def applied(self) -> Mapping[str, Spread]:
        """How the router itself says that it spreads requests now, by service name."""
        ...

    def counters(self, backends: Collection[str]) -> Mapping[str, Counters]:
        """What it counted of those backends; one that never had a request has zeros, one that it does not know is left out.

        ``copies_of(backend)`` and ``answers_of(backend)`` are keys, too: copies are never among a backend's requests.
        """
        ...

    def address(self, route: Route) -> str:
        """Where the service is reached: a URL for HTTP, ``host:port`` for gRPC."""
        ...


class Driver(Protocol):
    """One cluster: the ports that must come from the same hand."""

    @property
    def kind(self) -> str:
        """``process``, ``docker``, ``kubernetes`` or ``karmada``."""
        ...

    @property
    def nodes(self) -> Nodes:
        """Its machines."""
        ...

    @property
    def images(self) -> Images:
        """What trainings run in."""
        ...

    @property
    def datasets(self) -> Datasets:
        """Staging of datasets."""
        ...

    @property
    def code(self) -> Code:
        """Training code."""
        ...

    @property
    def workloads(self) -> Workloads:
        """What runs."""
        ...

    @property
    def space(self) -> Space:
        """Per-job places."""
        ...

    @property
    def models(self) -> ModelCache:
        """Staging of published models."""
        ...

    @property
    def replicas(self) -> Replicas:
        """Model servers."""
        ...

    @property
    def router(self) -> Router:
        """What carries requests to them."""
        ...


# --- beyond clusters ------------------------------------------------------------------------------------------------


class ModelRepository(Protocol):
    """Published models: immutable versions with a manifest. Local folder or S3."""

    def publish(self, draft: ModelDraft, folder: Path, *, key: str) -> ModelVersion:
        """Publish the folder's files as the model's next version, atomically: visible whole or not at all.

        ``key`` (the attempt's workload name) makes it idempotent: published once, the same version is answered again.
        Racing writers get consecutive numbers.

        Raises:
            RequestRefused: the folder holds no file, or a link that leads out of it.
        """
        ...

    def get(self, model: str, number: int) -> ModelVersion | None:
        """One version, or None."""
        ...

    def versions(self, model: str) -> Sequence[ModelVersion]:
        """All versions of a model, newest first."""
        ...

    def models(self) -> Sequence[str]:
        """Names of all models."""
        ...

    def verify(self, version: ModelVersion) -> Sequence[str]:
        """Read every byte again; a sentence for each file that is missing or differs (empty: intact)."""
        ...

    def clear_leftovers(self, *, older_than: timedelta, now: datetime) -> Freed:
        """Delete what publishers that died left, and that belongs to no version. A publish takes less than ``older_than``."""
        ...


class Inference(Protocol):
    """Predictions of a model server, asked of it or of the router before it, in the Open Inference Protocol (V2).

    Belongs to no cluster. Sizes and times are bounded by the adapter; nothing is asked twice by itself.
    """

    def predict(self, target: Target, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """The model's outputs, as it gave them: ``output_check`` tells whether they can be any.

        Raises:
            RequestRefused: it does not take these inputs; the server's words say why.
            NotFound: it knows no such model.
            OutsideUnavailable: nobody answers, it answers too late, or says that it cannot now.
            OutsideBroken: it failed over the request, or what it answers is not the protocol.
            DriverCannot: a service of that kind has no predictions.
        """
        ...

    def is_ready(self, target: Target) -> bool:
        """Whether the model takes requests now; nobody there, or no such model, is a no."""
        ...

    def signature(self, target: Target) -> Signature:
        """What the server says that the model takes and gives. Raises as ``predict`` does."""
        ...


class Measurements(Protocol):
    """What a metrics system recorded of the routers' counters. Belongs to no cluster."""

    @property
    def source(self) -> str:
        """What it is and where, for people."""
        ...

    def windows(
        self, backends: Collection[str], since: datetime, until: datetime, *, latencies: bool = True
    ) -> Mapping[str, Window]:
        """What came between the first reading at or after ``since`` and the last one up to ``until``, of each backend.

        A backend that was not read twice in that time is left out: that is not the same as one without requests. What a router
        counted before it started anew is kept. Without ``latencies`` their distribution is left out, for long times.

        Raises:
            OutsideUnavailable: it does not answer.
            OutsideBroken: it answers, but not with readings.
        """
        ...


class FormChoices(Protocol):
    """The choices that the form in the workflow engine's page offers; it may not query a database when it is parsed."""

    def write(self, *, pools: Sequence[str], images: Sequence[str], datasets: Sequence[str]) -> None:
        """Replace them atomically; unchanged choices write nothing."""
        ...


class Reports(Protocol):
    """Reports of ended jobs, each as a page for people and as JSON for programs. Belongs to no cluster."""

    def write(self, report: Report) -> tuple[str, str]:
        """Keep the report; the locations of its page and of its JSON. Each appears whole or not at all; repeated, it replaces."""
        ...

    def read(self, job_id: str) -> Report | None:
        """The report of that job, or None when none was written.

        Raises:
            OutsideBroken: what lies there is not a report that this program can read.
        """
        ...

    def page(self, job_id: str) -> str | None:
        """The report's page as HTML that needs nothing else, or None when none was written."""
        ...

    def forget(self, job_id: str) -> None:
        """Delete the report. Absent is fine."""
        ...


class RunState(Protocol):
    """What the workflow engine says of one run."""

    @property
    def state(self) -> str:
        """``queued``, ``running``, ``success``, ``failed`` or ``absent``."""
        ...

    @property
    def tasks(self) -> Mapping[str, str]:
        """Task id to task state."""
        ...


class Runs(Protocol):
    """The workflow engine, reached over its public interface with the caller's own rights.

    An instance of a task of which a run has several is called as ``domain/tasks.py`` names it.
    """

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, object]) -> bool:
        """Start a run under that id; False when it exists already."""
        ...

    def state(self, dag_id: str, run_id: str) -> RunState:
        """The run and its tasks now."""
        ...

    def fail_task(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Mark one unfinished task failed (never the run: its teardowns must still run)."""
        ...

    def skip_task(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Mark one unfinished task skipped: nobody needs what it waits for."""
        ...

    def answer(self, dag_id: str, run_id: str, task_id: str, option: str, more: Mapping[str, object]) -> bool:
        """Answer the question that a task asks, with one of its options; False where it asks none, or was answered."""
        ...

    def fail_run(self, dag_id: str, run_id: str) -> None:
        """Mark a run that has ended as failed: its engine took it for a success, and its job tells otherwise."""
        ...

    def note(self, dag_id: str, run_id: str, task_id: str, text: str) -> None:
        """Show the text (Markdown, cut where the engine's room ends) on the run and on one of its tasks."""
        ...


class EngineUpkeep(Protocol):
    """What the workflow engine keeps of the past, reached where its own database is."""

    def forget(self, before: datetime, *, dags: Sequence[str] = ()) -> str:
        """Delete runs that began before then, with their logs and whatever else is kept of them; a sentence that says what.

        ``dags`` limits it to their runs. Nothing younger is touched. Repeating it changes nothing.
        """
        ...
