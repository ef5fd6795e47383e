"""The one reason that a waiting job has, in words and numbers, as the round left things.

Precedence: misconfigured, over a limit, staging or waiting for quota, waiting for placement, waiting behind a
reservation; judged as if leases that were asked to end for the job were gone. Where then nothing is left to wait for
but their end, it is about to preempt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from fermion.domain.book import Excess, Limit
from fermion.domain.counting import counted
from fermion.domain.line import ReservedFor, Waiting
from fermion.domain.picture import Picture
from fermion.domain.placement import Room
from fermion.domain.queues import Order
from fermion.domain.reasons import Explanation, Reason

TOP_HOLDERS = 5


class Explainer:
    """Makes explanations out of the picture at the end of a round; sums for a pool are made once, when first asked."""

    def __init__(self, picture: Picture, order: Order) -> None:
        self._picture = picture
        self._order = order
        self._told: dict[str, Explanation] = {}
        self._places: dict[str, int] = {}
        self._granted_in = Counter(grant.pool for grant in picture.grants.values())
        self._held: dict[str, tuple[int, list[dict[str, object]]]] = {}

    def __contains__(self, job_id: str) -> bool:
        return self._order.queues.get(job_id) is not None

    def __iter__(self) -> Iterator[str]:
        """Ids of the line's jobs in order."""
        return (job.job_id for job in self._order)

    def explain(self, job_id: str) -> Explanation:
        """The reason of one job of the line."""
        if job_id not in self._told:
            self._told[job_id] = self._explained(self._job(job_id))
        return self._told[job_id]

    def _explained(self, job: Waiting) -> Explanation:
        if job.pool not in self._picture.pools:
            message = f"Pool {job.pool!r} does not exist any more; stop the job, or wait until the pool is back."
            return Explanation(Reason.MISCONFIGURED, message, {"asked": job.gpus, "pool": job.pool})
        if job.job_id in self._picture.grants:
            return self._granted(job)
        numbers = self._numbers(job)
        reason, message, more = self._waiting(job, numbers)
        return Explanation(reason, message, {**numbers, **more})

    def _waiting(self, job: Waiting, numbers: dict[str, object]) -> tuple[Reason, str, dict[str, object]]:
        picture, room = self._picture, self._picture.rooms[job.pool]
        problems = picture.problems(job)
        if problems:
            message = "It can never start as it is: " + " ".join(f"{p.message} {p.fix}" for p in problems)
            return Reason.MISCONFIGURED, message, {"problems": [problem.to_payload() for problem in problems]}
        victims = picture.victims_of(job.job_id)
        promise = picture.reservations.get(job.job_id)
        if victims and promise is not None and promise.why is ReservedFor.PREEMPTION:
            message = f"{_leases(len(victims))} of lower priority {'was' if len(victims) == 1 else 'were'} asked to end; their GPUs go to this job."
            return Reason.ABOUT_TO_PREEMPT, message, {"victims": victims}
        excess = picture.book.over_limit(job)
        if excess is not None:
            return Reason.OVER_LIMIT, _over_limit(job, excess), _excess_numbers(excess)
        place = f"position {numbers['position']} of {numbers['line']}"
        if not job.staged:
            message = f"Image, data and code are being fetched; it keeps {place} in the line of pool {job.pool!r}."
            return Reason.STAGING, message, {}
        head = f"Pool {job.pool!r} has {numbers['in_use']} of {numbers['capacity']} GPUs in use; this job asks for {_asked(job)}."
        end = f" It waits at {place}{self._promise(job)}{self._hint(job, room)}."
        left = picture.book.quota_left(job)
        if left < job.gpus or room.free < job.gpus:
            quota = f" Team {job.team!r} may take {max(0, left)} of them now." if left < job.gpus else ""
            return Reason.WAITING_FOR_QUOTA, head + quota + end, {"quota_left": min(max(0, left), room.free)}
        if room.find(job, ends_by=None, heed_claims=False) is None:
            return Reason.WAITING_FOR_PLACEMENT, head + _placement(job, room) + end, _placement_numbers(job, room)
        return self._behind(job, head, end)

    def _behind(self, job: Waiting, head: str, end: str) -> tuple[Reason, str, dict[str, object]]:
        """The reason of a job that would fit, were nothing promised to a job before it."""
        promises = [promise for promise in self._picture.reservations.values() if promise.job_id != job.job_id]
        here = [promise for promise in promises if promise.pool == job.pool] or promises
        first = here[0] if here else None
        told = (
            ""
            if first is None
            else f" {counted(first.gpus_per_node, 'GPU')} on {', '.join(first.nodes)} {'is' if first.gpus_per_node == 1 else 'are'} kept for job {first.job_id!r}"
        )
        if first is not None:
            told += f" from {first.starts_by:%H:%M:%S} UTC." if first.starts_by else " once they are free."
        if job.max_runtime is None:
            told += " Give max_runtime to be let through where that delays nobody."
        numbers: dict[str, object] = {}
        if first is not None:
            numbers["reserved_for"] = first.job_id
            numbers["reserved_from"] = first.starts_by.isoformat() if first.starts_by else None
        return Reason.WAITING_BEHIND_RESERVATION, head + told + end, numbers

    def _granted(self, job: Waiting) -> Explanation:
        grant = self._picture.grants[job.job_id]
        waited = (self._picture.now - job.queued_at).total_seconds()
        where = ", ".join(f"{len(part.devices)} on {part.node}" for part in grant.slices)
        message = f"Granted {counted(job.gpus, 'GPU')} of pool {job.pool!r} ({where}) after {waited:.1f} s in line."
        numbers = {"asked": job.gpus, "waited_s": waited, "nodes": [part.node for part in grant.slices]}
        return Explanation(Reason.GRANTED, message, numbers)

    def _job(self, job_id: str) -> Waiting:
        job = self._order.queues.get(job_id)
        assert job is not None
        return job

    # --- numbers ----------------------------------------------------------------------------------------------------

    def _numbers(self, job: Waiting) -> dict[str, object]:
        in_use, holders = self._holding(job.pool)
        position, line = self._place(job)
        return {
            "asked": job.gpus,
            "nodes": job.nodes,
            "gpus_per_node": job.gpus_per_node,
            "free": self._picture.rooms[job.pool].free,
            "capacity": self._picture.pools[job.pool].capacity,
            "in_use": in_use,
            "position": position,
            "line": line,
            "holders": holders,
        }

    def _holding(self, pool: str) -> tuple[int, list[dict[str, object]]]:
        """GPUs held in the pool after this round, and who holds most."""
        if pool not in self._held:
            gpus: Counter[tuple[str, str, str]] = Counter()
            for lease in self._picture.leases:
                if lease.pool == pool:
                    gpus[lease.holder_id, lease.holder_kind, lease.owner] += lease.gpus
            for grant in self._picture.grants.values():
                if grant.pool == pool:
                    gpus[grant.job_id, "job", self._job(grant.job_id).owner] += sum(
                        len(s.devices) for s in grant.slices
                    )
            top = sorted(gpus.items(), key=lambda item: (-item[1], item[0]))[:TOP_HOLDERS]
            rows: list[dict[str, object]] = [
                {"holder": holder, "kind": str(kind), "owner": owner, "gpus": count}
                for (holder, kind, owner), count in top
            ]
            self._held[pool] = sum(gpus.values()), rows
        return self._held[pool]

    def _place(self, job: Waiting) -> tuple[int, int]:
        """The job's position among those of its pool that still wait, and how many these are."""
        if not self._places:
            self._places = self._walked_places()
        granted = self._granted_in[job.pool]
        place = self._places.get(job.job_id) or self._order.ahead_of(job) - granted + 1
        return place, self._order.queues.count(job.pool) - granted

    def _walked_places(self) -> dict[str, int]:
        """The positions of those that were passed, among whom are all that were granted."""
        places: dict[str, int] = {}
        lengths: Counter[str] = Counter()
        for job in self._order.walked:
            if job.job_id not in self._picture.grants:
                lengths[job.pool] += 1
                places[job.job_id] = lengths[job.pool]
        return places

    def _promise(self, job: Waiting) -> str:
        promise = self._picture.reservations.get(job.job_id)
        if promise is None:
            return ""
        when = (
            f"from {promise.starts_by:%H:%M:%S} UTC at the latest" if promise.starts_by else "as soon as they are free"
        )
        return f"; GPUs on {', '.join(promise.nodes)} are kept for it {when}"

    def _hint(self, job: Waiting, room: Room) -> str:
        """The smaller request that could start at this moment, if there is one."""
        if job.nodes != 1:
            return ""
        widest = max((node.spare(job.ends_by(self._picture.now)) for node in room.nodes), default=0)
        gpus = min(widest, self._picture.book.quota_left(job), job.gpus - 1)
        if gpus < 1 or self._picture.where(replace(job, gpus_per_node=gpus)) is None:
            return ""
        return f"; ask for {gpus} to start now"


def _asked(job: Waiting) -> str:
    return str(job.gpus) if job.nodes == 1 else f"{job.gpus} on {job.nodes} nodes ({job.gpus_per_node} each)"


def _leases(count: int) -> str:
    return counted(count, "lease")


def _over_limit(job: Waiting, excess: Excess) -> str:
    who = "User" if excess.limit in (Limit.USER, Limit.USER_BUDGET) else "Team"
    if excess.limit in (Limit.USER, Limit.TEAM):
        room = int(excess.most - excess.used)
        then = f"It waits until {int(excess.used + excess.asked - excess.most)} of them end"
        return (
            f"{who} {excess.name!r} holds {excess.used:g} of {excess.most:g} GPUs allowed in pool {job.pool!r};"
            f" this job asks for {excess.asked:g}. {then}{f'; ask for {room} to come under the limit' if room > 0 else ''}."
        )
    return (
        f"{who} {excess.name!r} has used or promised {excess.used:.1f} of {excess.most:g} GPU-hours of pool {job.pool!r};"
        f" this job may take {excess.asked:.1f}. It waits until older use leaves the budget's window."
    )


def _excess_numbers(excess: Excess) -> dict[str, object]:
    return {"limit": str(excess.limit), "limit_of": excess.name, "used": excess.used, "most": excess.most}


def _placement(job: Waiting, room: Room) -> str:
    fitting = _placement_numbers(job, room)["fitting_nodes"]
    return f" Only {fitting} of the {job.nodes} nodes it needs have {counted(job.gpus_per_node, 'free GPU')}."


def _placement_numbers(job: Waiting, room: Room) -> dict[str, object]:
    allowed = [len(node.free) for node in room.nodes if node.name not in job.excluded_nodes]
    return {
        "fitting_nodes": sum(free >= job.gpus_per_node for free in allowed),
        "largest_free_block": max(allowed, default=0),
        "excluded_nodes": list(job.excluded_nodes),
    }
