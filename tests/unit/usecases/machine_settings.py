"""How long the state machines of this folder play, and that what they find is shrunk and not kept."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import Phase as Phases


def plays(examples: int, *, steps: int) -> settings:
    """So many lives of at most so many steps each, however long one takes."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phases.explicit, Phases.generate, Phases.shrink],
    )
