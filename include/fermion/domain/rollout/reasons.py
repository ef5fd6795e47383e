"""Why a rollout is as it is; logs, API, pages and tests all use these words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Reason(StrEnum):
    """Why a rollout is in its phase. The comment says what is true of the world."""

    # on the way
    CREATED = "created"  # nothing has been done yet; the canary's replicas are starting
    STEP_STARTED = "step_started"  # the next weight was ordered
    WEIGHT_LOST = "weight_lost"  # the router was seen with another weight; the step's is ordered again
    WEIGHT_APPLIED = "weight_applied"  # the weight was read back; the warm-up runs
    WARMED_UP = "warmed_up"  # looks count from now on
    APPROVAL_NEEDED = "approval_needed"  # the step has passed; the plan asks a person
    RESUMED = "resumed"  # a person let it go on
    # a person has to decide
    PAUSED = "paused"  # a person asked for it
    UNDECIDED = "undecided"  # the step could be neither passed nor failed in its time
    APPROVAL_TIMEOUT = "approval_timeout"  # nobody answered in time
    STABLE_DOWN = "stable_down"  # a rollback is due, but no stable replica would answer
    # promoted
    PASSED = "passed"  # all steps passed; the canary gets all the traffic
    PROMOTED_BY_HAND = "promoted_by_hand"  # a person skipped what was left
    SERVES_ALL = "serves_all"  # the router was seen to send everything to the canary
    # back to stable
    FAILED = "failed"  # a look failed
    CANARY_DEAD = "canary_dead"  # the canary's replicas are gone or crash again and again
    CANARY_UNREADY = "canary_unready"  # not all of its replicas were ready for too long
    SHIFT_TIMEOUT = "shift_timeout"  # the router could not be seen with the weight in time
    REJECTED = "rejected"  # a person said no
    ABORTED_BY_HAND = "aborted_by_hand"  # a person ended it
    SUPERSEDED = "superseded"  # a newer revision takes its place
    READY_TIMEOUT = "ready_timeout"  # the canary's replicas were never all ready


@dataclass(frozen=True, slots=True)
class Explanation:
    """A reason with its sentence and the numbers in it. ``numbers`` holds JSON-ready values."""

    reason: Reason
    message: str
    numbers: Mapping[str, object] = field(default_factory=dict)
