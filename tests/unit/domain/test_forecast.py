"""Expected starts: deterministic, honest where nothing is known, and calibrated under load."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from builders import NOW, at, make_ended_lease, make_lease, make_pool, make_snapshot, make_waiting, seconds
from fermion.domain.admission import Reservation, Round
from fermion.domain.budgets import Scope, Spent
from fermion.domain.forecast import MIN_RUNS, Forecast, RunTimes, expected_starts, run_times
from fermion.domain.leases import Lease
from fermion.domain.pools import Budget
from simulations import Arrival, Simulation, arrival


def history(count: int = 20, *, ran_s: float = 100, gpus: int = 8) -> list[Lease]:
    """Runs of that length, one after the other, all ended."""
    return [
        make_ended_lease(f"old-{n}", gpus=gpus, granted_at=at(-1e6 + n * ran_s), ended_s=-1e6 + (n + 1) * ran_s)
        for n in range(count)
    ]


def test_a_job_behind_a_run_of_known_length_starts_when_that_ends() -> None:
    snapshot = make_snapshot(waiting=[make_waiting(gpus=8)], leases=[make_lease(gpus=8, held_s=40)])
    forecast = expected_starts(snapshot, history=history(), now=NOW)["job-1"]
    assert (forecast.p50, forecast.p90, forecast.reason) == (at(60), at(60), None)


def test_a_run_that_tells_its_progress_ends_by_its_own_pace_and_not_by_that_of_others() -> None:
    snapshot = make_snapshot(waiting=[make_waiting(gpus=8)], leases=[make_lease(gpus=8, held_s=40)])
    forecast = expected_starts(snapshot, history=history(), now=NOW, paced={"lease-1": at(1000)})["job-1"]
    assert forecast.p50 is not None
    assert forecast.p90 is not None
    assert at(900) <= forecast.p50 <= at(1100), "by the runs before it would be 60 s"
    assert forecast.p50 < forecast.p90 <= at(1200)


def test_a_run_that_should_have_ended_by_its_pace_is_drawn_from_others() -> None:
    snapshot = make_snapshot(waiting=[make_waiting(gpus=8)], leases=[make_lease(gpus=8, held_s=40)])
    forecast = expected_starts(snapshot, history=history(), now=NOW, paced={"lease-1": at(-1)})["job-1"]
    assert (forecast.p50, forecast.p90) == (at(60), at(60))


def test_the_second_in_line_starts_after_the_first_has_run() -> None:
    jobs = [make_waiting("first", gpus=8, waited_s=9), make_waiting("second", gpus=8, waited_s=8)]
    snapshot = make_snapshot(waiting=jobs, leases=[make_lease(gpus=8, held_s=40)])
    forecasts = expected_starts(snapshot, history=history(), now=NOW)
    assert (forecasts["first"].p50, forecasts["second"].p50) == (at(60), at(160))


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        pytest.param(MIN_RUNS, None, id="just enough runs"),
        pytest.param(MIN_RUNS - 1, "fewer than 5 runs have ended in pool 'local/declared'", id="one run too few"),
        pytest.param(0, "fewer than 5 runs have ended in pool 'local/declared'", id="no history"),
    ],
)
def test_without_history_there_is_no_forecast_but_a_reason(ended: int, reason: str | None) -> None:
    snapshot = make_snapshot(waiting=[make_waiting(gpus=8)], leases=[make_lease(gpus=8)])
    forecast = expected_starts(snapshot, history=history(ended), now=NOW)["job-1"]
    assert forecast.reason == reason
    assert (forecast.p50 is None) == (forecast.p90 is None) == (reason is not None)


def test_a_job_that_can_never_start_or_stands_too_far_back_has_a_reason() -> None:
    jobs = [make_waiting(f"job-{n}", gpus=8, waited_s=100 - n) for n in range(3)]
    jobs += [make_waiting("wide", gpus=9), make_waiting("lost", pool="gone/pool")]
    forecasts = expected_starts(make_snapshot(waiting=jobs), history=history(), now=NOW, depth=2)
    assert "behind the first 2 jobs" in str(forecasts["job-2"].reason)
    assert forecasts["wide"].reason == "it can never start as it is"
    assert forecasts["lost"].reason == "pool 'gone/pool' does not exist any more"


def test_a_job_over_its_users_limit_starts_when_the_users_run_has_ended() -> None:
    snapshot = make_snapshot(
        pools=[make_pool(max_gpus_per_user=4)],
        waiting=[make_waiting(gpus=4)],
        leases=[make_lease(gpus=4, owner="ann", held_s=40)],
    )
    assert expected_starts(snapshot, history=history(), now=NOW)["job-1"].p50 == at(60)


@pytest.mark.parametrize(
    ("waited_s", "starts_s"),
    [
        pytest.param(200, 0, id="before its grace time has passed the head lets others pass"),
        pytest.param(300, 160, id="from then on its node is kept for it"),
    ],
)
def test_a_later_job_is_foreseen_behind_the_head_once_that_has_waited_its_grace_time(
    waited_s: float, starts_s: float
) -> None:
    jobs = [make_waiting("head", gpus=8, waited_s=waited_s), make_waiting("small", gpus=4, waited_s=1)]
    snapshot = make_snapshot(waiting=jobs, leases=[make_lease(gpus=4, held_s=40)])
    assert expected_starts(snapshot, history=history(), now=NOW)["small"].p50 == at(starts_s)


@pytest.mark.parametrize(
    ("ends_by_s", "starts_s"),
    [
        pytest.param(60, 0, id="it is over before the head's time"),
        pytest.param(None, 160, id="the head's time is not known: nobody passes"),
    ],
)
def test_a_short_job_is_foreseen_to_pass_the_head_only_where_the_rules_know_the_heads_time(
    ends_by_s: int | None, starts_s: float
) -> None:
    short = make_waiting("short", gpus=4, waited_s=1, max_runtime=seconds(20))
    lease = make_lease(gpus=4, held_s=40, ends_by=None if ends_by_s is None else at(ends_by_s))
    snapshot = make_snapshot(waiting=[make_waiting("head", gpus=8, waited_s=300), short], leases=[lease])
    assert expected_starts(snapshot, history=history(), now=NOW)["short"].p50 == at(starts_s)


def test_a_job_whose_budget_is_spent_has_no_forecast_and_is_told_why() -> None:
    pool = make_pool(user_budget=Budget(gpu_hours=1, window=seconds(86400)))
    spent = (Spent(pool=pool.id, scope=Scope.USER, name="ann", gpu_seconds=3600),)
    snapshot = make_snapshot(pools=[pool], waiting=[make_waiting(gpus=1)], leases=[make_lease()], spent=spent)
    forecast = expected_starts(snapshot, history=history(), now=NOW)["job-1"]
    assert (forecast.p50, forecast.p90) == (None, None)
    assert "in 60 of 60 simulated futures" in str(forecast.reason)


def test_a_reservation_bounds_the_forecast() -> None:
    promise = Reservation(
        job_id="job-1", pool="local/declared", nodes=("n0",), gpus_per_node=8, starts_by=at(30), made_at=NOW
    )
    snapshot = make_snapshot(
        waiting=[make_waiting(gpus=8)], leases=[make_lease(gpus=8, held_s=40)], reservations=(promise,)
    )
    assert expected_starts(snapshot, history=history(), now=NOW)["job-1"].p90 == at(30)


def test_a_run_is_told_by_the_share_of_its_limit_that_others_took() -> None:
    limited = [replace(lease, ends_by=lease.granted_at + seconds(200)) for lease in history()]
    assert run_times(limited).draw("local/declared", 8, Random(1), limit=50) == 25
    assert run_times(history()).draw("local/declared", 8, Random(1), limit=50) == 50, "never beyond its limit"


def test_a_run_that_outlives_all_before_it_goes_on_for_up_to_as_long_again() -> None:
    runs = RunTimes([(("p", 1), 10.0, None)] * MIN_RUNS)
    assert 20 <= runs.draw("p", 1, Random(1), ran=20) <= 40


def test_few_past_runs_make_a_wider_forecast_than_many_of_the_same_lengths() -> None:
    jobs = [make_waiting(f"job-{n:02}", gpus=8, owner="bob", waited_s=100 - n) for n in range(40)]
    lengths = [60, 80, 100, 120, 140]

    def width_s(repeats: int) -> float:
        past = [replace(lease, id=f"{lease.id}-{ran}") for ran in lengths for lease in history(repeats, ran_s=ran)]
        last = expected_starts(make_snapshot(waiting=jobs), history=past, now=NOW, futures=200)["job-39"]
        assert last.p50 is not None
        assert last.p90 is not None
        return (last.p90 - last.p50).total_seconds()

    assert width_s(1) > 2 * width_s(40)


def test_the_same_seed_gives_the_same_forecast() -> None:
    jobs = [make_waiting(f"job-{n}", gpus=4, waited_s=n) for n in range(6)]
    past = [*history(7, ran_s=50, gpus=4), *history(9, ran_s=170, gpus=4)]
    snapshot = make_snapshot(waiting=jobs, leases=[make_lease(gpus=8, held_s=10)])
    one, again = (expected_starts(snapshot, history=past, now=NOW, seed=3) for _ in range(2))
    other = expected_starts(snapshot, history=past, now=NOW, seed=4)
    assert one == again
    assert one != other


def load(seed: int, *, jobs: int, busy: float, limited: float) -> list[Arrival]:
    """Jobs of one to eight GPUs that come at random and keep 16 GPUs ``busy``; a share of them gives a limit."""
    chance = Random(seed)
    time, found = 0.0, []
    for number in range(jobs):
        gpus = chance.choice([1, 1, 2, 4, 8])
        runs_s = 300 * chance.lognormvariate(0, 0.8)
        time += chance.expovariate(16 * busy / (3.2 * 413))
        limit = seconds(runs_s * chance.uniform(1.1, 2)) if chance.random() < limited else None
        owner = chance.choice(["ann", "bob", "cat"])
        job = make_waiting(
            f"job-{number:03}", gpus=gpus, owner=owner, waited_s=-time, max_runtime=limit, preemptible=False
        )
        found.append(arrival(job, runs_s=runs_s))
    return found


class Forecaster:
    """Forecasts the start of every third job when it first has to wait, once there is some history."""

    def __init__(self) -> None:
        self.made: dict[str, Forecast] = {}
        self._seen: set[str] = set()

    def __call__(self, simulation: Simulation, outcome: Round) -> None:
        fresh = [job_id for job_id in simulation.waiting if job_id not in self._seen]
        self._seen.update(fresh)
        chosen = [job_id for job_id in fresh if int(job_id[-3:]) % 3 == 0]
        if len(simulation.ended) >= 50 and chosen:
            forecasts = expected_starts(simulation.snapshot(), history=simulation.ended, now=simulation.now, futures=30)
            self.made.update((job_id, forecasts[job_id]) for job_id in chosen)


def test_four_fifths_and_more_of_the_starts_fall_before_their_p90_under_load() -> None:
    before_p50 = before_p90 = made = 0
    for seed, limited in ((1, 0.5), (2, 0.5), (3, 0.0), (4, 1.0)):
        forecaster = Forecaster()
        arrivals = load(seed, jobs=150, busy=0.9, limited=limited)
        simulation = Simulation([make_pool(nodes=[8, 8])], arrivals, on_step=forecaster).run()
        for job_id, forecast in forecaster.made.items():
            assert forecast.p50 is not None
            assert forecast.p90 is not None
            made += 1
            before_p50 += simulation.starts[job_id] <= forecast.p50
            before_p90 += simulation.starts[job_id] <= forecast.p90
    assert made >= 60
    assert 0.80 <= before_p90 / made <= 0.97
    assert 0.35 <= before_p50 / made <= 0.75
