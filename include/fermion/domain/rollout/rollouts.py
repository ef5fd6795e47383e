"""Rollouts: what is true of one, and which moves are legal. The phase moves only through ``apply``.

Deciding which move is due from what was seen is ``steering.py``; carrying it out (weights, replicas) is not done here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from fermion.domain.rollout.plan import FULL, OnUndecided, Plan, Share, Step
from fermion.domain.rollout.reasons import Explanation
from fermion.errors import InvalidTransition


class Phase(StrEnum):
    """Where a rollout is. The comment says what is true of the world."""

    WAITING = "waiting"  # the canary's replicas are not all ready yet; it has no traffic
    SHIFTING = "shifting"  # the step's weight was ordered and has not been read back
    WARMING = "warming"  # the canary has the step's weight; nothing counts yet
    BAKING = "baking"  # looks are made; the step may be passed, or fail
    AWAITING_APPROVAL = "awaiting_approval"  # the step has passed, a person must say go; looks go on
    PAUSED = "paused"  # a person must decide; the weight stays, looks go on
    PROMOTING = "promoting"  # all the traffic was ordered to the canary and has not been read back
    PROMOTED = "promoted"  # the canary serves everything
    ROLLING_BACK = "rolling_back"  # no traffic was ordered to the canary; it has not been seen to stop
    ROLLED_BACK = "rolled_back"  # stable serves everything, the canary was seen without traffic
    ABORTED = "aborted"  # ended before the canary had any traffic


_ONWARD: Final = frozenset({Phase.SHIFTING, Phase.PROMOTING})
_ASIDE: Final = frozenset({Phase.PAUSED, Phase.ROLLING_BACK})

TRANSITIONS: Final[Mapping[Phase, frozenset[Phase]]] = {
    Phase.WAITING: _ONWARD | {Phase.PAUSED, Phase.ABORTED},
    Phase.SHIFTING: _ASIDE | {Phase.WARMING, Phase.PROMOTING},
    Phase.WARMING: _ONWARD | _ASIDE | {Phase.BAKING},
    Phase.BAKING: _ONWARD | _ASIDE | {Phase.AWAITING_APPROVAL},
    Phase.AWAITING_APPROVAL: _ONWARD | _ASIDE,
    Phase.PAUSED: _ONWARD | {Phase.WAITING, Phase.ROLLING_BACK, Phase.ABORTED},
    Phase.PROMOTING: frozenset({Phase.PROMOTED, Phase.ROLLING_BACK}),
    Phase.PROMOTED: frozenset(),
    Phase.ROLLING_BACK: frozenset({Phase.ROLLED_BACK}),
    Phase.ROLLED_BACK: frozenset(),
    Phase.ABORTED: frozenset(),
}

FINAL: Final = frozenset({Phase.PROMOTED, Phase.ROLLED_BACK, Phase.ABORTED})
_LOOKING: Final = frozenset({Phase.BAKING, Phase.AWAITING_APPROVAL, Phase.PAUSED})
_TO_CANARY: Final = frozenset({Phase.PROMOTING, Phase.PROMOTED})
_TO_STABLE: Final = frozenset({Phase.WAITING, Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.ABORTED})


class WishKind(StrEnum):
    """What a person may ask of a rollout."""

    PAUSE = "pause"
    RESUME = "resume"
    PROMOTE = "promote"  # skip all that is left
    ABORT = "abort"  # back to stable


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a person asked for last."""

    kind: WishKind
    by: str
    at: datetime
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """A person's answer to the question whether to leave that step."""

    step: int
    approved: bool
    by: str
    at: datetime
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One rollout of one revision of a service. ``version`` is the store's guard.

    ``canary`` and ``stable`` are the ids of the revisions. ``step`` is an index into the plan's steps; ``step_since`` is when
    it was entered, None as long as the canary never had traffic; ``baking_since`` is when looks began in it.
    ``obeyed_at`` is the time of the last wish that was obeyed, so that none is obeyed twice.
    """

    id: str
    service: str
    canary: str
    stable: str
    plan: Plan
    phase: Phase
    explanation: Explanation
    created_at: datetime
    changed_at: datetime
    step: int = 0
    step_since: datetime | None = None
    baking_since: datetime | None = None
    obeyed_at: datetime | None = None
    ended_at: datetime | None = None
    version: int = 0

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self.phase in FINAL

    @property
    def has_had_traffic(self) -> bool:
        """Whether any traffic was ever ordered to the canary."""
        return self.step_since is not None

    @property
    def present_step(self) -> Step:
        """The step that it is at."""
        return self.plan.steps[self.step]

    @property
    def wanted_share(self) -> Share:
        """What the router has to be set to now, and again whenever it is seen with something else."""
        if self.phase in _TO_CANARY:
            return Share(weight_percent=FULL)
        if self.phase in _TO_STABLE or not self.has_had_traffic:
            return Share()
        return self.present_step.share

    @property
    def wanted_weight_percent(self) -> float:
        """The weight in it."""
        return self.wanted_share.weight_percent

    @property
    def makes_looks(self) -> bool:
        """Whether a look is due at every interval."""
        return self.phase in _LOOKING and self.has_had_traffic

    @property
    def checks_outputs_first(self) -> bool:
        """Whether the canary's outputs are checked now, before it gets any traffic."""
        return self.phase is Phase.WAITING and bool(self.plan.output_checks)

    @property
    def undecided_at(self) -> datetime | None:
        """When the step will have been undecided for too long; None while it does not bake."""
        if self.baking_since is None:
            return None
        extended = self.plan.on_undecided is OnUndecided.EXTEND
        return self.baking_since + self.present_step.bake_max * (2 if extended else 1)

    def is_extended(self, now: datetime) -> bool:
        """Whether the step bakes longer than its ``bake_max``, because it was undecided then."""
        if self.phase is not Phase.BAKING or self.baking_since is None:
            return False
        return now - self.baking_since >= self.present_step.bake_max


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A due change of phase, with its reason. ``step`` is the one to enter; ``obeys`` the time of the wish that it obeys."""

    to: Phase
    explanation: Explanation
    step: int | None = None
    obeys: datetime | None = None


def apply(rollout: Rollout, move: Move, now: datetime) -> Rollout:
    """The rollout after the move; the only door through which a phase changes.

    Raises:
        InvalidTransition: the table has no such move.
    """
    if move.to not in TRANSITIONS[rollout.phase]:
        raise InvalidTransition(f"rollout {rollout.id} cannot go from {rollout.phase} to {move.to}", what="rollout")
    changes: dict[str, object] = {"phase": move.to, "explanation": move.explanation, "changed_at": now}
    step = rollout.step if move.step is None else move.step
    is_new_visit = rollout.phase in (Phase.WAITING, Phase.PAUSED) or step != rollout.step
    if move.to in _ONWARD and is_new_visit:  # but not where a lost weight is ordered again
        changes |= {"step": step, "step_since": now, "baking_since": None}
    if move.to is Phase.BAKING and rollout.baking_since is None:
        changes["baking_since"] = now
    if move.obeys is not None:
        changes["obeyed_at"] = move.obeys
    if move.to in FINAL:
        changes["ended_at"] = now
    return replace(rollout, **changes)  # type: ignore[arg-type]
