"""Judging a look: ERROR, NODATA, FAIL or PASS for each metric, in this order, and one outcome in all. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from fermion.domain.rollout import measures
from fermion.domain.rollout.checking import judge_checks
from fermion.domain.rollout.evidence import add
from fermion.domain.rollout.looks import Carried, CheckLook, Look, Measured, MetricLook, Outcome, Reading
from fermion.domain.rollout.plan import COMPARED, Kind, MetricRule, NoData, Plan, Way

HALF_LIFE: Final = 5
"""After so many looks a request counts half in the values that are shown and compared with the tolerance."""

_FADING: Final = 0.5 ** (1 / HALF_LIFE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is asked of one metric in this look."""

    rule: MetricRule
    needed: int
    bound: float
    patience: timedelta
    measured: Measured

    @property
    def is_compared(self) -> bool:
        """Whether nothing but chance tells the arms' requests apart."""
        return self.measured.share.way in COMPARED


def judge(plan: Plan, measured: Measured, previous: Look | None) -> Look:
    """The look that was made of what was measured; ``previous`` is the one before it in the same rollout.

    In all: FAIL if any metric or output check fails; else ERROR if any could not be measured; else NODATA if one that must be
    measured has too few samples, or all have, or a check had nobody to ask; else PASS. Before the canary gets anything there
    are only the checks.
    """
    readings = {reading.metric: reading for reading in measured.readings}
    before = {} if previous is None else {each.metric: each.carried for each in previous.metrics}
    same_step = previous is not None and previous.measured.step == measured.step
    total, patience = plan.total_weight, plan.steps[measured.step].bake_min
    found = []
    for rule in () if measured.is_before_traffic else plan.metrics:
        carried = before.get(rule.name, Carried())
        bound = math.log(total / (plan.alpha * rule.weight))
        asked = _Asked(rule=rule, needed=plan.samples_of(rule), bound=bound, patience=patience, measured=measured)
        found.append(
            _judge(asked, readings.get(rule.name), carried if same_step else Carried(evidence=carried.evidence))
        )
    checks = judge_checks(plan, measured)
    outcome, sentence = _in_all(plan, found, checks)
    number = 1 if previous is None else previous.number + 1
    failed, failure = (None, "") if previous is None else (previous.failed_look, previous.failure)
    if failed is None and outcome is Outcome.FAIL:
        failed, failure = number, sentence
    return Look(
        number=number,
        measured=measured,
        outcome=outcome,
        sentence=sentence,
        metrics=tuple(found),
        checks=checks,
        failed_look=failed,
        failure=failure,
    )


def _in_all(plan: Plan, found: Sequence[MetricLook], checks: Sequence[CheckLook]) -> tuple[Outcome, str]:
    everything: list[MetricLook | CheckLook] = [*checks, *found]
    for outcome in (Outcome.FAIL, Outcome.ERROR):
        if those := [each.sentence for each in everything if each.outcome is outcome]:
            return outcome, " ".join(those)
    needed = {rule.name for rule in plan.metrics if rule.must_be_measured}
    counting: list[MetricLook | CheckLook] = [*checks, *(each for each in found if each.metric in needed)]
    if short := [each.sentence for each in counting if each.outcome is Outcome.NODATA]:
        return Outcome.NODATA, " ".join(short)
    if not any(each.outcome is Outcome.PASS for each in (found or checks)):
        return Outcome.NODATA, "Nothing was measured."
    passed = sum(each.outcome is Outcome.PASS for each in found)
    told = [f"{passed} of {len(found)} metrics pass."] if found else []
    return Outcome.PASS, " ".join([*told, *(each.sentence for each in checks)])


def _judge(asked: _Asked, reading: Reading | None, before: Carried) -> MetricLook:
    """1. ERROR. 2. NODATA. 3. FAIL by the guard. 4. FAIL, surely and clearly worse, where that can be told. 5. PASS."""
    wrong = _unusable(asked.rule, reading)
    if reading is None or wrong is not None:
        return _look(asked, Outcome.ERROR, f"{asked.rule.name} could not be measured: {wrong}.", _Known(carried=before))
    known = _known(asked.rule, _carry(asked, reading, before))
    if min(known.samples) < asked.needed:
        return _look(asked, *_too_few(asked, known), known)
    if (crossing := _crossing(asked.rule, known.carried)) is not None:
        return _look(asked, Outcome.FAIL, crossing, known, is_verdict=True)
    is_large = known.worsening is None or known.worsening > asked.rule.tolerance
    if asked.is_compared and known.statistic >= asked.bound and is_large:
        return _look(asked, Outcome.FAIL, _said(asked, known, "is surely worse"), known, is_verdict=True)
    return _look(asked, Outcome.PASS, _said(asked, known, "passes"), known, is_verdict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What is known of one metric now. A value or worsening of None is unknown or without end, which JSON cannot hold."""

    carried: Carried
    canary: float | None = None
    stable: float | None = None
    worsening: float | None = None

    @property
    def statistic(self) -> float:
        return self.carried.evidence.log_wealth

    @property
    def samples(self) -> tuple[int, int]:
        return sum(self.carried.fresh_canary), sum(self.carried.fresh_stable)


def _known(rule: MetricRule, carried: Carried) -> _Known:
    canary = measures.value_of(rule, carried.bounds, carried.lately_canary)
    stable = measures.value_of(rule, carried.bounds, carried.lately_stable)
    worse = measures.worsening(rule, canary, stable)
    return _Known(carried=carried, canary=_finite(canary), stable=_finite(stable), worsening=_finite(worse))


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value


def _look(asked: _Asked, outcome: Outcome, sentence: str, known: _Known, *, is_verdict: bool = False) -> MetricLook:
    """The look of the metric; after a verdict its samples begin anew."""
    samples, carried = known.samples, known.carried
    if is_verdict:
        passed_at = asked.measured.ended_at if outcome is Outcome.PASS else carried.passed_at
        carried = replace(carried, fresh_canary=(), fresh_stable=(), fresh_since=None, passed_at=passed_at)
    return MetricLook(
        metric=asked.rule.name,
        outcome=outcome,
        sentence=sentence,
        statistic=known.statistic,
        bound=asked.bound,
        canary_value=known.canary,
        stable_value=known.stable,
        worsening=known.worsening,
        canary_samples=samples[0],
        stable_samples=samples[1],
        carried=carried,
    )


def _unusable(rule: MetricRule, reading: Reading | None) -> str | None:
    """Why the reading cannot be used, as the end of a sentence; None where it can."""
    if reading is None:
        return "no answer came"
    if reading.error is not None:
        return reading.error.strip().rstrip(".") or "the query failed"
    buckets = 2 if rule.kind is Kind.PROPORTION else len(reading.bounds) + 1
    if not len(reading.canary) == len(reading.stable) == buckets:
        return f"{len(reading.canary)} and {len(reading.stable)} counts came for {buckets} buckets"
    if buckets < 2:
        return "a histogram needs two buckets"
    if min(*reading.canary, *reading.stable) < 0:
        return "a count is negative"
    if any(low >= high for low, high in zip(reading.bounds, reading.bounds[1:], strict=False)):
        return "the buckets' bounds do not increase"
    if rule.guard is not None and measures.beyond_guard(rule, reading.bounds, reading.canary) is None:
        return f"no bucket ends beyond the guard of {rule.guard:g}"
    return None


def _carry(asked: _Asked, reading: Reading, before: Carried) -> Carried:
    """What was known, with this look's counts. Other buckets than before begin anew; the evidence goes on.

    Arms that more than chance tells apart are no evidence.
    """
    kept = before if before.bounds == reading.bounds else Carried(evidence=before.evidence, passed_at=before.passed_at)
    evidence = before.evidence
    if asked.is_compared:
        evidence = add(evidence, measures.splits(asked.rule, reading.canary, reading.stable))
    return Carried(
        evidence=evidence,
        bounds=reading.bounds,
        lately_canary=_faded(kept.lately_canary, reading.canary),
        lately_stable=_faded(kept.lately_stable, reading.stable),
        fresh_canary=_summed(kept.fresh_canary, reading.canary),
        fresh_stable=_summed(kept.fresh_stable, reading.stable),
        fresh_since=kept.fresh_since or asked.measured.started_at,
        passed_at=kept.passed_at,
    )


def _faded(before: tuple[float, ...], counts: tuple[int, ...]) -> tuple[float, ...]:
    if not before:
        return tuple(map(float, counts))
    return tuple([_FADING * old + count for old, count in zip(before, counts, strict=True)])


def _summed(before: tuple[int, ...], counts: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(old + count for old, count in zip(before, counts, strict=True)) if before else counts


def _too_few(asked: _Asked, known: _Known) -> tuple[Outcome, str]:
    since = known.carried.fresh_since or asked.measured.started_at
    waited = asked.measured.ended_at - since
    failed = asked.rule.no_data is NoData.FAIL and waited >= asked.patience
    samples = known.samples
    sentence = (
        f"{asked.rule.name} has {samples[0]} samples from the canary and {samples[1]} from stable"
        f" in {waited.total_seconds():.0f} s; {asked.needed} of each are needed."
    )
    return Outcome.FAIL if failed else Outcome.NODATA, sentence


def _crossing(rule: MetricRule, carried: Carried) -> str | None:
    """The sentence of a guard that is crossed, or None."""
    beyond = None if rule.guard is None else measures.beyond_guard(rule, carried.bounds, carried.fresh_canary)
    if beyond is None or rule.guard is None:
        return None
    (bad, allowed), total = beyond, sum(carried.fresh_canary)
    if not measures.is_crossed(bad, total, allowed):
        return None
    guard = shown(rule, rule.guard)
    return (
        f"{rule.name} crosses its guard of {guard}: {bad} of {total} requests to the canary are beyond it,"
        f" {_percent(allowed)} may be."
    )


def _said(asked: _Asked, known: _Known, verdict: str) -> str:
    rule = asked.rule
    compared = "by how much is unknown" if known.worsening is None else f"{_percent(known.worsening)} worse"
    if not asked.is_compared:
        sticky = asked.measured.share.way is Way.STICKY
        why = "the same clients come again and again" if sticky else "clients choose their arm"
        held = f"its guard of {shown(rule, rule.guard)} holds" if rule.guard is not None else "it has no guard"
        return (
            f"{rule.name} {verdict}: {shown(rule, known.canary)} against {shown(rule, known.stable)} ({compared}), not"
            f" tested because {why}; {held}."
        )
    return (
        f"{rule.name} {verdict}: {shown(rule, known.canary)} against {shown(rule, known.stable)} ({compared},"
        f" {_percent(rule.tolerance)} tolerated), evidence {odds(known.statistic)} of {odds(asked.bound)} needed."
    )


def shown(rule: MetricRule, value: float | None) -> str:
    """A metric's value as people read it."""
    if value is None:
        return "a value beyond all buckets" if rule.kind is Kind.QUANTILE else "no value"
    if rule.kind is Kind.PROPORTION:
        return _percent(value)
    is_short = rule.name.startswith("latency") and value < 1
    return f"{value * 1000:.3g} ms" if is_short else f"{value:.3g}{' s' if rule.name.startswith('latency') else ''}"


def odds(log_evidence: float) -> str:
    """The log of evidence as people bet: ``200 : 1``."""
    if log_evidence > math.log(1e6):
        return f"10^{log_evidence / math.log(10):.0f} : 1"
    value = math.exp(log_evidence)
    return f"{value:,.0f} : 1" if value >= 10 else f"{value:.2g} : 1"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
