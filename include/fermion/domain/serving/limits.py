"""Could a service of that size ever run in its pool? All reasons against it at once. Pure."""

from __future__ import annotations

from fermion.domain.pools import Pool
from fermion.domain.problems import Problem


def over_quota(pool: Pool, *, replicas: int, gpus_per_replica: int, team: str, more: int = 0) -> list[Problem]:
    """Why so many replicas, and ``more`` beside them while a new revision is tried, could never all hold GPUs at once."""
    asked = (replicas + more) * gpus_per_replica
    policy, problems = pool.policy, []
    beside = f" and {more} of the revision that serves" if more else ""
    told = f"{replicas} replicas{beside} × {gpus_per_replica} GPUs are {asked}"

    def refuse(code: str, message: str, most: int) -> None:
        fix = f"Ask for fewer replicas: {max(0, most // gpus_per_replica - more)} would fit."
        if more:
            fix += " Or replace replica by replica (capacity: swap)."
        problems.append(Problem(field="replicas", code=code, message=message, fix=fix))

    if asked > pool.capacity:
        refuse("over_capacity", f"{told}; pool {pool.id} has {pool.capacity}.", pool.capacity)
    if policy.max_gpus_per_user is not None and asked > policy.max_gpus_per_user:
        refuse("over_user_limit", f"{told}; one user may hold {policy.max_gpus_per_user}.", policy.max_gpus_per_user)
    share = policy.teams.get(team)
    if share is not None and share.borrowing_limit is not None and asked > share.nominal + share.borrowing_limit:
        most = share.nominal + share.borrowing_limit
        refuse("over_team_limit", f"{told}; team {team!r} may take {most} of {pool.id}.", most)
    return problems
