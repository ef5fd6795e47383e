"""Services on a whole platform for a benchmark: a server that misbehaves when it is told to, deployed as users deploy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tests.benchmarks.platforms import platform
from tests.e2e.live import Live, wait_until

from fermion.domain.rollout.rollouts import Rollout
from fermion.domain.serving.services import Revision
from fermion.usecases.serving.queries import Deployment, deployment, service_state
from fermion.usecases.serving.submit import launch

MODEL = "sleeper"
HERE = Path(__file__).parent
DEPLOYED_WITHIN_S = 120.0


@dataclass(frozen=True)
class Serving:
    """A platform with a published model and the code of a server for it."""

    live: Live
    repository: str

    def spec(self, name: str, **changes: object) -> dict[str, object]:
        """A service of one replica that starts as fast as Python does."""
        return {
            "name": name,
            "model": MODEL,
            "engine": "command",
            "command": ["python", "server.py"],
            "image": "python:3",
            "pool": "local/declared",
            "repository": self.repository,
            "memory_mib": 128,
            "keep_warm": "0s",
            **changes,
        }

    def deploy(self, name: str, **changes: object) -> Revision:
        """Start a deployment through the front door."""
        return launch(self.live.ctx, self.live.runs, self.spec(name, **changes), actor="tester")

    def found(self, revision: Revision) -> Deployment:
        """Where that deployment is."""
        return deployment(self.live.ctx, revision.service_id, revision.number)

    def wait_until_serving(self, revision: Revision) -> str:
        """The address of the service once that revision serves and its run has ended."""

        def serves() -> bool:
            found = self.found(revision)
            if found.is_over:
                raise RuntimeError(found.failure)
            return found.serves

        wait_until(serves, within_s=DEPLOYED_WITHIN_S, what=f"{revision.id} serving")
        state = service_state(self.live.ctx, revision.service_id)
        if state.endpoint is None:
            raise RuntimeError(f"service {state.service.name} has no address")
        return state.endpoint

    def rollout(self, revision: Revision) -> Rollout | None:
        """The revision's rollout; None before there is one."""
        return self.found(revision).rollout


@contextmanager
def serving_platform(*, slots: int) -> Iterator[Serving]:
    """Up, with a model to serve; down, with nothing left, afterwards."""
    with platform(slots=slots) as live:
        repository = live.make_repository("faulty", HERE / "faulty")
        job = live.submit(hyperparameters={"seconds": 0.5, "epochs": 1}, output_model=MODEL)
        live.wait_for(job.id, "completed")
        yield Serving(live, repository)


def task_end(live: Live, dag_id: str, run_id: str, task_id: str, *, within_s: float = DEPLOYED_WITHIN_S) -> float:
    """When a task ended well by the engine's word, in seconds since the epoch."""

    def ended() -> float | None:
        rows = live.call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances").json()["task_instances"]
        row = next((each for each in rows if each["task_id"] == task_id), None)
        if row is not None and row["state"] in ("failed", "upstream_failed", "skipped"):
            raise RuntimeError(f"{task_id} of {run_id} is {row['state']}")
        return datetime.fromisoformat(row["end_date"]).timestamp() if row and row["state"] == "success" else None

    found: float = wait_until(ended, within_s=within_s, what=f"the end of {task_id} of {run_id}")
    return found
