"""A whole platform for a benchmark: the installation that users start, with its own state, ports and number of slots."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from tests.benchmarks.stores import fresh_folder
from tests.e2e.live import Live, wait_until

from fermion.domain.jobs import Job
from fermion.domain.leases import HolderKind, Lease

DAG = "train_model"
MIB = 1 << 20
BLOCK = 8 * MIB


@contextmanager
def platform(*, slots: int, dataset_mib: int = 0) -> Iterator[Live]:
    """Up with an idle line; down, with nothing left, afterwards. With a dataset ``big`` of that size, of four files."""
    with fresh_folder() as folder:
        live = Live(folder, slots=slots)
        if dataset_mib:
            _declare_dataset(live)
        try:
            live.up()
            if dataset_mib:
                write_files(live.settings.examples_dir / "datasets" / "big", dataset_mib)
            yield live
        finally:
            live.down()
            left = live.processes()
            if left:
                raise RuntimeError(f"{len(left)} processes outlived the platform: {left}")


def _declare_dataset(live: Live) -> None:
    file = Path(live.environ["FERMION_ROOT"]) / "config" / "fermion.yaml"
    text = file.read_text(encoding="utf-8")
    named = "\ndatasets:\n  big: ${FERMION_STATE}/examples/datasets/big\n"
    file.write_text(text.replace("\ndatasets:\n", named), encoding="utf-8")


def write_files(folder: Path, mib: int, *, files: int = 4) -> None:
    """Files that no compression and no sparse copy makes smaller, ``mib`` in all."""
    folder.mkdir(parents=True)
    with Path("/dev/urandom").open("rb") as source:
        block = source.read(BLOCK)
    for number in range(files):
        with (folder / f"part-{number}.bin").open("wb") as file:
            for index in range(mib // files * MIB // BLOCK):
                file.write(index.to_bytes(8, "big") + number.to_bytes(8, "big") + block[16:])


def lease_of(live: Live, job: Job) -> Lease:
    """The job's only lease."""
    with live.ctx.store.read() as tx:
        (lease,) = tx.leases.of_holder(HolderKind.JOB, job.id)
    return lease


def run_end(live: Live, dag_id: str, run_id: str, *, within_s: float = 120) -> datetime:
    """When the engine says that the run ended; fails when it did not end well."""
    path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}"

    def ended() -> datetime | None:
        run = live.call("GET", path).json()
        if run["state"] == "failed":
            raise RuntimeError(f"run {run_id} of {dag_id} failed")
        return datetime.fromisoformat(run["end_date"]) if run["state"] == "success" else None

    return wait_until(ended, within_s=within_s, what=f"the end of {run_id}")
