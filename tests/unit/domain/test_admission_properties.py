"""What no round may ever break, on generated pools, lines and lives of jobs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import NOW, at, make_lease, make_node, make_pool, make_quota, make_snapshot, make_waiting, seconds
from fermion.domain.accounting import allocated, allocated_by_kind
from fermion.domain.admission import Round, Snapshot, decide
from fermion.domain.book import Book
from fermion.domain.budgets import HOUR_S
from fermion.domain.leases import Lease
from fermion.domain.line import Reservation, ReservedFor, Waiting
from fermion.domain.picture import Picture
from fermion.domain.pools import Budget, Pool
from fermion.domain.queues import Queues
from simulations import Arrival, Simulation, arrival

SOME = settings(max_examples=60, deadline=None)

GPUS = st.sampled_from([1, 1, 2, 3, 4, 8])


@st.composite
def pools(draw: st.DrawFn, *, plain: bool = False) -> Pool:
    """One pool of one to four nodes, some not usable; unless ``plain``, perhaps with team quotas and a limit per user."""
    policy: dict[str, object] = {"head_grace": seconds(draw(st.sampled_from([0, 5, 40]))), "half_life": seconds(100)}
    if not plain and draw(st.booleans()):
        limits = st.one_of(st.none(), st.integers(0, 8))
        policy["teams"] = {
            team: make_quota(draw(st.integers(0, 8)), borrowing=draw(limits), lending=draw(limits))
            for team in ("a", "b")
        }
    if not plain and draw(st.booleans()):
        policy["max_gpus_per_user"] = draw(st.integers(2, 16))
    sizes = draw(st.lists(st.sampled_from([2, 4, 8]), min_size=1, max_size=4))
    nodes = [make_node(f"n{number}", gpus=gpus, ready=draw(st.integers(0, 5)) < 5) for number, gpus in enumerate(sizes)]
    return make_pool(nodes=nodes, **policy)


@st.composite
def cohorts(draw: st.DrawFn) -> list[Pool]:
    """Two pools whose teams lend to each other."""
    limits = st.one_of(st.none(), st.integers(0, 8))
    found = []
    for name in ("c/east", "c/west"):
        teams = {
            team: make_quota(draw(st.integers(0, 6)), borrowing=draw(limits), lending=draw(limits))
            for team in ("a", "b")
        }
        nodes = draw(st.lists(st.sampled_from([4, 8]), min_size=1, max_size=2))
        found.append(make_pool(name, nodes=nodes, cohort="both", teams=teams, head_grace=seconds(10)))
    return found


@st.composite
def lives(
    draw: st.DrawFn,
    *,
    priorities: tuple[int, ...] = (0, 0, 5),
    always_limited: bool = False,
    pool_ids: tuple[str, ...] = ("local/declared",),
) -> list[Arrival]:
    """Jobs with when they come and how long they run: never longer than their ``max_runtime``, where they have one."""
    jobs = []
    for number in range(draw(st.integers(1, 14))):
        limit = draw(st.integers(1, 60))
        is_limited = always_limited or draw(st.booleans())
        job = make_waiting(
            f"job-{number:02}",
            gpus=draw(GPUS),
            nodes=draw(st.sampled_from([1, 1, 1, 2])),
            pool=draw(st.sampled_from(pool_ids)),
            owner=draw(st.sampled_from(["ann", "bob", "cat"])),
            team=draw(st.sampled_from(["a", "b", "c"])),
            priority=draw(st.sampled_from(priorities)),
            preemptible=draw(st.booleans()),
            waited_s=-draw(st.integers(0, 90)),
            max_runtime=seconds(limit) if is_limited else None,
            excluded_nodes=draw(st.sampled_from([(), (), (), ("n0", "east-n0")])),
        )
        jobs.append(arrival(job, runs_s=draw(st.integers(1, limit))))
    return jobs


def check_invariants(simulation: Simulation, outcome: Round) -> None:
    """Nothing is over capacity or on a node it must not use, no device and no job is granted twice, G2 holds."""
    live = list(simulation.leases.values())
    devices = Counter((part.node, device) for lease in live for part in lease.slices for device in part.devices)
    usable = [node for pool in simulation.pools for node in pool.nodes if node.is_usable]
    assert set(devices) <= {(node.name, device.id) for node in usable for device in node.devices}
    assert max(devices.values(), default=0) <= 1, "a device is held twice"
    assert max(Counter(lease.holder_id for lease in live).values(), default=0) <= 1, "a job holds twice"
    for pool in simulation.pools:
        every = [*simulation.ended, *live]
        held = allocated(every, pool.id)
        assert held <= pool.capacity
        assert held == sum(simulation._of[lease.holder_id].job.gpus for lease in live if lease.pool == pool.id)
        assert held == sum(allocated_by_kind(every, pool.id).values())
    for grant in outcome.grants:
        job = simulation._of[grant.job_id].job
        assert [len(part.devices) for part in grant.slices] == [job.gpus_per_node] * job.nodes
        assert len({part.node for part in grant.slices} - {*job.excluded_nodes}) == job.nodes
    for preemption in outcome.preemptions:
        asked = {simulation.ending[lease_id] for lease_id in preemption.lease_ids}
        assert asked == {preemption.job_id}, "a lease is asked to end for two jobs"
    check_limits(simulation)


def check_limits(simulation: Simulation) -> None:
    """Users and teams are within their limits; a team that lends nothing has its own GPUs for itself."""
    for pool in simulation.pools:
        live = [lease for lease in simulation.leases.values() if lease.pool == pool.id]
        by_user: Counter[str] = Counter()
        by_team: Counter[str] = Counter()
        for lease in live:
            by_user[lease.owner] += lease.gpus
            by_team[lease.team] += lease.gpus
        limit = pool.policy.max_gpus_per_user
        assert limit is None or max(by_user.values(), default=0) <= limit
        for team, quota in pool.policy.teams.items():
            assert quota.borrowing_limit is None or by_team[team] <= quota.nominal + quota.borrowing_limit


@SOME
@given(pool=pools(), jobs=lives())
def test_no_round_breaks_an_invariant_while_jobs_come_run_are_preempted_and_end(
    pool: Pool, jobs: list[Arrival]
) -> None:
    simulation = Simulation([pool], jobs, on_step=check_invariants).run()
    assert not simulation.leases
    for job_id in simulation.waiting:
        job = simulation.waiting[job_id]
        assert decide(make_snapshot(pools=[pool], waiting=[job]), simulation.now).grants == (), (
            "a job that fits the empty pool must not be left in line"
        )


def check_lending(simulation: Simulation, outcome: Round) -> None:
    """Over the whole cohort, nobody draws more than what is lent and what is nobody's."""
    check_invariants(simulation, outcome)
    drawn = there = 0
    for pool in simulation.pools:
        quotas = pool.policy.teams
        there += max(0, pool.capacity - sum(quota.nominal for quota in quotas.values()))
        for team in ("a", "b", "c"):
            quota = quotas.get(team, make_quota(0))
            lent = quota.nominal if quota.lending_limit is None else min(quota.nominal, quota.lending_limit)
            used = sum(x.gpus for x in simulation.leases.values() if (x.pool, x.team) == (pool.id, team))
            there += lent
            drawn += max(0, used - (quota.nominal - lent))
    assert drawn <= there


@SOME
@given(pools=cohorts(), jobs=lives(pool_ids=("c/east", "c/west")))
def test_no_round_lends_more_than_a_cohort_has(pools: list[Pool], jobs: list[Arrival]) -> None:
    simulation = Simulation(pools, jobs, on_step=check_lending).run()
    assert not simulation.leases
    for job in simulation.waiting.values():
        assert decide(make_snapshot(pools=pools, waiting=[job]), simulation.now).grants == ()


class Promises:
    """Remembers of every head when all that was held at its promise had ended, and the soonest time it was ever told."""

    def __init__(self) -> None:
        self.all_ended: dict[str, datetime] = {}
        self.told: dict[str, datetime] = {}

    def __call__(self, simulation: Simulation, outcome: Round) -> None:
        ends = [lease.ends_by or simulation._ends_at[lease.id] for lease in simulation.leases.values()]
        last = max(ends, default=simulation.now)
        for reservation in outcome.reservations:
            if reservation.why is ReservedFor.HEAD:
                self.all_ended.setdefault(reservation.job_id, last)
                if reservation.starts_by is not None:
                    told = self.told.get(reservation.job_id, reservation.starts_by)
                    self.told[reservation.job_id] = min(told, reservation.starts_by)

    def check(self, simulation: Simulation) -> None:
        """Every head of the highest priority started by its time; one that never had a time, once all held had ended."""
        jobs = [arrival.job for arrival in simulation.arrivals]
        highest = max(job.priority for job in jobs)
        for job in jobs:
            if job.priority == highest and job.job_id in self.all_ended:
                bound = self.told.get(job.job_id, self.all_ended[job.job_id])
                assert simulation.starts[job.job_id] <= bound, job.job_id


@SOME
@given(pool=pools(), jobs=lives(priorities=(0,)))
def test_the_head_of_the_line_starts_within_its_bound(pool: Pool, jobs: list[Arrival]) -> None:
    promises = Promises()
    promises.check(Simulation([pool], jobs, on_step=promises).run())


@SOME
@given(pools=cohorts(), jobs=lives(pool_ids=("c/east", "c/west"), priorities=(0,)))
def test_heads_of_a_cohorts_lines_start_within_their_bounds(pools: list[Pool], jobs: list[Arrival]) -> None:
    promises = Promises()
    promises.check(Simulation(pools, jobs, on_step=promises).run())


@SOME
@given(pool=pools(), jobs=lives(priorities=(0, 5, 5)))
def test_a_head_of_the_highest_priority_starts_within_its_bound_while_others_preempt(
    pool: Pool, jobs: list[Arrival]
) -> None:
    promises = Promises()
    promises.check(Simulation([pool], jobs, on_step=promises).run())


def check_heads_stay(before: Iterable[Reservation], simulation: Simulation, outcome: Round) -> None:
    """A head that still waits still has a reservation, unless it is over its own limit because of a higher priority."""
    promised = {reservation.job_id for reservation in outcome.reservations}
    staying = [lease for lease in simulation.leases.values() if lease.id not in simulation.ending]
    for head in [kept for kept in before if kept.why is ReservedFor.HEAD and kept.job_id not in promised]:
        job = simulation.waiting.get(head.job_id)
        if job is not None:
            book = Book(simulation.pools, staying, (), simulation.now)
            for other in map(simulation.waiting.__getitem__, promised):
                if other.priority > job.priority:
                    book.take(other)
            assert book.over_limit(job) is not None, f"{job.job_id} lost its reservation"


@SOME
@given(pools=st.one_of(st.tuples(pools()).map(list), cohorts()), data=st.data())
def test_a_head_keeps_its_reservation_until_it_starts_whoever_comes_after_it(
    pools: list[Pool], data: st.DataObject
) -> None:
    before: tuple[Reservation, ...] = ()

    def on_step(simulation: Simulation, outcome: Round) -> None:
        nonlocal before
        check_heads_stay(before, simulation, outcome)
        before = outcome.reservations

    jobs = data.draw(lives(pool_ids=tuple(pool.id for pool in pools)))
    Simulation(pools, jobs, on_step=on_step).run()


@SOME
@given(pool=pools(plain=True), jobs=lives(priorities=(0,), always_limited=True))
def test_where_every_run_is_limited_every_reservation_has_a_time(pool: Pool, jobs: list[Arrival]) -> None:
    promises = Promises()
    Simulation([pool], jobs, on_step=promises).run()
    assert promises.told.keys() == promises.all_ended.keys()


@SOME
@given(pool=pools(), jobs=lives(always_limited=True), of_user=st.integers(50, 900), of_team=st.integers(50, 900))
def test_runs_that_give_their_limit_never_overrun_a_budget(
    pool: Pool, jobs: list[Arrival], of_user: int, of_team: int
) -> None:
    budget = Budget(gpu_hours=of_user / HOUR_S, window=seconds(HOUR_S))
    shared = Budget(gpu_hours=of_team / HOUR_S, window=seconds(HOUR_S))
    policy = replace(pool.policy, user_budget=budget, team_budgets={"a": shared})

    def on_step(simulation: Simulation, outcome: Round) -> None:
        used: Counter[str] = Counter()
        for lease in (*simulation.ended, *simulation.leases.values()):
            end = lease.ended_at or lease.ends_by or simulation.now
            used[lease.owner] += round(lease.gpus * (end - lease.granted_at).total_seconds())
            used[f"team {lease.team}"] += round(lease.gpus * (end - lease.granted_at).total_seconds())
        assert used["team a"] <= of_team
        assert max(used[owner] for owner in ("ann", "bob", "cat")) <= of_user

    Simulation([replace(pool, policy=policy)], jobs, on_step=on_step).run()


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """A moment in the middle of a generated life, with whatever reservations and preemptions it then has."""
    simulation = Simulation([draw(pools())], draw(lives())).run(until=at(draw(st.integers(0, 90))))
    return simulation.snapshot()


@SOME
@given(snapshot=snapshots(), data=st.data())
def test_the_same_inputs_give_the_same_answer_in_any_order_and_after_storing(
    snapshot: Snapshot, data: st.DataObject
) -> None:
    outcome = decide(snapshot, NOW)
    shuffled = replace(
        snapshot,
        waiting=tuple(data.draw(st.permutations(snapshot.waiting))),
        leases=tuple(data.draw(st.permutations(snapshot.leases))),
    )
    stored = Snapshot.from_payload(json.loads(json.dumps(snapshot.to_payload())))
    assert stored == snapshot
    for other in (shuffled, stored):
        again = decide(other, NOW)
        assert again == outcome
        assert again.explanations() == outcome.explanations()
    read = Round.from_payload(json.loads(json.dumps(outcome.to_payload())))
    assert read == outcome
    assert read.explanations() == outcome.explanations()


@st.composite
def contested(draw: st.DrawFn) -> tuple[Pool, tuple[Lease, ...], Waiting]:
    """A pool full of leases of mixed priority, and one job that wants some of it."""
    pool = draw(pools())
    leases = []
    for node in pool.nodes:
        first = 0
        while first < len(node.devices):
            gpus = min(draw(GPUS), len(node.devices) - first)
            who = {"team": draw(st.sampled_from(["a", "b"])), "owner": draw(st.sampled_from(["ann", "bob"]))}
            if draw(st.integers(0, 5)) > 0:
                leases.append(
                    make_lease(
                        f"lease-{node.name}-{first}",
                        gpus=gpus,
                        node=node.name,
                        first=first,
                        held_s=draw(st.integers(0, 50)),
                        priority=draw(st.integers(0, 3)),
                        preemptible=draw(st.integers(0, 3)) > 0,
                        **who,
                    )
                )
            first += gpus
    job = make_waiting("hi", gpus=draw(GPUS), nodes=draw(st.integers(1, 2)), team="a", priority=draw(st.integers(0, 4)))
    return pool, tuple(leases), job


@settings(max_examples=300, deadline=None)
@given(contested())
def test_victims_are_lower_preemptible_enough_and_none_too_many(case: tuple[Pool, tuple[Lease, ...], Waiting]) -> None:
    pool, leases, job = case
    by_id = {lease.id: lease for lease in leases}
    outcome = decide(make_snapshot(pools=[pool], waiting=[job], leases=leases), NOW)

    def starts_without(gone: set[str]) -> bool:
        left = tuple(lease for lease in leases if lease.id not in gone)
        return bool(decide(make_snapshot(pools=[pool], waiting=[job], leases=left), NOW).grants)

    if outcome.grants:
        assert outcome.preemptions == ()
        return
    askable = {lease.id for lease in leases if lease.preemptible and lease.priority < job.priority}
    if not outcome.preemptions:
        assert not starts_without(askable), "it could have started, but nobody was asked"
        return
    (preemption,) = outcome.preemptions
    victims = set(preemption.lease_ids)
    assert victims <= askable
    assert all(by_id[lease_id].priority < job.priority for lease_id in victims)
    assert starts_without(victims)
    for spared in victims:
        assert not starts_without(victims - {spared}), f"{spared} could have been spared"


class Unhurried(Simulation):
    """Decides every step also with a walk to the end of the line, and on queues that were kept: all say the same."""

    def snapshot(self) -> Snapshot:
        found = super().snapshot()
        at_once = decide(found, self.now)
        kept = decide(found, self.now, queues=Queues(found.waiting[::-1]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Picture, "is_settled", lambda *_, **__: False)
            whole = decide(found, self.now)
        assert at_once == kept == whole
        assert at_once.explanations() == kept.explanations() == whole.explanations()
        for job in found.waiting:
            assert decide(found, self.now).explain(job.job_id) == whole.explain(job.job_id)
        return found


@st.composite
def crowds(draw: st.DrawFn, *, pool_ids: tuple[str, ...] = ("local/declared",)) -> tuple[list[Pool], list[Arrival]]:
    """Small pools, and many jobs for them, small and large, of several priorities."""
    made = [
        make_pool(
            pool_id,
            nodes=[make_node(f"{pool_id}-n{number}", gpus=2) for number in range(draw(st.integers(1, 2)))],
            cohort="crowd",
            preemption=draw(st.booleans()),
            head_grace=seconds(draw(st.sampled_from([0, 8, 1000]))),
            half_life=seconds(100),
        )
        for pool_id in pool_ids
    ]
    jobs = [
        make_waiting(
            f"job-{number:02}",
            gpus=draw(st.sampled_from([1, 1, 1, 2])),
            nodes=draw(st.sampled_from([1, 1, 2])),
            pool=draw(st.sampled_from([*pool_ids, *pool_ids, "c/gone"])),
            owner=draw(st.sampled_from(["ann", "bob"])),
            team=draw(st.sampled_from(["a", "b"])),
            priority=draw(st.sampled_from([0, 0, 1, 5])),
            preemptible=draw(st.integers(0, 3)) > 0,
            waited_s=-draw(st.integers(0, 12)),
            max_runtime=draw(st.sampled_from([None, seconds(20)])),
        )
        for number in range(draw(st.integers(8, 20)))
    ]
    return made, [arrival(job, runs_s=draw(st.integers(1, 20))) for job in jobs]


@pytest.mark.parametrize("pool_ids", [("local/declared",), ("c/east", "c/west")])
@settings(SOME, max_examples=100)
@given(data=st.data())
def test_who_stops_walking_early_misses_nothing(pool_ids: tuple[str, ...], data: st.DataObject) -> None:
    made, jobs = data.draw(crowds(pool_ids=pool_ids))
    Unhurried(made, jobs).run()
