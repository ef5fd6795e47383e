"""Service ``digits`` on a live platform, with versions of its model that misbehave as told, and clients that send requests."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from e2e.live import ROOT, Live, wait_until
from fermion.cli.load import Load
from fermion.domain.artifacts import ModelDraft
from fermion.domain.rollout.looks import Look
from fermion.domain.rollout.rollouts import Phase
from fermion.domain.serving.replicas import ReplicaState
from fermion.domain.serving.services import Replica, ReplicaPhase
from fermion.errors import NotFound
from fermion.usecases.launch import launch as launch_training
from fermion.usecases.serving.queries import Deployment, ServiceState, deployment, service_state
from fermion.usecases.serving.submit import launch
from fermion.usecases.serving.wishes import close, scale

NAME = "digits"
EXAMPLE = ROOT / "include/examples/digits"
PER_SECOND = 30.0
MOST_S = 400.0
USUAL_MS = 30.0
"""Every version takes so long for an answer, as a larger model would: the machine's own hiccups are then small beside it."""

DAMAGED = "model.joblib"

PLAN: dict[str, object] = {
    "steps": [50, 100],
    "interval": "1s",
    "warm_up": "1s",
    "bake_min": "4s",
    "bake_max": "40s",
    "min_requests": 10,
    "metrics": [
        {"name": "error_rate", "guard": "10%"},
        {"name": "latency_p95", "tolerance": 1.0, "guard": "2s"},
    ],
    "ready_timeout": "90s",
    "unready_limit": "10s",
}


@dataclass
class Answers:
    """What a group of clients got, answer by answer, where the new version is known by its nonsense (``is_nonsense``).

    Each holds when its request was sent and whether the new version gave it. An answer of class 5xx can only be its own.
    """

    given: list[tuple[datetime, bool]] = field(default_factory=list)

    def judge(self, answer: Any) -> bool:
        """Keep it; whether it is an error."""
        is_error = answer.status_code >= 500
        self.given.append((datetime.now(UTC) - answer.elapsed, is_error or is_nonsense(answer)))
        return is_error

    def between(self, begin: datetime, end: datetime | None = None) -> list[bool]:
        """Of each answer to a request that was sent then: whether the new version gave it."""
        return [is_new for at, is_new in list(self.given) if at > begin and (end is None or at <= end)]


@dataclass
class Served:
    """The service and what its rows need. One for a platform: the model is trained and the first version deployed once."""

    live: Live
    _trained: Path | None = field(default=None, init=False)
    _keys: int = field(default=0, init=False)

    # --- versions ---

    def publish(self, **faults: object) -> int:
        """The number of a new version of the model; ``faults`` as ``faults.py`` of the example has them."""
        with tempfile.TemporaryDirectory() as made:
            output = Path(made) / "output"
            shutil.copytree(self._model(), output)
            (output / "faults.json").write_text(json.dumps({"latency_ms": USUAL_MS, **faults}), encoding="utf-8")
            self._keys += 1
            draft = ModelDraft(model=NAME, metrics={}, lineage={"faults": faults}, created_at=self.live.ctx.clock.now())
            key = f"fault-table-{os.getpid()}-{self._keys}"
            return self.live.ctx.models.publish(draft, output, key=key).number

    def damage(self, version: int) -> None:
        """Change a byte of a published version's file ``DAMAGED`` in the model repository."""
        file = self.live.settings.models_dir / NAME / str(version) / DAMAGED
        file.chmod(0o644)
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    def _model(self) -> Path:
        """The folder of the trained model; trained through the pipeline when first asked for."""
        if self._trained is None:
            # The server's image holds all that the training needs, so one image is enough.
            spec = {**self._example("job.yaml"), "image": "digits-server:1"}
            made = launch_training(self.live.ctx, self.live.runs, spec, actor="tester")
            job = self.live.wait_for_end(made.id, within_s=600)
            assert job.status == "completed", job.explanation.message
            kept = self.live.folder / "trained"
            published = self.live.settings.models_dir / NAME / str(job.model_version)
            shutil.copytree(published, kept, ignore=shutil.ignore_patterns("manifest.json"))
            self._trained = kept
        return self._trained

    def _example(self, name: str) -> dict[str, object]:
        raw = YAML(typ="safe").load((EXAMPLE / name).read_text(encoding="utf-8"))
        return dict(self.live.settings.expand_spec(raw))

    # --- deployments ---

    def spec(self, version: int, *, plan: Mapping[str, object] | None = None, **changes: object) -> dict[str, object]:
        """The example's request, for that version, with a plan of a few short looks; ``plan`` changes parts of it."""
        return {
            **self._example("service.yaml"),
            "version": version,
            "plan": {**PLAN, **(plan or {})},
            "keep_warm": "0s",
            "ready_timeout": "90s",
            "retry_failed": True,  # one row's fault is nothing to the next one
            **changes,
        }

    def deploy(self, version: int, *, plan: Mapping[str, object] | None = None, **changes: object) -> Deployment:
        """Start a deployment through the front door."""
        state = self.state()
        replicas = {} if state is None else {"replicas": state.service.replicas}
        spec = self.spec(version, plan=plan, **{**replicas, **changes})
        made = launch(self.live.ctx, self.live.runs, spec, actor="tester")
        return deployment(self.live.ctx, made.service_id, made.number)

    def again(self, found: Deployment) -> Deployment:
        """The deployment as it is now."""
        return deployment(self.live.ctx, found.service.id, found.revision.number)

    def wait_for(self, found: Deployment, *phases: Phase, within_s: float = 90) -> Deployment:
        """The deployment once its rollout is in one of these phases; fails at once when it ended otherwise."""
        return self._wait(found, lambda now: now.rollout is not None and now.rollout.phase in phases, within_s, *phases)

    def wait_for_end(self, found: Deployment, *, within_s: float = 120) -> Deployment:
        """The deployment once it serves alone, or is over and holds nothing."""
        return self._wait(found, has_ended, within_s, "at its end")

    def _wait(
        self, found: Deployment, is_there: Callable[[Deployment], bool], within_s: float, *what: object
    ) -> Deployment:
        last = [found]

        def look() -> Deployment | None:
            last[:] = [now := self.again(found)]
            if is_there(now):
                return now
            if now.revision.phase in ("retired", "failed"):
                raise AssertionError(f"{now.revision.id} is {now.revision.phase}: {now.revision.explanation.message}")
            return None

        try:
            there: Deployment = wait_until(
                look, within_s=within_s, what=f"{found.revision.id} {', '.join(map(str, what))}"
            )
        except TimeoutError as late:
            now = last[0]
            rollout = f"; rollout {now.rollout.phase}: {now.rollout.explanation.message}" if now.rollout else ""
            raise TimeoutError(
                f"{late}; it is {now.revision.phase}: {now.revision.explanation.message}{rollout}"
            ) from None
        return there

    def wait_for_task(self, found: Deployment, task_id: str, state: str) -> None:
        """Returns once a task of its run is in that state."""
        assert found.revision.run is not None
        run = found.revision.run
        wait_until(lambda: self.live.runs.state(*run).tasks.get(task_id) == state, what=f"{task_id} {state}")

    def looks(self, found: Deployment) -> list[Look]:
        """The looks of its rollout so far."""
        assert found.rollout is not None
        with self.live.ctx.store.read() as tx:
            return list(tx.rollouts.looks(found.rollout.id))

    def since(self, found: Deployment, phase: Phase) -> datetime:
        """When its rollout came to that phase first."""
        assert found.rollout is not None
        with self.live.ctx.store.read() as tx:
            events = [event for _, event in tx.records.events(target=found.rollout.id)]
        return min(event.at for event in events if event.verb == f"rollout.{phase}")

    def exposed_s(self, found: Deployment) -> float | None:
        """From the moment at which the router gave the candidate requests to the one at which it was told to give it none."""
        assert found.rollout is not None
        with self.live.ctx.store.read() as tx:
            events = [event for _, event in tx.records.events(target=found.rollout.id)]
            weights = [event for _, event in tx.records.events(target=found.service.id, limit=10_000)]
        began = min((each.at for each in events if each.verb == f"rollout.{Phase.WARMING}"), default=None)
        back = [each.at for each in weights if each.verb == "service.weights" and began is not None and each.at > began]
        return (max(back) - began).total_seconds() if began is not None and back else None

    def run_state(self, found: Deployment) -> str:
        """Airflow's word for the run that carries it: ``absent``, ``running``, ``success``, ``failed`` …"""
        assert found.revision.run is not None
        return self.live.runs.state(*found.revision.run).state

    # --- the service ---

    def state(self) -> ServiceState | None:
        """The open service; None while there is none."""
        try:
            return service_state(self.live.ctx, NAME)
        except NotFound:
            return None

    def stand(self, replicas: int = 1) -> ServiceState:
        """The service with a good version that serves, so many ready replicas and no rollout: left from the row before, or made."""
        state = self.state()
        if state is not None and (state.service.candidate is not None or state.service.stable is None):
            self.clear()
            state = None
        if state is None:
            found = self.deploy(self.publish(), replicas=replicas)
            self.wait_for_end(found, within_s=300)
        elif state.service.replicas != replicas:
            scale(self.live.ctx, NAME, replicas, by="tester")
        return self.wait_until_whole(replicas)

    def wait_until_whole(self, replicas: int, *, within_s: float = 90) -> ServiceState:
        """The service, once exactly so many replicas are there and ready, all of the revision that serves."""

        def look() -> ServiceState | None:
            state = self.state()
            whole = state is not None and state.status == "ready" and state.current == len(state.replicas) == replicas
            return state if whole and state is not None and state.weights == _all_to_stable(state) else None

        found: ServiceState = wait_until(look, within_s=within_s, what=f"service {NAME} with {replicas} replicas")
        return found

    def clear(self) -> None:
        """Take the service down, whatever its state."""
        if self.state() is not None:
            close(self.live.ctx, NAME, by="tester")
            # Draining, stopping, ending and closing are a round each; the sync has one every 30 s, later on a busy machine.
            wait_until(lambda: self.state() is None, within_s=240, what=f"the end of service {NAME}")

    def clients(
        self,
        *,
        is_bad: Callable[[Any], bool] | None = None,
        most_s: float = MOST_S,
        headers: Mapping[str, str] | None = None,
        per_second: float = PER_SECOND,
    ) -> Load:
        """Clients of the service, to be entered."""
        state = self.state()
        assert state is not None
        assert state.endpoint is not None
        url = f"{state.endpoint}/v2/models/{NAME}/infer"
        return Load(url, QUESTION, per_second=per_second, most_s=most_s, is_bad=is_bad, headers=headers)

    # --- replicas ---

    def rows(self) -> list[Replica]:
        """Replicas that have not ended."""
        with self.live.ctx.store.read() as tx:
            return list(tx.replicas.find(phases=frozenset(ReplicaPhase) - {ReplicaPhase.ENDED}))

    def ready_replicas(self, revision: str) -> list[str]:
        """Names of the ready ones of a revision."""
        look = self.live.ctx.driver_of("local/declared").replicas.look
        names = [row.name for row in self.rows() if row.revision == revision]
        return [name for name in names if look(name).state is ReplicaState.READY]

    def server(self, replica: str) -> psutil.Process:
        """The model server of a replica."""
        found: psutil.Process = wait_until(
            lambda: next((each for each in self.live.replicas() if each[0] == replica and "serve.py" in each[2]), None),
            within_s=20,
            what=f"a server of {replica}",
        )[1]
        return found


def has_ended(found: Deployment) -> bool:
    """Whether it serves alone, or is over and holds nothing."""
    if found.serves:
        return found.old is None or found.old.phase in ("retired", "failed")
    return found.revision.phase in ("retired", "failed")


def is_nonsense(answer: Any) -> bool:
    """Whether it holds a confidence that is no number: in JSON, which has no word for that, kserve writes ``null``."""
    if answer.status_code != 200:
        return False
    values = [value for each in answer.json()["outputs"] if each["name"] == "confidence" for value in each["data"]]
    return any(value is None or math.isnan(value) for value in values)


def _all_to_stable(state: ServiceState) -> dict[str, int]:
    return {each.id: 100 for each in state.revisions if each.number == state.service.stable}


def _question() -> dict[str, object]:
    """One image of a digit, as the Open Inference Protocol has it."""
    pixels = [float(place % 8 in (3, 4)) for place in range(64)]
    return {"inputs": [{"name": "pixels", "shape": [1, 64], "datatype": "FP64", "data": pixels}]}


QUESTION = _question()
