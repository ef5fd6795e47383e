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

    def overlapping(self, since: datetime, *, pool: str | None = None) -> Sequence[Lease]:
        """Leases live at or after ``since``: what usage, fair share and budgets are computed from."""
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

    def touched(self, after: int | None) -> tuple[int, frozenset[str]]:
        """The newest event's number, and the targets of those after ``after`` (None: of none).

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
    """The workflow engine, reached over its public interface with the caller's own rights."""

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, object]) -> bool:
        """Start a run under that id; False when it exists already."""
        ...

    def state(self, dag_id: str, run_id: str) -> RunState:
        """The run and its tasks now."""
        ...

    def fail_task(self, dag_id: str, run_id: str, task_id: str) -> None:
        """Mark one unfinished task failed (never the run: its teardowns must still run)."""
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
