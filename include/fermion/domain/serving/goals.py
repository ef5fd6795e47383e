"""What the router and the fleet of one service should come to, given where its rollout is. Pure.

A service without a candidate: all requests to the stable revision. A first candidate: none before it serves. Else as its
rollout says, but never more requests or copies than the replicas that are ready have a share of: none where none is ready and
stable can answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fermion.domain.rollout.plan import Share, SplitRule, Way
from fermion.domain.rollout.rollouts import Phase, Rollout
from fermion.domain.serving.fleet import wanted
from fermion.domain.serving.services import Revision, RevisionPhase, Service

PROMOTING = frozenset({Phase.PROMOTING, Phase.PROMOTED})

GROUP_PERCENT = 50
"""How many of a service's replicas a group by header or cookie gets: nobody knows how many requests bring it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """Weights by revision number (as text, in percent, 100 in all or empty), and replicas by revision number."""

    weights: Mapping[str, int] = field(default_factory=dict)
    replicas: Mapping[int, int] = field(default_factory=dict)
    split: SplitRule | None = None
    mirror_percent: int = 0
    enough_ready: bool = True
    """Whether the candidate has all the replicas ready that its share needs."""


def goal_of(
    service: Service,
    revisions: Sequence[Revision],
    rollout: Rollout | None,
    *,
    ready: Mapping[int, int],
    in_line: Mapping[int, int],
) -> Goal:
    """The goal. ``ready`` and ``in_line`` count replicas by revision number: those that are ready, those without GPUs yet."""
    others = {each.number: _kept(each) for each in revisions}
    if service.candidate is None:
        stable = service.stable
        replicas = others if stable is None else {**others, stable: service.replicas}
        return Goal(weights={} if stable is None else {str(stable): 100}, replicas=replicas)
    if service.stable is None or rollout is None:
        enough = ready.get(service.candidate, 0) >= service.replicas
        return Goal(
            replicas={**others, service.candidate: service.replicas},
            enough_ready=enough,
        )
    return _in_rollout(service, others, rollout, revisions, ready=ready, in_line=in_line)


def _in_rollout(
    service: Service,
    others: Mapping[int, int],
    rollout: Rollout,
    revisions: Sequence[Revision],
    *,
    ready: Mapping[int, int],
    in_line: Mapping[int, int],
) -> Goal:
    stable, candidate = service.stable or 0, service.candidate or 0
    capacity = next(each.spec.capacity for each in revisions if each.number == candidate)
    share = rollout.wanted_share
    expected = _expected(rollout.present_step.share if share.is_nothing else share)
    is_promoting = rollout.phase in PROMOTING
    both = wanted(replicas=service.replicas, weight_percent=expected, capacity=capacity, is_promoting=is_promoting)
    there = ready.get(candidate, 0)
    enough = there >= both.candidate
    given = share
    if not there and ready.get(stable, 0):
        given = Share()  # nobody would answer: stable does, until one of them is back
    elif not enough:
        given = _limited(service, share, there=there)
    stay = both.stable
    if is_promoting and not enough and in_line.get(candidate, 0):
        stay = max(1, service.replicas - there)  # GPUs are short: each new replica takes the place of an old one
    return Goal(
        weights=_weights(stable, candidate, int(given.weight_percent)),
        split=given.split,
        mirror_percent=given.mirror_percent,
        replicas={**others, stable: stay, candidate: both.candidate},
        enough_ready=enough,
    )


def _expected(share: Share) -> int:
    """The percent of requests that replicas are wanted for."""
    if share.way is Way.MATCHED:
        return GROUP_PERCENT
    return share.mirror_percent if share.way is Way.MIRRORED else int(share.weight_percent)


def _limited(service: Service, share: Share, *, there: int) -> Share:
    """No more than the ready ones have a share of; and what it has already is not taken away for that."""
    most = 100 * there // max(1, service.replicas)
    weight = min(share.weight_percent, max(service.weights.get(str(service.candidate), 0), most))
    mirror = min(share.mirror_percent, max(service.mirror_percent, most))
    return Share(weight_percent=weight, split=share.split if there else None, mirror_percent=mirror)


def _weights(stable: int, candidate: int, weight: int) -> dict[str, int]:
    if weight <= 0:
        return {str(stable): 100}
    if weight >= 100:
        return {str(candidate): 100}
    return {str(stable): 100 - weight, str(candidate): weight}


def _kept(revision: Revision) -> int:
    """Replicas of a revision that no rule above speaks of: a warm one keeps what it has, all others none."""
    return revision.wanted if revision.phase is RevisionPhase.WARM else 0
