"""A plan's splits and copies through a real Envoy: where requests really go, from the deployment's request to its verdict.

The platform is the one in memory, whose time is told to move; Envoy, the replicas behind it and the clients before it are
real. Who answered is asked of the answers, and who was asked of the replicas themselves.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from router_contract import LIMIT_S, SIGMAS, Reply, until
from router_replica import Replica
from test_envoy_router import Envoy, ask

from fermion.adapters.envoy import EnvoyRouter
from fermion.adapters.memory.replicas import MemoryReplicas
from fermion.domain.rollout.looks import Outcome
from fermion.domain.rollout.plan import Share
from fermion.domain.rollout.replay import replay
from fermion.domain.rollout.rollouts import Phase
from fermion.domain.serving.replicas import ReplicaSpec
from fermion.domain.serving.routing import Endpoint, Match, MatchKind, Mirror, RouteTable, Spread, copies_of
from fermion.domain.serving.services import Revision
from fermion.usecases.serving.approvals import answer
from fermion.usecases.serving.queries import service_state
from fermion.usecases.serving.sync import record_traffic

sys.path.append(str(Path(__file__).resolve().parents[1] / "unit" / "usecases"))

from serving_world import PLAN, ServingWorld

OLD, NEW = "inf-digits-001-r1", "inf-digits-001-r2"
BETA = {"X-Group": "beta"}
ROUNDS = 150
GUARDED = {**PLAN, "metrics": [{"name": "error_rate", "guard": 0.3}]}
HEADER = {"split": {"header": "x-group", "value": "beta"}, "approval": True}
COOKIE = {"split": {"cookie": "group", "value": "b"}, "approval": True}


class RealReplicas(MemoryReplicas):
    """Replicas of memory whose ports are those of real servers, one for each."""

    def __init__(self, world: ServingWorld) -> None:
        super().__init__(world.clock, world.driver.line)
        self.servers: dict[str, list[Replica]] = defaultdict(list)
        self.manners: dict[str, tuple[int, float]] = {}

    def _endpoints(self, spec: ReplicaSpec) -> dict[str, Endpoint]:
        revision = spec.name.rpartition("-")[0]
        self.servers[revision].append(Replica(revision).start())
        self.behave(revision, *self.manners.get(revision, (200, 0.0)))
        return {name: Endpoint(host="127.0.0.1", port=self.servers[revision][-1].port) for name in spec.ports}

    def behave(self, revision: str, status: int, sleep_s: float = 0.0) -> None:
        """From now on the revision's replicas answer so, and those that are still to come."""
        self.manners[revision] = (status, sleep_s)
        for each in self.servers[revision]:
            each.status, each.sleep_s = status, sleep_s

    def asked(self, revision: str) -> int:
        """How many requests and copies came to it."""
        return sum(each.started for each in self.servers[revision])

    def close(self) -> None:
        for each in itertools.chain(*self.servers.values()):
            each.stop()


class EnvoyWorld(ServingWorld):
    """The platform in memory before a real router."""

    def __init__(self, folder: Path, envoy: Envoy) -> None:
        super().__init__(folder)
        self.port = envoy.port
        self.router = EnvoyRouter(envoy.folder, self.clock)
        self.servers = RealReplicas(self)
        self.driver.router = self.router  # type: ignore[assignment]
        self.driver.replicas = self.servers

    def get(self, count: int, *, headers: dict[str, str] | None = None, cookie: str | None = None) -> list[Reply]:
        """So many requests of one client."""
        given = {**(headers or {}), **({"Cookie": cookie} if cookie else {})}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)) as client:
            return [ask(client, "/digits/v2/models/digits/infer", headers=given, body=b"{}") for _ in range(count)]

    def ask(self, count: int) -> Counter[int]:
        return Counter(reply.status for reply in self.get(count))

    def who(self, count: int, **brings: Any) -> Counter[str | None]:
        """Who answered so many requests; all of them were answered well."""
        replies = self.get(count, **brings)
        assert {reply.status for reply in replies} <= {200}
        return Counter(reply.backend for reply in replies)

    def spread(self) -> Spread:
        """By Envoy's own word."""
        return self.router.applied()["digits"]

    def requests(self, *keys: str) -> dict[str, int]:
        """What Envoy counted; a request may be counted a moment after its client was answered."""
        return {key: each.requests for key, each in self.router.counters(keys).items()}


@pytest.fixture
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    made = Envoy(tmp_path_factory.mktemp("e"))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def world(tmp_path: Path, envoy: Envoy) -> Iterator[EnvoyWorld]:
    made = EnvoyWorld(tmp_path, envoy)
    yield made
    made.router.apply(RouteTable())
    made.servers.close()


def trying(world: EnvoyWorld, *steps: object, **plan: Any) -> Revision:
    """A second revision, tried by a plan of these steps and the promotion."""
    world.serving()
    world.publish("better")
    made = world.deploy(plan={**GUARDED, "steps": [*steps, 100], **plan})
    world.rounds(1)
    return made


def reach(world: EnvoyWorld, made: Revision, phase: Phase, **brings: Any) -> None:
    """Rounds under requests, of which half bring that, until the rollout is there."""
    for _ in range(ROUNDS):
        if world.rollout(made).phase is phase:
            return
        if brings:
            world.get(25, **brings)
        world.rounds(1, every_s=0.5, requests=25)
    raise AssertionError(f"it is {world.rollout(made).phase}: {world.rollout(made).explanation.message}")


def approve(world: EnvoyWorld, made: Revision) -> None:
    answer(world.ctx, f"ro-{made.id}", approved=True, by="ann", at=world.clock.now())


def is_share(seen: int, count: int, share: float) -> bool:
    """Whether so many of them are that share, but for chance."""
    return abs(seen - count * share) <= SIGMAS * (count * share * (1 - share)) ** 0.5


# --- by header and by cookie ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "match", "brings", "others"),
    [
        pytest.param(
            HEADER,
            Match(kind=MatchKind.HEADER, name="x-group", value="beta", backend=NEW),
            {"headers": BETA},
            [{"headers": {"X-Group": "BETA"}}, {"headers": {"X-Groups": "beta"}}, {"cookie": "x-group=beta"}],
            id="header",
        ),
        pytest.param(
            COOKIE,
            Match(kind=MatchKind.COOKIE, name="group", value="b", backend=NEW),
            {"cookie": "other=1; group=b"},
            [{"cookie": "group=bb"}, {"headers": {"group": "b"}}],
            id="cookie",
        ),
    ],
)
def test_only_requests_that_bring_it_reach_the_candidate_until_a_person_says_more(
    world: EnvoyWorld, step: object, match: Match, brings: dict[str, Any], others: list[dict[str, Any]]
) -> None:
    made = trying(world, step, 50)
    reach(world, made, Phase.BAKING, **brings)
    assert world.spread() == Spread(weights={OLD: 100}, matches=(match,))
    before = {revision: world.servers.asked(revision) for revision in (OLD, NEW)}
    assert world.who(100, **brings) == {NEW: 100}
    for other in ({}, *others):
        assert world.who(50, **other) == {OLD: 50}, other
    asked = {revision: world.servers.asked(revision) - before[revision] for revision in before}
    assert asked == {NEW: 100, OLD: 50 * (1 + len(others))}

    reach(world, made, Phase.AWAITING_APPROVAL, **brings)
    approve(world, made)
    reach(world, made, Phase.BAKING)
    assert world.spread() == Spread(weights={OLD: 50, NEW: 50})
    assert is_share(world.who(400, **brings)[NEW], 400, 0.5), "who brings it is drawn as all others are"
    reach(world, made, Phase.PROMOTED)
    assert world.who(20) == world.who(20, **brings) == {NEW: 20}
    assert replay(world.rollout(made).plan, world.looks(made)) == []


def test_a_group_that_meets_errors_is_sent_back_to_stable(world: EnvoyWorld) -> None:
    made = trying(world, HEADER)
    reach(world, made, Phase.BAKING)
    world.servers.behave(NEW, 500)
    reach(world, made, Phase.ROLLED_BACK, headers=BETA)
    assert "crosses its guard of 30 %" in world.rollout(made).explanation.message
    assert world.spread() == Spread(weights={OLD: 100})
    came = world.servers.asked(NEW)
    assert world.who(50, headers=BETA) == {OLD: 50}
    assert world.servers.asked(NEW) == came


def test_a_split_outlives_the_router(world: EnvoyWorld, envoy: Envoy) -> None:
    made = trying(world, HEADER)
    reach(world, made, Phase.BAKING)
    envoy.kill()
    envoy.start()
    assert world.who(30, headers=BETA) == {NEW: 30}
    assert world.who(30) == {OLD: 30}
    assert world.spread().matches[0].backend == NEW


# --- sticky ---------------------------------------------------------------------------------------------------------------


def test_each_client_is_drawn_once_and_then_stays(world: EnvoyWorld) -> None:
    made = trying(world, {"weight": 30, "split": {"cookie": "variant"}, "approval": True}, 50)
    reach(world, made, Phase.BAKING)
    assert world.spread() == Spread(weights={OLD: 70, NEW: 30}, sticky_cookie="variant")
    first = world.get(400)
    cookies = [reply.cookie for reply in first]
    assert [cookie and cookie[1] for cookie in cookies] == [reply.backend for reply in first]
    assert is_share(sum(reply.backend == NEW for reply in first), 400, 0.3)
    for backend in (OLD, NEW):
        again = world.get(50, cookie=f"variant={backend}")
        assert {(reply.backend, reply.cookie) for reply in again} == {(backend, None)}
    reach(world, made, Phase.AWAITING_APPROVAL)
    assert all(look.outcome is not Outcome.FAIL for look in world.looks(made))
    approve(world, made)
    reach(world, made, Phase.BAKING)
    assert world.spread() == Spread(weights={OLD: 50, NEW: 50})
    assert is_share(world.who(400, cookie=f"variant={OLD}")[NEW], 400, 0.5), "the cookie counts for nothing any more"


# --- fixed ----------------------------------------------------------------------------------------------------------------


def test_a_fixed_split_is_what_was_asked_for_as_long_as_was_asked_for(world: EnvoyWorld) -> None:
    made = trying(world, {"split": {"fixed": 30, "for": "10s"}})
    reach(world, made, Phase.BAKING)
    began = world.clock.now()
    assert is_share(world.who(600)[NEW], 600, 0.3)
    reach(world, made, Phase.PROMOTED)
    assert (world.clock.now() - began).total_seconds() >= 10
    counted = [look.measured.readings[0] for look in world.looks(made)]
    new, old = (sum(sum(getattr(each, arm)) for each in counted) for arm in ("canary", "stable"))
    assert is_share(new, new + old, 0.3), "and the looks counted it"


# --- copies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("percent", [100, 40])
def test_copies_reach_the_candidate_and_its_answers_reach_nobody(world: EnvoyWorld, percent: int) -> None:
    made = trying(world, {"mirror": percent}, 50)
    reach(world, made, Phase.BAKING)
    assert world.spread() == Spread(weights={OLD: 100}, mirror=Mirror(backend=NEW, percent=percent))
    until(lambda: world.servers.asked(NEW) == world.requests(copies_of(NEW))[copies_of(NEW)])
    record_traffic(world.ctx)
    before, copies = world.requests(OLD, NEW), world.servers.asked(NEW)
    assert world.who(300) == {OLD: 300}, "every answer is stable's"
    least = 300 if percent == 100 else 1
    until(lambda: world.servers.asked(NEW) - copies >= least and world.requests(OLD)[OLD] - before[OLD] == 300)
    until(lambda: world.servers.asked(NEW) == world.requests(copies_of(NEW))[copies_of(NEW)])
    assert is_share(world.servers.asked(NEW) - copies, 300, percent / 100)
    assert world.requests(NEW) == {NEW: 0} == {NEW: before[NEW]}, "a copy is no request"
    world.clock.advance(world.rollout(made).plan.interval)
    lately = service_state(world.ctx, "digits").lately
    assert lately is not None
    assert lately.requests == 300, "the service's figures know no copies"


def test_copies_that_are_as_good_lead_on_by_themselves_and_then_stop(world: EnvoyWorld) -> None:
    patient = {"name": "latency_p95", "tolerance": 50}  # both arms share one busy process here
    made = trying(world, {"mirror": 100}, HEADER, metrics=[{"name": "error_rate", "guard": 0.3}, patient])
    world.servers.behave(OLD, 200, 0.005)
    world.servers.behave(NEW, 200, 0.005)
    for _ in range(ROUNDS):
        if world.rollout(made).step == 1:
            break
        world.rounds(1, every_s=0.5, requests=25)
    looks = world.looks(made)
    assert looks[-1].outcome is Outcome.PASS
    assert {look.measured.share for look in looks} == {Share(mirror_percent=100)}
    reading = looks[-1].measured.readings[0]
    assert sum(reading.canary) > 0 < sum(reading.stable)
    reach(world, made, Phase.BAKING, headers=BETA)
    assert world.spread().mirror is None
    until(lambda: world.router.counters([copies_of(NEW)])[copies_of(NEW)].active == 0)
    came = world.servers.asked(NEW)
    assert world.who(50) == {OLD: 50}
    assert world.who(1, headers=BETA) == {NEW: 1}
    assert world.servers.asked(NEW) == came + 1


@pytest.mark.parametrize(
    ("status", "sleep_s", "metric"), [(500, 0.0, "error_rate"), (200, 0.06, "latency_p95")], ids=["errors", "slow"]
)
def test_a_candidate_whose_copies_are_worse_is_gone_before_a_client_met_it(
    world: EnvoyWorld, status: int, sleep_s: float, metric: str
) -> None:
    made = trying(world, {"mirror": 100}, metrics=["error_rate", "latency_p95"])
    world.servers.behave(NEW, status, sleep_s)
    seen: Counter[str | None] = Counter()
    for _ in range(ROUNDS):
        if world.rollout(made).is_final:
            break
        seen += world.who(25)
        world.rounds(1, every_s=0.5)
    assert world.rollout(made).phase is Phase.ROLLED_BACK
    assert f"{metric} is surely worse" in world.rollout(made).explanation.message
    assert seen.keys() == {OLD}
    came = world.servers.asked(NEW)
    assert world.who(50) == {OLD: 50}
    assert world.servers.asked(NEW) == came, "no copy comes any more"
    assert replay(world.rollout(made).plan, world.looks(made)) == []
