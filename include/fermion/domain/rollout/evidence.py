"""Evidence that the canary is worse than stable, valid however often one looks (e-values).

The claim to be refuted is that both arms answer alike. Then, given all that was answered in a look, the canary's requests are
a random part of them, because the router draws at random. A bet that is fair under the claim multiplies its stake by a
number of mean 1 at most; so does the product over looks, and the mean of several bets. By Ville's inequality the wealth
reaches ``1 / alpha`` with a chance of at most ``alpha`` in a whole rollout, whoever looks and whenever. Which share of
requests is bad may change from look to look: nothing here has to know or to estimate it.

One bet says that the odds of a bad request to have fallen to the canary are ``odds`` times what the draw gives. If
``canary`` of ``total`` requests and ``bad`` of all are bad, the canary's count of bad requests is hypergeometric under the
claim; its generating function is at most that of drawing with replacement (Hoeffding 1963, theorem 4), once seen from the
bad requests and once from the canary's, which gives the fair price in closed form. It is exact for any count, also 0 or 1.

Sources: Turner, Ly and Grünwald, "Generic E-variables for exact sequential k-sample tests that allow for optional stopping"
(2024, arXiv 2106.02693); Ramdas and others, "Game-theoretic statistics and safe anytime-valid inference" (2023, arXiv
2210.01948); Herbster and Warmuth, "Tracking the best expert" (1998) for moving stakes between bets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

ODDS: Final = (1.5, 2.0, 3.0, 6.0, 12.0)
"""What is bet on: how many times worse the odds are. Only the worse side, so that a better canary is no evidence."""

PATIENCE: Final = 20
"""After n looks the share 1 / (n + PATIENCE) of all stakes is laid anew, so that a fault that begins late is still seen soon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How the bad requests of one look fell: ``bad_canary`` of ``bad``, where ``canary`` of ``total`` requests fell there."""

    bad_canary: int
    bad: int
    canary: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The stakes after some looks. The first is kept back, then comes one for each cut and each of ``ODDS``; natural logs.

    Empty before the first look. ``looks`` counts those that had requests in both arms and something bad.
    """

    looks: int = 0
    log_stakes: tuple[float, ...] = ()

    @property
    def log_wealth(self) -> float:
        """The log of all stakes together: 0 at the beginning; ``1 / alpha`` is needed to reject."""
        return log_sum(self.log_stakes) if self.log_stakes else 0.0


def log_e(split: Split, odds: float) -> float:
    """The log of what one bet pays for one look: mean 1 at most under the claim."""
    from_bad = split.bad * math.log1p(split.canary / split.total * (odds - 1))
    from_canary = split.canary * math.log1p(split.bad / split.total * (odds - 1))
    return split.bad_canary * math.log(odds) - min(from_bad, from_canary)


def add(evidence: Evidence, splits: Sequence[Split]) -> Evidence:
    """The evidence after one more look. ``splits`` are cuts of the same requests, always as many and in the same order."""
    telling = [split for split in splits if 0 < split.canary < split.total and 0 < split.bad < split.total]
    if not telling:
        return evidence  # nothing could be won or lost
    count = 1 + len(splits) * len(ODDS)
    before = evidence.log_stakes or (-math.log(count),) * count
    won = [0.0]
    for split in splits:
        won += [log_e(split, odds) for odds in ODDS] if split in telling else [0.0] * len(ODDS)
    after = [stake + gain for stake, gain in zip(before, won, strict=True)]
    return Evidence(looks=evidence.looks + 1, log_stakes=_shared(after, 1 / (evidence.looks + 1 + PATIENCE)))


def _shared(log_stakes: Sequence[float], share: float) -> tuple[float, ...]:
    """The same wealth with that share of it spread evenly."""
    top = max(log_stakes)
    stakes = [math.exp(stake - top) for stake in log_stakes]
    even = share * sum(stakes) / len(stakes)
    return tuple(top + math.log((1 - share) * stake + even) for stake in stakes)


def log_sum(logs: Sequence[float]) -> float:
    """The log of the sum of what the logs stand for."""
    top = max(logs)
    return top + math.log(sum(math.exp(each - top) for each in logs))
