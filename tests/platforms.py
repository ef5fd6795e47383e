"""A platform in memory for tests of operators, pages and use cases: real use cases, memory store, driver, clock and engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from builders import NOW, make_node
from fermion.adapters.machine import ChoicesFile
from fermion.adapters.memory.clock import MemoryClock
from fermion.adapters.memory.driver import MemoryDatasetSource, MemoryDriver
from fermion.adapters.memory.outages import Line
from fermion.adapters.memory.runs import MemoryRuns
from fermion.adapters.memory.store import MemoryStore
from fermion.adapters.models.local import LocalModels
from fermion.adapters.report.folder import FolderReports
from fermion.domain.artifacts import Image
from fermion.domain.jobs import Job
from fermion.domain.retention import Retention
from fermion.domain.workloads import workload_name
from fermion.usecases.check import check
from fermion.usecases.context import Context, Rules
from fermion.usecases.prepare import prepare
from fermion.usecases.release import release
from fermion.usecases.save import save_model
from fermion.usecases.stage import enqueue
from fermion.usecases.submit import submit
from fermion.usecases.tend import Tender

REPOSITORY = "file:///srv/git/digits.git"
REQUEST: Mapping[str, object] = {
    "name": "digits",
    "pool": "local/declared",
    "image": "digits:1",
    "datasets": ["digits"],
    "repository": REPOSITORY,
    "entrypoint": "python train.py",
    "output_model": "digits",
}
DAG = "train_model"


@dataclass
class Platform:
    """The context with the levers of what is behind it."""

    folder: Path
    retention: Retention = field(default_factory=Retention)

    def __post_init__(self) -> None:
        self.clock = MemoryClock()
        self.source_line = Line("the dataset source")
        self.source = MemoryDatasetSource(self.source_line)
        self.source.put("file:///srv/data/digits", {"digits.csv": b"1,2,3"})
        self.driver = MemoryDriver(self.clock, nodes=[make_node(gpus=2)], source=self.source)
        self.driver.images.put(
            Image(
                id="digits:1",
                digest="sha256:" + "a" * 64,
                category="training",
                source_type="test",
                source="test",
                created_at=NOW,
                updated_at=NOW,
            )
        )
        self.driver.code.commit(REPOSITORY, {"train.py": b"print(1)"})
        self.runs = MemoryRuns()
        self.ctx = Context(
            store=MemoryStore(),
            clock=self.clock,
            drivers={"local": self.driver},
            dataset_source=self.source,
            models=LocalModels(self.folder / "models"),
            reports=FolderReports(self.folder / "reports"),
            choices=ChoicesFile(self.folder / "choices.json"),
            rules=Rules(datasets={"digits": "file:///srv/data/digits"}, memory_mib=256, retention=self.retention),
            runs=self.runs,
        )

    def submit(self, run_id: str = "r1", **changes: object) -> Job:
        """A checked job of that run."""
        job = submit(self.ctx, {**REQUEST, **changes}, dag_id=DAG, run_id=run_id, actor="ann")
        return check(self.ctx, job.id)

    def start(self, job: Job) -> Job:
        """In line, prepared, granted; its process runs."""
        enqueue(self.ctx, job.id)
        prepare(self.ctx, job.id)
        return self.tend(job)

    def tend(self, job: Job, rounds: int = 2) -> Job:
        """The job after some rounds of whoever looks after it."""
        for _ in range(rounds):
            Tender(self.ctx).round()
        return self.job(job.id)

    def finish(self, job: Job, code: int = 0) -> Job:
        """Its process ends with that code and a model file; published and released as its run would."""
        name = workload_name(job.id, job.attempt)
        self.driver.space.write(self.driver.space.output(job.id, job.attempt), {"model.bin": b"weights"})
        self.driver.workloads.exit(name, code)
        job = self.tend(job)
        if code == 0:
            save_model(self.ctx, job.id)
        return release(self.ctx, job.id, patience=timedelta(0))

    def trained(self, run_id: str = "r1", code: int = 0, **changes: object) -> Job:
        """A job that went all the way."""
        return self.finish(self.start(self.submit(run_id, **changes)), code)

    def job(self, job_id: str) -> Job:
        """As it is now."""
        with self.ctx.store.read() as tx:
            found = tx.jobs.get(job_id)
        assert found is not None
        return found
