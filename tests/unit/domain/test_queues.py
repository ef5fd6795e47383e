"""The order of the line: as the rules say, only as far as it is asked, and the same however the queues came about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice, pairwise

from hypothesis import given
from hypothesis import strategies as st

from builders import NOW, make_pool, make_quota, make_waiting, seconds
from fermion.domain.fairshare import OwnerUse, Use, weights
from fermion.domain.line import Waiting
from fermion.domain.queues import Order, Queues


def use_of(team: str = "default", **gpu_seconds: float) -> Use:
    rows = (
        OwnerUse(pool="local/declared", team=team, owner=owner, gpu_seconds=value)
        for owner, value in gpu_seconds.items()
    )
    return Use(at=NOW, owners=tuple(rows))


def order(
    waiting: Sequence[Waiting], *, use: Use, weights: Mapping[str, int], first: Sequence[str] = ()
) -> list[Waiting]:
    return list(Order(Queues(waiting), use=use, weights=weights, first=first))


def ids(line: Sequence[Waiting]) -> list[str]:
    return [job.job_id for job in line]


def test_the_line_goes_by_priority_then_reservation_then_share_then_arrival() -> None:
    jobs = [
        make_waiting("late", owner="cat", waited_s=1),
        make_waiting("early", owner="dan", waited_s=2),
        make_waiting("heavy", owner="ann", waited_s=9),
        make_waiting("promised", owner="ann", waited_s=3),
        make_waiting("urgent", owner="ann", waited_s=0, priority=1),
    ]
    line = order(jobs, use=use_of(ann=1e6), weights={}, first=["promised"])
    assert ids(line) == ["urgent", "promised", "early", "late", "heavy"]


def test_of_two_that_came_at_once_the_lower_id_goes_first() -> None:
    jobs = [make_waiting(job_id, owner=owner) for job_id, owner in (("job-2", "ann"), ("job-1", "bob"))]
    assert ids(order(jobs, use=use_of(), weights={})) == ids(order(jobs[::-1], use=use_of(), weights={}))
    assert ids(order(jobs, use=use_of(), weights={})) == ["job-1", "job-2"]


def test_a_team_with_twice_the_nominal_gpus_may_use_twice_as_much() -> None:
    pool = make_pool(teams={"a": make_quota(8), "b": make_quota(4)})
    rows = (*use_of("a", ann=150.0).owners, *use_of("b", bob=100.0).owners)
    jobs = [make_waiting("of-b", team="b", owner="bob", waited_s=9), make_waiting("of-a", team="a", waited_s=1)]
    assert ids(order(jobs, use=Use(at=NOW, owners=rows), weights=weights([pool]))) == ["of-a", "of-b"]
    assert ids(order(jobs, use=Use(at=NOW, owners=rows), weights={})) == ["of-b", "of-a"]


def test_longer_jobs_put_their_owners_next_job_further_back() -> None:
    jobs = [
        make_waiting("long-1", owner="ann", waited_s=9, max_runtime=seconds(100)),
        make_waiting("long-2", owner="ann", waited_s=8, max_runtime=seconds(100)),
        *(make_waiting(f"short-{n}", owner="bob", waited_s=5 - n, max_runtime=seconds(40)) for n in range(4)),
    ]
    line = ids(order(jobs, use=use_of(), weights={}))
    assert line == ["long-1", "short-0", "short-1", "short-2", "long-2", "short-3"]


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 2), st.integers(0, 9)), max_size=12
    )
)
def test_the_line_holds_every_job_once_and_never_puts_a_lower_priority_first(
    jobs: list[tuple[str, str, int, int]],
) -> None:
    waiting = [
        make_waiting(f"job-{n}", team=team, owner=owner, priority=priority, waited_s=waited)
        for n, (team, owner, priority, waited) in enumerate(jobs)
    ]
    line = order(waiting, use=use_of(), weights={"a": 3})
    assert sorted(ids(line)) == sorted(ids(waiting))
    priorities = [job.priority for job in line]
    assert priorities == sorted(priorities, reverse=True)
    for one, other in pairwise(line):
        if (one.team, one.owner, one.priority) == (other.team, other.owner, other.priority):
            assert one.queued_at <= other.queued_at


# --- by the rules, said plainly ---------------------------------------------------------------------------------------

TEAMS = {"a": 3, "b": 1}


def sorted_plainly(waiting: Sequence[Waiting], use: Use, first: Sequence[str]) -> list[Waiting]:
    """The rules without queues: two sorts of each level, by what the owner and then the team would have used before."""
    of_owner = Counter({(row.team, row.owner): row.gpu_seconds for row in use.owners})
    of_team: Counter[str] = Counter()
    for row in use.owners:
        of_team[row.team] += row.gpu_seconds
    turn = {job_id: index for index, job_id in enumerate(first)}

    def level(job: Waiting) -> tuple[int, int]:
        return -job.priority, turn.get(job.job_id, len(turn))

    line = []
    for this in sorted({level(job) for job in waiting}):
        jobs = sorted((job for job in waiting if level(job) == this), key=lambda job: (job.queued_at, job.job_id))
        for used, who, weigh in (
            (of_owner, lambda job: (job.team, job.owner), lambda _: 1),
            (of_team, lambda job: job.team, lambda job: TEAMS[job.team]),
        ):
            shares = {}
            for job in jobs:
                shares[job.job_id] = used[who(job)] / weigh(job)
                used[who(job)] += job.gpu_seconds
            jobs = sorted(jobs, key=lambda job: shares[job.job_id])
        line += jobs
    return line


JOBS = st.builds(
    dict,
    team=st.sampled_from("ab"),
    owner=st.sampled_from("xyz"),
    pool=st.sampled_from(["local/one", "local/two"]),
    priority=st.integers(0, 2),
    waited_s=st.integers(0, 9),
    gpus=st.integers(1, 4),
    max_runtime=st.sampled_from([None, seconds(40), seconds(100.3)]),
)
LINES = st.lists(JOBS, max_size=14).map(
    lambda drawn: [make_waiting(f"job-{number}", **each) for number, each in enumerate(drawn)]
)
USES = st.fixed_dictionaries({}, optional={(team, owner): st.floats(0, 1e4) for team in "ab" for owner in "xyz"}).map(
    lambda drawn: Use(
        at=NOW,
        owners=tuple(
            OwnerUse(pool="local/one", team=team, owner=owner, gpu_seconds=used)
            for (team, owner), used in sorted(drawn.items())
        ),
    )
)


@given(waiting=LINES, use=USES, first=st.lists(st.integers(0, 16), max_size=3, unique=True), data=st.data())
def test_queues_give_the_line_that_the_rules_give_and_every_place_in_it(
    waiting: list[Waiting], use: Use, first: list[int], data: st.DataObject
) -> None:
    promised = [f"job-{number}" for number in first]
    expected = sorted_plainly(waiting, use, promised)

    queues = Queues(waiting)
    assert len(queues) == len(waiting)
    walked = Order(queues, use=use, weights=TEAMS, first=promised)
    assert ids(list(islice(walked, 3))) == ids(expected)[:3]
    assert ids(walked.walked) == ids(expected)[:3]
    assert ids(list(walked)) == ids(list(walked)) == ids(expected)

    asked = Order(queues, use=use, weights=TEAMS, first=promised)
    for job in data.draw(st.permutations(waiting)):
        before = expected[: expected.index(job)]
        assert asked.ahead_of(job) == sum(other.pool == job.pool for other in before)
    assert asked.walked == []


@given(
    waiting=LINES,
    changes=st.lists(st.tuples(st.integers(0, 13), st.one_of(st.none(), JOBS)), max_size=14),
    data=st.data(),
)
def test_queues_that_were_changed_are_those_made_at_once(
    waiting: list[Waiting], changes: list[tuple[int, dict[str, object] | None]], data: st.DataObject
) -> None:
    kept, left = Queues(waiting), {job.job_id: job for job in waiting}
    for number, change in changes:
        job_id = f"job-{number}"
        if change is None:
            kept.drop(job_id)
            left.pop(job_id, None)
        else:
            left[job_id] = make_waiting(job_id, **change)  # type: ignore[arg-type]
            kept.put(left[job_id])
    at_once = Queues(data.draw(st.permutations(list(left.values()))))
    assert dict(kept.levels()) == dict(at_once.levels())
    assert len(kept) == len(left)
    assert kept.oldest() == min((job.queued_at for job in left.values()), default=None)
    for pool in ("local/one", "local/two"):
        assert kept.count(pool) == sum(job.pool == pool for job in left.values())
    assert all(kept.get(job_id) == left.get(job_id) for job_id in (f"job-{number}" for number in range(14)))
