"""The demo's second half: serve what was trained, release a better version by canary, and see a bad one go back by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from fermion.cli.jobs import read_spec
from fermion.cli.load import Load, Seen
from fermion.cli.services import wait_for_deployment
from fermion.cli.session import Session
from fermion.cli.watching import wait_for_end
from fermion.domain.rollout.rollouts import Phase
from fermion.domain.serving.replicas import ReplicaState
from fermion.errors import NotFound, OutsideUnavailable
from fermion.usecases.launch import launch as launch_training
from fermion.usecases.serving.queries import Deployment, service_state
from fermion.usecases.serving.submit import launch as launch_service

Say = Callable[[str], None]

NAME = "digits"
REQUESTS_PER_S = 40.0
TRAINED_WITHIN = timedelta(minutes=3)
DEPLOYED_WITHIN = timedelta(minutes=4)
READY_WITHIN_S = 60.0
BETTER: Mapping[str, object] = {"epochs": 60}
BAD: Mapping[str, object] = {"fault-error-share": 0.3}


@dataclass(slots=True)
class Story:
    """What happened, act by act; each value is read back from the system or was seen by the clients."""

    promoted: bool = False
    rolled_back: bool = False
    fault_to_safe_s: float | None = None
    serving_replicas: int = 0
    failed_requests: int = 0
    bad_version_errors: int = 0
    requests: int = 0
    verdict: str = ""
    notes: list[str] = field(default_factory=list)


def play(here: Session, say: Say, *, rollback_only: bool, quiet: bool) -> Story:
    """All acts, or only the last.

    Raises:
        OutsideUnavailable: something did not come up in its time.
    """
    story = Story()
    if not rollback_only:
        say("Deploying the model as service digits …")
        _deploy_trained(here, story, quiet=quiet)
    url = _endpoint(here)
    if not rollback_only:
        _release_better(here, say, url, story, quiet=quiet)
    _release_bad(here, say, url, story, quiet=quiet)
    state = service_state(here.platform, NAME)
    story.serving_replicas = sum(seen is not None and seen.state is ReplicaState.READY for _, seen in state.replicas)
    return story


def _deploy_trained(here: Session, story: Story, *, quiet: bool) -> None:
    """The first act. A service that is there already takes the version by canary, which needs requests to judge it by."""
    try:
        service_state(here.platform, NAME)
    except NotFound:
        _deploy(here, quiet=quiet)
        return
    with Load(_endpoint(here), _question(), per_second=REQUESTS_PER_S) as load:
        _deploy(here, quiet=quiet)
    _count(here, story, load.seen)


def _endpoint(here: Session) -> str:
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        state = service_state(here.platform, NAME)
        if state.status == "ready" and state.endpoint:
            return f"{state.endpoint}/v2/models/{NAME}/infer"
        if time.monotonic() > deadline:
            raise OutsideUnavailable(f"service {NAME} is {state.status}; `fermion service {NAME}` says why", what=NAME)
        time.sleep(0.3)


def _release_better(here: Session, say: Say, url: str, story: Story, *, quiet: bool) -> None:
    say("Training a better version, while clients send requests …")
    with Load(url, _question(), per_second=REQUESTS_PER_S) as load:
        _train(here, BETTER)
        say("Releasing it by canary …")
        found = _deploy(here, quiet=quiet)
    story.promoted = found.serves and found.rollout is not None and found.rollout.phase is Phase.PROMOTED
    _count(here, story, load.seen)
    say(f"  {load.seen.requests} requests meanwhile, {load.seen.failed.total()} unanswered, {load.seen.bad} errors.")


def _release_bad(here: Session, say: Say, url: str, story: Story, *, quiet: bool) -> None:
    say("Training a deliberately bad version: its server answers three requests of ten with an error …")
    with Load(url, _question(), per_second=REQUESTS_PER_S) as load:
        _train(here, BAD)
        say("Releasing it by canary; nobody will touch anything …")
        found = _deploy(here, quiet=quiet, retry_failed=True)  # its files are those of the demo before
        time.sleep(1)  # whatever is still wrong would be seen now
    rollout = found.rollout
    story.rolled_back = rollout is not None and rollout.phase is Phase.ROLLED_BACK and not found.serves
    story.verdict = "" if rollout is None else rollout.explanation.message
    story.fault_to_safe_s = load.seen.bad_for_s
    story.bad_version_errors = load.seen.bad
    _count(here, story, load.seen)


def _count(here: Session, story: Story, seen: Seen) -> None:
    """Requests that failed: those that nobody answered, and those that the router had to answer itself."""
    state = service_state(here.platform, NAME)
    driver = here.platform.driver_of(state.service.pool)
    counters = driver.router.counters([each.id for each in state.revisions])
    story.requests += seen.requests
    # The router counts since it was started; the demo is the only client.
    made = sum(each.router_made for each in counters.values())
    story.failed_requests = max(story.failed_requests, made) + seen.failed.total()


def _train(here: Session, changes: Mapping[str, object]) -> None:
    """One more version of the model.

    Raises:
        OutsideUnavailable: it did not complete.
    """
    spec = here.settings.expand_spec(read_spec(here.settings.root / "include/examples/digits/job.yaml"))
    usual = spec.get("hyperparameters")
    spec["hyperparameters"] = {**(usual if isinstance(usual, dict) else {}), **changes}
    made = launch_training(here.platform, here.runs, spec, actor=here.user)
    job = wait_for_end(here.platform, made.id, timeout_s=TRAINED_WITHIN.total_seconds(), quiet=True)
    if job.status != "completed":
        raise OutsideUnavailable(f"training {job.id} is {job.status}: {job.explanation.message}", what=job.id)


def _deploy(here: Session, *, quiet: bool, retry_failed: bool = False) -> Deployment:
    """The newest version of the model, deployed; the deployment as it ended."""
    from fermion.usecases.serving.queries import deployment

    spec = here.settings.expand_spec(read_spec(here.settings.root / "include/examples/digits/service.yaml"))
    made = launch_service(here.platform, here.runs, {**spec, "retry_failed": retry_failed}, actor=here.user)
    found = deployment(here.platform, made.service_id, made.number)
    return wait_for_deployment(here, found, timeout=DEPLOYED_WITHIN.total_seconds(), quiet=quiet)


def _question() -> dict[str, object]:
    """One image of a digit, as the Open Inference Protocol has it."""
    pixels = [0.0] * 64
    for row in range(8):
        pixels[8 * row + 3] = pixels[8 * row + 4] = 1.0
    return {"inputs": [{"name": "pixels", "shape": [1, 64], "datatype": "FP64", "data": pixels}]}
