"""How the canary engine judges simulated traffic: ``python -m tests.benchmarks.simulation [--only …] [--short]``.

Prints one JSON object a line (``docs/rollouts.md`` says what each number is); exits with 1 when one does not hold. All seeds
are fixed, so every run gives the same numbers, save for ``decision``, which is measured time.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import median

from fermion.domain.rollout.looks import Look
from fermion.domain.rollout.plan import MetricRule

from . import rollout_rules as rules
from .decision import decision_line
from .lines import Line, percentile
from .rollout_rules import ERRORS, LATENCY, PLAN
from .rollout_streams import ENVOY_BOUNDS, Scenario, stream

LOOKS = 20
RATES = (5.0, 50.0, 500.0)
FAULTS: dict[str, tuple[MetricRule, dict[str, object]]] = {
    "errors_1_to_3": (ERRORS, {"errors": (0.01, 0.03)}),
    "errors_1_to_10": (ERRORS, {"errors": (0.01, 0.10)}),
    "p95_plus_20": (LATENCY, {"slower": 1.2}),
    "p95_plus_100": (LATENCY, {"slower": 2.0}),
}
POWER_BARS = {("errors_1_to_3", 50.0): 0.8, ("errors_1_to_10", 50.0): 0.9}
FAULT_SEEDS = 1_000_000
NAMES = ("alike", "power", "late", "decision")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The calibrated limits of the other rules for one metric at one rate: by number of failed checks, and of U's z."""

    threshold: dict[int, float]
    u_score: float


@dataclass(frozen=True, kw_only=True)
class Alike:
    """What came of rollouts without a difference."""

    rollouts: int
    rolled_back: int
    significant: int
    limits: dict[str, Limits]
    usual_threshold: int
    usual_u: int


@cache
def alike(scenario: Scenario, rollouts: int) -> Alike:
    """Rollouts of a canary that is stable's twin, and the limits that the other rules need there.

    ``usual_*`` counts what rules with fixed numbers do, as they stand in the examples of Flagger's and Kayenta's manuals:
    more than 1 % errors or a p95 over 150 ms in five checks; U at 98 % with a quarter more, asked at every interval.
    """
    ours: list[Look] = []
    significant = usual_threshold = usual_u = 0
    needed: dict[tuple[str, int], list[float]] = {}
    for seed in range(rollouts):
        counts = list(stream(scenario, seed, LOOKS))
        looks = rules.looks_of(PLAN, counts, scenario.bounds)
        ours.append(looks[-1])
        significant += any(each.statistic >= each.bound for look in looks for each in look.metrics)
        by_threshold = by_u = False
        for rule, limit in ((ERRORS, 0.01), (LATENCY, 0.15)):
            points = rules.values(rule, counts, scenario.bounds)
            scores = rules.u_scores(rule, points)
            for checks in rules.FAILED_CHECKS:
                needed.setdefault((rule.name, checks), []).append(rules.threshold_needed(points, checks))
            needed.setdefault((rule.name, 0), []).append(max(scores, default=0.0))
            by_threshold |= rules.threshold_hits(points, limit, 5) is not None
            by_u |= rules.first_above(rules.u_scores(replace(rule, tolerance=0.25), points), 2.326) is not None
        usual_threshold += by_threshold
        usual_u += by_u
    limits = {
        rule.name: Limits(
            threshold={
                checks: rules.calibrated(needed[rule.name, checks], PLAN.alpha_of(rule))
                for checks in rules.FAILED_CHECKS
            },
            u_score=rules.calibrated(needed[rule.name, 0], PLAN.alpha_of(rule)),
        )
        for rule in (ERRORS, LATENCY)
    }
    return Alike(
        rollouts=rollouts,
        rolled_back=sum(look.failed_look is not None for look in ours),
        significant=significant,
        limits=limits,
        usual_threshold=usual_threshold,
        usual_u=usual_u,
    )


def alike_lines(rollouts: int, *, judged: bool) -> Iterator[Line]:
    """False rollbacks without a difference: at three rates, through a day, in bursts, and where an assumption does not hold."""
    scenarios = {f"alike_{rate:g}": Scenario(rate=rate) for rate in RATES}
    scenarios |= {"alike_day": Scenario(day=True), "alike_bursts": Scenario(bursts=True)}
    scenarios |= {"alike_half": Scenario(weight=0.5), "alike_clumps_of_5": Scenario(clump=5)}
    for name, scenario in scenarios.items():
        found = alike(scenario, rollouts)
        share = found.rolled_back / found.rollouts
        yield Line(
            bench=name,
            bar=f"rolled back <= alpha = {PLAN.alpha:g}" if scenario.clump == 1 else "none: the bad come in clumps",
            holds=share <= PLAN.alpha if judged and scenario.clump == 1 else None,
            value=share,
            raw={
                "rollouts": found.rollouts,
                "significant": round(found.significant / found.rollouts, 4),
                "threshold_1_percent_150_ms": round(found.usual_threshold / found.rollouts, 4),
                "mann_whitney_98_percent": round(found.usual_u / found.rollouts, 4),
            },
        )


def power_lines(rollouts: int, calibrating: int, *, judged: bool) -> Iterator[Line]:
    """How many faults are found in 20 looks, and how soon, by each rule at the same alpha."""
    for fault, (rule, changes) in FAULTS.items():
        for rate in RATES:
            scenario = Scenario(rate=rate, **changes)  # type: ignore[arg-type]
            limits = alike(Scenario(rate=rate), calibrating).limits[rule.name]
            yield _power_line(
                f"{fault}_at_{rate:g}", scenario, rule, limits, rollouts, POWER_BARS.get((fault, rate)), judged
            )
    coarse = Scenario(rate=50.0, slower=2.0, bounds=ENVOY_BOUNDS)
    limits = alike(replace(coarse, slower=1.0), calibrating).limits[LATENCY.name]
    yield _power_line("p95_plus_100_at_50_envoy_buckets", coarse, LATENCY, limits, rollouts, None, judged)


def _power_line(
    name: str, scenario: Scenario, rule: MetricRule, limits: Limits, rollouts: int, bar: float | None, judged: bool
) -> Line:
    ours: list[int | None] = []
    by_threshold: dict[int, list[int | None]] = {checks: [] for checks in limits.threshold}
    by_u: list[int | None] = []
    for seed in range(FAULT_SEEDS, FAULT_SEEDS + rollouts):
        counts = list(stream(scenario, seed, LOOKS))
        ours.append(rules.found_at(rules.looks_of(PLAN, counts, scenario.bounds)))
        points = rules.values(rule, counts, scenario.bounds)
        for checks, limit in limits.threshold.items():
            by_threshold[checks].append(rules.threshold_hits(points, limit, checks))
        by_u.append(rules.first_above(rules.u_scores(rule, points), limits.u_score))
    checks = min(by_threshold, key=lambda each: (_median(by_threshold[each]), -_power(by_threshold[each])))
    others = {"threshold": by_threshold[checks], "mann_whitney": by_u}
    sooner = _median(ours) <= _median(by_threshold[checks])
    return Line(
        bench=name,
        bar=("" if bar is None else f"power >= {bar:g}, ") + "median time to detect <= the threshold's at equal alpha",
        holds=(sooner and (bar is None or _power(ours) >= bar)) if judged else None,
        value=_power(ours),
        raw={
            "rollouts": rollouts,
            "looks_p50": _shown(_median(ours)),
            "looks_p90": _shown(percentile([each or math.inf for each in ours], 0.9)),
            **{f"{other}_power": _power(found) for other, found in others.items()},
            **{f"{other}_looks_p50": _shown(_median(found)) for other, found in others.items()},
            "threshold_checks": checks,
        },
    )


def _power(found: Sequence[int | None]) -> float:
    return round(sum(each is not None for each in found) / len(found), 4)


def _median(found: Sequence[int | None]) -> float:
    return median(math.inf if each is None else each for each in found)


def _shown(looks: float) -> float | None:
    return None if math.isinf(looks) else looks


def late_lines(rollouts: int) -> Iterator[Line]:
    """A fault that begins after 100 good looks: how many looks after that it is found."""
    good = 100
    for fault in ("errors_1_to_3", "errors_1_to_10", "p95_plus_20", "p95_plus_100"):
        scenario = Scenario(rate=50.0, onset=good, **FAULTS[fault][1])  # type: ignore[arg-type]
        found = []
        for seed in range(FAULT_SEEDS, FAULT_SEEDS + rollouts):
            at = rules.found_at(rules.looks_of(PLAN, list(stream(scenario, seed, good + LOOKS))))
            found.append(None if at is None else at - good)
        early = sum(each is not None and each <= 0 for each in found)
        raw = {"rollouts": rollouts, "looks_p50": _shown(_median(found)), "false": early}
        yield Line(bench=f"late_{fault}", bar="reported", holds=None, value=_power(found), raw=raw)


def lines(given: argparse.Namespace) -> Iterator[Line]:
    """The lines, as they come."""
    rollouts, faulty = (100, 20) if given.short else (2000, 300)
    if "alike" in given.only:
        yield from alike_lines(rollouts, judged=not given.short)
    if "power" in given.only:
        yield from power_lines(faulty, rollouts, judged=not given.short)
    if "late" in given.only:
        yield from late_lines(faulty // 3)
    if "decision" in given.only:
        yield decision_line()


def main() -> int:
    """Run the chosen ones."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    asked.add_argument("--short", action="store_true", help="few rollouts, to see that it runs; bars are not judged")
    missed = 0
    for line in lines(asked.parse_args()):
        line.show()
        missed += line.holds is False
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
