"""A whole platform in memory for tests of the use cases: every port is a true fake or a real folder, time is told to move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from builders import NOW, make_node, make_policy, seconds
from fermion.adapters.machine import ChoicesFile
from fermion.adapters.memory.clock import MemoryClock
from fermion.adapters.memory.driver import MemoryDatasetSource, MemoryDriver
from fermion.adapters.memory.outages import Line
from fermion.adapters.memory.runs import MemoryRuns
from fermion.adapters.memory.store import MemoryStore
from fermion.adapters.models.local import LocalModels
from fermion.adapters.report.folder import FolderReports
from fermion.domain.accounting import ledger_gaps
from fermion.domain.artifacts import Image
from fermion.domain.jobs import HOLDING, Job, Phase
from fermion.domain.leases import HolderKind, Lease
from fermion.domain.pools import Node, PoolPolicy
from fermion.domain.workloads import WorkloadState, workload_name
from fermion.ports import Store
from fermion.usecases.check import check
from fermion.usecases.context import Context, Rules
from fermion.usecases.prepare import prepare
from fermion.usecases.queries import job_by_id
from fermion.usecases.stage import clone_repository, enqueue, mount_dataset, pull_image
from fermion.usecases.submit import submit
from fermion.usecases.tend import Tender
from fermion.usecases.wait import wait_for_grant

POOL = "local/declared"
DAG = "train_model"
REPOSITORY = "https://git.example/digits.git"
DATASET = "file:///data/digits"
NO_PATIENCE = timedelta(0)
POLICY: Mapping[str, Any] = {
    "stop_grace": seconds(10),
    "start_timeout": seconds(60),
    "hang_floor": seconds(30),
    "hang_factor": 5.0,
}
IMAGE = Image(
    id="digits:1",
    digest="sha256:" + "1" * 64,
    category="custom",
    source_type="dockerfile",
    source="digits.lock",
    created_at=NOW,
    updated_at=NOW,
)


class World:
    """One cluster ``local`` with ``gpus`` declared slots on node ``n0`` (or the given nodes), one image, dataset and repository."""

    def __init__(
        self,
        folder: Path,
        *,
        gpus: int = 4,
        nodes: Sequence[Node] | None = None,
        store: Store | None = None,
        policies: Mapping[str, PoolPolicy] | None = None,
        **policy: Any,
    ) -> None:
        self.clock = MemoryClock(NOW)
        self.source_line = Line("the dataset source")
        self.source = MemoryDatasetSource(self.source_line)
        self.driver = MemoryDriver(self.clock, nodes=nodes or [make_node("n0", gpus=gpus)], source=self.source)
        self.runs = MemoryRuns()
        self.models = LocalModels(folder / "models", reserve=0)
        self.memory = MemoryStore()
        self.choices_file = folder / "choices.json"
        self.driver.images.put(IMAGE)
        self.commit = self.driver.code.commit(REPOSITORY, {"train.py": b"print('hello')"})
        self.source.put(DATASET, {"digits.csv": b"1,2,3"})
        self.ctx = Context(
            store=store or self.memory,
            clock=self.clock,
            drivers={"local": self.driver},
            dataset_source=self.source,
            models=self.models,
            reports=FolderReports(folder / "reports"),
            choices=ChoicesFile(self.choices_file),
            rules=Rules(
                policies=policies or {},
                default_policy=make_policy(**{**POLICY, **policy}),
                datasets={"digits": DATASET},
            ),
            runs=self.runs,
        )
        self.tender = Tender(self.ctx)

    # --- what people and tasks do -----------------------------------------------------------------------------------

    def request(self, **changes: object) -> dict[str, object]:
        """A request that is all right."""
        return {
            "name": "digits",
            "pool": POOL,
            "image": "digits:1",
            "datasets": ["digits"],
            "repository": REPOSITORY,
            "entrypoint": "train.py",
            "output_model": "digits",
            **changes,
        }

    def submit(self, *, actor: str = "ann", run_id: str | None = None, **changes: Any) -> Job:
        """Submitted, with a run that carries it."""
        job = submit(self.ctx, self.request(**changes), dag_id=DAG, run_id=run_id, actor=actor)
        assert job.run is not None
        if self.runs.trigger(*job.run, conf={}):
            self.runs.put_task(*job.run, "check_quota", "running")
        return job

    def stage(self, job_id: str) -> Job:
        """The tasks up to ``clone_repository``."""
        check(self.ctx, job_id)
        enqueue(self.ctx, job_id)
        pull_image(self.ctx, job_id)
        mount_dataset(self.ctx, job_id)
        clone_repository(self.ctx, job_id)
        return self.job(job_id)

    def wait(self, job_id: str) -> Job:
        """One try of ``wait_for_gpus``."""
        return wait_for_grant(self.ctx, job_id, patience=NO_PATIENCE)

    def waiting(self, **changes: Any) -> Job:
        """A job whose workload is prepared; nobody served the line yet."""
        return prepare(self.ctx, self.stage(self.submit(**changes).id).id)

    def started(self, **changes: Any) -> Job:
        """A job that was granted, and resumed."""
        job = self.wait(self.stage(self.submit(**changes).id).id)
        assert job.phase is Phase.STARTING, job.explanation.message
        return job

    def running(self, **changes: Any) -> Job:
        """A job whose process was seen."""
        job = self.started(**changes)
        return self.tend()[job.id]

    def saving(self, **changes: Any) -> Job:
        """A job whose training ended well."""
        job = self.running(**changes)
        self.train_well(job.id)
        return self.tend()[job.id]

    # --- what happens -----------------------------------------------------------------------------------------------

    def train_well(self, job_id: str) -> None:
        """The present attempt writes a model and exits with 0."""
        job = self.job(job_id)
        self.driver.space.write(self.driver.space.output(job.id, job.attempt), {"model.bin": job.id.encode()})
        self.driver.workloads.exit(self.name(job_id), 0)

    def pass_time(self, count: float) -> None:
        """Seconds go by."""
        self.clock.advance(seconds(count))

    def tend(self) -> Mapping[str, Job]:
        """A round of the triggerer's Tender."""
        return self.tender.round()

    # --- what is ----------------------------------------------------------------------------------------------------

    def name(self, job_id: str) -> str:
        """The workload of the job's present attempt."""
        return workload_name(job_id, self.job(job_id).attempt)

    def job(self, job_id: str) -> Job:
        """The job as stored."""
        return job_by_id(self.ctx, job_id)

    def state(self, job_id: str) -> WorkloadState:
        """The present attempt's workload."""
        return self.driver.workloads.look(self.name(job_id)).state

    def leases(self, job_id: str | None = None, *, live_only: bool = True) -> Sequence[Lease]:
        """Leases, of one job or all live ones."""
        with self.ctx.store.read() as tx:
            if job_id is None:
                return tx.leases.live()
            return tx.leases.of_holder(HolderKind.JOB, job_id, live_only=live_only)

    def verbs(self, target: str) -> list[str]:
        """What happened to a job, in order."""
        with self.ctx.store.read() as tx:
            return [event.verb for _, event in tx.records.events(target=target, limit=1000)]

    def decisions(self, subject: str, kind: str | None = None) -> list[str]:
        """Verdicts about a job, oldest first."""
        with self.ctx.store.read() as tx:
            return [each.verdict for each in tx.records.decisions(subject=subject, kind=kind)][::-1]

    @contextmanager
    def line_cut(self) -> Iterator[None]:
        """The cluster does not answer within the block."""
        self.driver.line.cut()
        try:
            yield
        finally:
            self.driver.line.mend()


def check_invariants(world: World) -> None:
    """What is true at every moment, whatever was done and whoever died."""
    with world.ctx.store.read() as tx:
        leases = [lease for lease in tx.leases.live() if lease.holder_kind is HolderKind.JOB]
        jobs = {job.id: job for job in tx.jobs.find()}
        gaps = ledger_gaps(tx.leases.ledger(), leases, world.clock.now())
        capacity = {pool.id: pool.total for pool in world.ctx.pools(tx).values()}
    assert gaps == (), "the ledger and the leases disagree"
    devices = Counter(
        (lease.pool, part.node, each) for lease in leases for part in lease.slices for each in part.devices
    )
    assert max(devices.values(), default=0) <= 1, "a device is held twice"
    holding = {(job.id, job.attempt) for job in jobs.values() if job.phase in HOLDING}
    assert {(lease.holder_id, lease.attempt) for lease in leases} == holding, (
        "a job holds GPUs if and only if its phase says so"
    )
    for pool in {lease.pool for lease in leases}:
        held = sum(lease.gpus for lease in leases if lease.pool == pool)
        assert held == sum(job.spec.gpus for job in jobs.values() if job.phase in HOLDING and job.spec.pool == pool), (
            "G2"
        )
        assert held <= capacity.get(pool, held), "over capacity"


def check_workloads(world: World) -> None:
    """No job has two live workloads, and none lives without its job's holding GPUs (the cluster must answer)."""
    live = [name for name in world.driver.workloads.names() if is_alive(world, name)]
    per_job = Counter(name.rsplit("-a", 1)[0] for name in live)
    assert max(per_job.values(), default=0) <= 1, f"two live workloads: {live}"
    for name in live:
        job = world.job(name.rsplit("-a", 1)[0])
        assert job.phase in HOLDING, f"{name} runs and its job is {job.phase}"
        assert workload_name(job.id, job.attempt) == name


def is_alive(world: World, name: str) -> bool:
    """Whether its process runs."""
    return world.driver.workloads.look(name).state is WorkloadState.RUNNING


def check_at_rest(world: World) -> None:
    """Nothing is left of jobs that have ended."""
    check_invariants(world)
    check_workloads(world)
    with world.ctx.store.read() as tx:
        final = [job for job in tx.jobs.find() if job.is_final]
    for job in final:
        assert not world.leases(job.id), f"{job.id} is {job.phase} and holds a lease"
        for attempt in range(1, job.attempt + 1):
            assert not is_alive(world, workload_name(job.id, attempt)), f"{job.id} is {job.phase} and runs"
