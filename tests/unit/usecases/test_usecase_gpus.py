"""Whose GPUs they are, whatever happens to trainings and services side by side: within capacity and every quota, at every
moment by both sums, and to the GPU-second in the ledger."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from machine_settings import plays
from serving_world import PLAN, ServingWorld
from world import NO_PATIENCE

from builders import make_quota, seconds
from fermion.domain.accounting import account, allocated, allocated_by_kind, ledger_gaps, total
from fermion.domain.jobs import HOLDING as JOB_HOLDING
from fermion.domain.leases import HolderKind, Lease
from fermion.domain.pools import TeamQuota
from fermion.domain.records import LedgerEntry
from fermion.domain.rollout.rollouts import WishKind
from fermion.domain.serving.replicas import ReplicaState
from fermion.domain.serving.services import HOLDING as REPLICA_HOLDING
from fermion.domain.serving.services import SERVICE_DAG, ReplicaPhase, Revision
from fermion.domain.workloads import WorkloadState
from fermion.errors import FermionError
from fermion.ports import Transaction
from fermion.usecases.release import release
from fermion.usecases.serving import release as serving_release
from fermion.usecases.serving.stage import stage
from fermion.usecases.serving.tend import ServiceTender
from fermion.usecases.serving.wishes import close, roll_back, scale, wish
from fermion.usecases.stop import request_stop
from fermion.usecases.sync import sync_platform
from fermion.usecases.tend import Tender

POOL = "local/declared"
LONG_AGO = datetime.fromisoformat("2000-01-01T00:00:00+00:00")
OWNERS = {"digits": "ann", "letters": "bob"}
TEAMS = {"digits": "red", "letters": "blue"}
GPUS = 8
RARELY = st.integers(0, 3)
QUICK = {**PLAN, "warm_up": "0s", "bake_min": "1s", "interval": "1s", "bake_max": "6s", "ready_timeout": "20s"}


class GpuMachine(RuleBasedStateMachine):
    """Two services and any number of trainings in one pool of eight GPUs, whose users and teams have their limits."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="fermion-gpus-"))
        self.patch = pytest.MonkeyPatch()

    @initialize(per_user=st.sampled_from([None, 4, 5]), has_teams=st.booleans(), serve=st.booleans())
    def begin(self, per_user: int | None, has_teams: bool, serve: bool) -> None:
        teams = {"red": make_quota(3, borrowing=2), "blue": make_quota(2, borrowing=2, lending=1)}
        self.world = ServingWorld(self.folder, gpus=GPUS, max_gpus_per_user=per_user, teams=teams if has_teams else {})
        self.restart()
        if serve:
            for name in OWNERS:
                self.put_up(name)
            self.rounds(6, 0, 0.2)
        # Whoever waits for the end of a deployment waits in this world's time.
        self.patch.setattr(serving_release, "sleep", lambda _: self.world.clock.advance(seconds(1)))

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.finish()
        self.patch.undo()
        shutil.rmtree(self.folder, ignore_errors=True)

    def finish(self) -> None:
        """All runs end, all services close: in the end nothing is held, and the ledger is even."""
        with self.world.ctx.store.read() as tx:
            runs = [job.run for job in tx.jobs.find()]
        for run in runs:
            if run is not None:
                self.world.runs.end(*run, "failed")
        for name in OWNERS:
            self.task(lambda name=name: close(self.world.ctx, name, by="ann"))
        for _ in range(8):
            self.world.pass_time(30)
            sync_platform(self.world.ctx)
        with self.world.ctx.store.read() as tx:
            assert not tx.leases.live()
            assert sum(entry.gpus for entry in tx.leases.ledger()) == 0

    def task(self, work: Callable[[], object]) -> None:
        """The engine's and the command line's part: an error is the caller's, not the platform's."""
        with contextlib.suppress(FermionError):
            work()

    # --- trainings ----------------------------------------------------------------------------------------------------

    @rule(gpus=st.integers(1, 3), name=st.sampled_from(sorted(OWNERS)), priority=st.sampled_from([0, 0, 200]))
    def train(self, gpus: int, name: str, priority: int) -> None:
        def start() -> None:
            asked = {"gpus_per_node": gpus, "priority": priority, "team": TEAMS[name]}
            self.world.started(actor=OWNERS[name], **asked)

        with contextlib.suppress(AssertionError):  # it waits in line
            self.task(start)

    @rule(data=st.data(), well=st.booleans())
    def end_training(self, data: st.DataObject, well: bool) -> None:
        names = [
            name
            for name in self.world.driver.workloads.names()
            if self.world.driver.workloads.look(name).state is WorkloadState.RUNNING
        ]
        if names:
            name = data.draw(st.sampled_from(names))
            self.world.driver.workloads.exit(name, 0 if well else 1)

    @rule(data=st.data(), how=st.sampled_from(["stop", "release", "end"]))
    def give_up_training(self, data: st.DataObject, how: str) -> None:
        with self.world.ctx.store.read() as tx:
            jobs = sorted(job.id for job in tx.jobs.find() if not job.is_final)
        if not jobs:
            return
        job = self.world.job(data.draw(st.sampled_from(jobs)))
        if how == "stop":
            request_stop(self.world.ctx, job.id, actor="ann")
        elif how == "release":
            self.task(lambda: release(self.world.ctx, job.id, patience=NO_PATIENCE))
        elif job.run is not None:
            self.world.runs.end(*job.run, "failed")

    # --- services -----------------------------------------------------------------------------------------------------

    @rule(
        name=st.sampled_from(sorted(OWNERS)),
        replicas=st.integers(1, 3),
        gpus=st.sampled_from([1, 1, 2]),
        capacity=st.sampled_from(["wait", "borrow", "swap"]),
        when_busy=st.sampled_from(["wait", "wait", "supersede"]),
        keep_warm=st.sampled_from(["0s", "20s"]),
        is_bad=st.sampled_from([False, False, True]),
        count=st.sampled_from([0, 5, 30]),
    )
    def deploy(self, name: str, is_bad: bool, count: int, **asked: object) -> None:
        """The next revision; clients ask for so many rounds, in which a good one may be promoted."""
        self.put_up(name, is_bad=is_bad, **asked)
        self.rounds(count, 40, 0.5)

    def put_up(self, name: str, *, is_bad: bool = False, **asked: object) -> None:
        def start() -> None:
            usual = {"name": name, "team": TEAMS[name], "retry_failed": True, "plan": QUICK, "replicas": 1}
            made = self.world.submit_service(actor=OWNERS[name], **{**usual, **asked})
            self.world.runs.trigger(SERVICE_DAG, made.id, {})
            self.world.runs.put_task(SERVICE_DAG, made.id, "canary", "running")
            self.world.driver.router.answers(made.id, 500 if is_bad else 200)
            stage(self.world.ctx, made.service_id, made.number)

        self.task(start)

    @rule(name=st.sampled_from(sorted(OWNERS)), replicas=st.integers(1, 6))
    def scale(self, name: str, replicas: int) -> None:
        self.task(lambda: scale(self.world.ctx, name, replicas, by="ann"))

    @rule(name=st.sampled_from(sorted(OWNERS)), kind=st.sampled_from(list(WishKind)))
    def steer(self, name: str, kind: WishKind) -> None:
        self.task(lambda: wish(self.world.ctx, name, kind, by="ann"))

    @rule(name=st.sampled_from(sorted(OWNERS)))
    def roll_back(self, name: str) -> None:
        self.task(lambda: roll_back(self.world.ctx, name, to=None, by="ann"))

    @rule(name=st.sampled_from(sorted(OWNERS)), luck=RARELY)
    def close(self, name: str, luck: int) -> None:
        if not luck:
            self.task(lambda: close(self.world.ctx, name, by="ann"))

    @rule(data=st.data(), state=st.sampled_from(["failed", "success"]), luck=RARELY)
    def end_deployment(self, data: st.DataObject, state: str, luck: int) -> None:
        """Its run is over without its teardown: the sync lets go of what never came to serve."""
        if luck:
            return
        with self.world.ctx.store.read() as tx:
            revisions = sorted(each.id for each in tx.services.open_revisions())
        if revisions:
            self.world.runs.end(SERVICE_DAG, data.draw(st.sampled_from(revisions)), state)

    @rule(data=st.data(), how=st.sampled_from(["crash", "crash_always", "lose", "orphans", "unready", "ignore_term"]))
    def harm(self, data: st.DataObject, how: str) -> None:
        replicas = self.world.driver.replicas
        alive = (ReplicaState.STARTING, ReplicaState.READY, ReplicaState.UNREADY)
        names = [name for name in replicas.names() if replicas.look(name).state in alive]
        if not names:
            return
        name = data.draw(st.sampled_from(names))
        if how in ("lose", "orphans"):
            replicas.lose(name, orphans=how == "orphans")
        else:
            getattr(replicas, how)(name)

    # --- rounds -------------------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 20), requests=st.sampled_from([0, 40]), every_s=st.sampled_from([0.2, 1.0, 5.0]))
    def rounds(self, count: int, requests: int, every_s: float) -> None:
        """Clients ask; whoever tends does so, with all that must hold after each round."""
        for _ in range(count):
            for name in OWNERS:
                for _ in range(requests):
                    self.world.driver.router.request(f"/{name}/v2/models/digits/infer")
            self.world.rounds(1, every_s=every_s)
            self.world.tend()
            self.the_sums_are_right()

    @rule()
    def restart(self) -> None:
        """Triggerer and scheduler begin anew and know nothing."""
        self.world.services = ServiceTender(self.world.ctx)
        self.world.tender = Tender(self.world.ctx)

    @rule()
    def sync(self) -> None:
        sync_platform(self.world.ctx)

    @rule(passed=st.sampled_from([1, 11, 61, 300]))
    def pass_time(self, passed: float) -> None:
        self.world.pass_time(passed)

    # --- always -------------------------------------------------------------------------------------------------------

    @invariant()
    def the_sums_are_right(self) -> None:
        if not hasattr(self, "world"):
            return
        with self.world.ctx.store.read() as tx:
            leases = list(tx.leases.overlapping(LONG_AGO))
            live = tx.leases.live()
            ledger = tx.leases.ledger()
            pool = self.world.ctx.pools(tx)[POOL]
            trained = sum(job.spec.gpus for job in tx.jobs.find(phases=JOB_HOLDING))
            size = {each.id: each.spec.gpus_per_replica for each in all_revisions(tx)}
            served = sum(size[row.revision] for row in tx.replicas.find(phases=REPLICA_HOLDING))
        held = allocated(leases, POOL)
        assert held <= pool.capacity, "over capacity"
        assert held == trained + served == sum(lease.gpus for lease in live), "G2: by holders and by leases"
        by_kind = allocated_by_kind(leases, POOL)
        assert (by_kind[HolderKind.JOB], by_kind[HolderKind.SERVICE]) == (trained, served)
        check_owners(live, pool.policy.max_gpus_per_user, pool.policy.teams)
        check_seconds(ledger, leases, live, self.world.clock.now())
        self.what_runs_holds(live)

    def what_runs_holds(self, live: Sequence[Lease]) -> None:
        """No process of a replica lives without a lease."""
        held = {(lease.holder_kind, lease.holder_id, lease.attempt) for lease in live}
        with self.world.ctx.store.read() as tx:
            rows = {row.name: row for row in tx.replicas.find(phases=frozenset(ReplicaPhase))}
        for name in self.world.driver.replicas.names():
            if self.world.driver.replicas.look(name).started_at is not None:
                row = rows[name]
                assert row.phase in REPLICA_HOLDING, f"{name} runs and its row is {row.phase}"
                assert any(kind is HolderKind.SERVICE and holder in (name, row.revision) for kind, holder, _ in held)


def all_revisions(tx: Transaction) -> list[Revision]:
    """Of every service, also of those that are over."""
    return [each for service in tx.services.find() for each in tx.services.revisions(service.id)]


def check_owners(live: Sequence[Lease], per_user: int | None, teams: Mapping[str, TeamQuota]) -> None:
    """No device twice, no user over the limit, no team over what it has and may borrow."""
    devices = Counter((part.node, each) for lease in live for part in lease.slices for each in part.devices)
    assert max(devices.values(), default=0) <= 1, "a device is held twice"
    by_user: Counter[str] = Counter()
    by_team: Counter[str] = Counter()
    for lease in live:
        by_user[lease.owner] += lease.gpus
        by_team[lease.team] += lease.gpus
    assert per_user is None or max(by_user.values(), default=0) <= per_user, f"over a user's limit: {by_user}"
    for team, quota in teams.items():
        assert by_team[team] <= quota.nominal + (quota.borrowing_limit or 0), f"over a team's quota: {by_team}"
    if teams:  # what a team does not lend is there for it
        kept = {team: quota.nominal - (quota.lending_limit or quota.nominal) for team, quota in teams.items()}
        for team, own in kept.items():
            others = sum(gpus for name, gpus in by_team.items() if name != team)
            assert others <= GPUS - own, f"{team} keeps {own}: {by_team}"


def check_seconds(ledger: Sequence[LedgerEntry], leases: Sequence[Lease], live: Sequence[Lease], now: datetime) -> None:
    """The GPU-seconds of the ledger's entries are those of the leases, and each is used or wasted by one cause."""
    assert ledger_gaps(ledger, live, now) == ()
    by_entries = sum(entry.gpus * (now - entry.at).total_seconds() for entry in ledger)
    by_leases = sum(lease.gpus * ((lease.ended_at or now) - lease.granted_at).total_seconds() for lease in leases)
    assert by_entries == pytest.approx(by_leases, abs=1e-3), "the ledger's GPU-seconds are the leases'"
    told = total(account(lease, now) for lease in leases)
    assert told.held == pytest.approx(by_leases, abs=1e-3)
    assert told.used + told.wasted_total == pytest.approx(told.held, abs=1e-3)


TestGpuMachine = GpuMachine.TestCase
TestGpuMachine.settings = plays(25, steps=40)
