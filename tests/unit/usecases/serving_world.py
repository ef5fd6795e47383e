"""The platform in memory with a published model, for tests of services: deployments, clients and looks, as time is told to move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from world import World

from builders import make_node, seconds
from fermion.adapters.memory.driver import MemoryDriver
from fermion.adapters.memory.inference import Answer, MemoryInference, MemoryModel
from fermion.domain.artifacts import ModelDraft, ModelVersion
from fermion.domain.leases import HolderKind
from fermion.domain.rollout.looks import Look
from fermion.domain.rollout.rollouts import Rollout
from fermion.domain.serving.routing import Spread
from fermion.domain.serving.services import Replica, ReplicaPhase, Revision, Service
from fermion.domain.serving.tensors import Target, Tensor
from fermion.usecases.serving.stage import stage
from fermion.usecases.serving.submit import submit
from fermion.usecases.serving.tend import ServiceTender
from fermion.usecases.serving.writing import load_revision, load_service

PLAN: dict[str, object] = {
    "steps": [20, 100],
    "interval": "2s",
    "warm_up": "1s",
    "bake_min": "4s",
    "bake_max": "20s",
    "min_requests": 20,
    "alpha": 0.05,
}


def doubled(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """What a model of this world answers: twice what it is given."""
    return [replace(each, name="doubled", data=tuple(2 * float(value) for value in each.data)) for each in inputs]


class WorldInference(MemoryInference):
    """Asks the replicas of the world where they listen; ``answers`` maps a revision to how its model answers."""

    def __init__(self, driver: MemoryDriver) -> None:
        super().__init__()
        self.driver = driver
        self.answers: dict[str, Answer] = {}

    def predict(self, target: Target, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """See ``ports.Inference``."""
        self.models.clear()
        for name in self.driver.replicas.names():
            for place in self.driver.replicas.look(name).endpoints.values():
                model = MemoryModel(self.answers.get(name.rpartition("-")[0], doubled))
                self.models[f"http://{place.host}:{place.port}", "digits"] = model
        return super().predict(target, inputs)


class ServingWorld(World):
    """``gpus`` declared slots; ``publish`` makes model versions, ``deploy`` a revision of service ``digits``."""

    def __init__(self, folder: Path, *, gpus: int = 6, **policy: Any) -> None:
        super().__init__(folder, gpus=gpus, **policy)
        self.folder = folder
        self.inference = WorldInference(self.driver)
        self.ctx = replace(self.ctx, inference=self.inference)
        self.services = ServiceTender(self.ctx)
        with self.ctx.store.begin() as tx:
            tx.catalog.put_nodes("local", [make_node("n0", gpus=gpus)])
        self.publish()

    # --- what people and tasks do -----------------------------------------------------------------------------------

    def publish(self, text: str = "weights") -> ModelVersion:
        """The next version of model ``digits``."""
        output = self.folder / "output"
        output.mkdir(exist_ok=True)
        (output / "model.joblib").write_text(text)
        number = len(self.models.versions("digits")) + 1
        draft = ModelDraft(model="digits", metrics={}, lineage={}, created_at=self.clock.now())
        return self.models.publish(draft, output, key=f"job-{number}-a1")

    def service_request(self, **changes: Any) -> dict[str, object]:
        """A request that is all right."""
        return {
            "name": "digits",
            "model": "digits",
            "engine": "command",
            "command": "serve --port {port:http}",
            "image": "digits:1",
            "pool": "local/declared",
            "replicas": 2,
            "plan": PLAN,
            "keep_warm": "60s",
            **changes,
        }

    def submit_service(self, *, actor: str = "ann", run_id: str | None = None, **changes: Any) -> Revision:
        """Recorded; nothing is fetched yet."""
        return submit(self.ctx, self.service_request(**changes), run_id=run_id, actor=actor)

    def deploy(self, **changes: Any) -> Revision:
        """Recorded, and everything fetched."""
        made = self.submit_service(**changes)
        return stage(self.ctx, made.service_id, made.number)

    def serving(self, **changes: Any) -> Revision:
        """A first revision that serves."""
        made = self.deploy(**changes)
        self.rounds(6)
        after = self.revision(made)
        assert after.phase == "serving", after.explanation.message
        return after

    def rounds(self, count: int, *, every_s: float = 0.2, requests: int = 0) -> None:
        """So many rounds of whoever tends the services, with that many requests of clients before each."""
        for _ in range(count):
            self.ask(requests)
            self.clock.advance(seconds(every_s))
            self.services.round()

    def ask(self, count: int) -> Counter[int]:
        """Requests of clients; how they were answered."""
        return Counter(self.driver.router.request("/digits/v2/models/digits/infer").status for _ in range(count))

    # --- what is there ----------------------------------------------------------------------------------------------

    def service(self, name: str = "digits") -> Service:
        """As it is now."""
        with self.ctx.store.read() as tx:
            return load_service(tx, name)

    def revision(self, revision: Revision) -> Revision:
        """As it is now."""
        return load_revision(self.ctx, revision.service_id, revision.number)

    def rollout(self, revision: Revision) -> Rollout:
        """The revision's."""
        with self.ctx.store.read() as tx:
            found = tx.rollouts.get(f"ro-{revision.id}")
        assert found is not None
        return found

    def looks(self, revision: Revision) -> list[Look]:
        """All of them."""
        with self.ctx.store.read() as tx:
            return list(tx.rollouts.looks(f"ro-{revision.id}"))

    def rows(self, *phases: ReplicaPhase) -> list[Replica]:
        """Replicas in these phases, else all that have not ended."""
        wanted = phases or tuple(set(ReplicaPhase) - {ReplicaPhase.ENDED})
        with self.ctx.store.read() as tx:
            return list(tx.replicas.find(phases=wanted))

    def held(self) -> int:
        """GPUs that replicas hold."""
        with self.ctx.store.read() as tx:
            return sum(lease.gpus for lease in tx.leases.live() if lease.holder_kind is HolderKind.SERVICE)

    def weights(self) -> dict[str, int]:
        """What the router says."""
        return dict(self.driver.router.applied().get("digits", Spread()).weights)
