"""What is wrong with a plan: all of it at once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Final

from fermion.domain.problems import Problem
from fermion.domain.rollout.plan import (
    COMPARED,
    FULL,
    SOURCES,
    WEIGHTLESS,
    Kind,
    MetricRule,
    Plan,
    Source,
    SplitRule,
    Step,
    Way,
)
from fermion.domain.serving.http_words import COOKIE_VALUE, HEADER_VALUE, TOKEN
from fermion.domain.spelling import did_you_mean

MAX_STEPS: Final = 100
MAX_METRICS: Final = 50
MAX_ALPHA: Final = 0.5
MAX_DURATION: Final = timedelta(days=30)


def problems_of(plan: Plan, sources: Mapping[str, Source] = SOURCES) -> tuple[Problem, ...]:
    """Everything wrong with the plan; ``sources`` are the metrics that can be measured, by name."""
    found = [*_of_steps(plan), *_of_numbers(plan), *_of_metrics(plan)]
    for number, rule in enumerate(plan.metrics):
        field = f"metrics.{number}"
        found += [*_of_rule(field, rule), *_of_source(field, rule, plan.interval, sources)]
    return tuple(found)


def _of_steps(plan: Plan) -> Iterator[Problem]:
    weights = [step.weight_percent for step in plan.steps]
    if not weights:
        yield _problem("steps", "missing", "there is no step.", "Write the weights in percent, as [10, 50, 100].")
        return
    if len(weights) > MAX_STEPS:
        yield _problem("steps", "too_many", f"there are {len(weights)} steps; at most {MAX_STEPS}.", "Leave some out.")
    yield from _of_order(plan)
    if weights[-1] != FULL and not math.isnan(weights[-1]):
        message = f"the last step is {weights[-1]:g} %."
        yield _problem("steps", "not_ending_at_100", message, "End at 100, which is the promotion.")
    for number, step in enumerate(plan.steps):
        yield from _of_step(f"steps.{number}", step, plan)
    if plan.approvers and not any(step.approval for step in plan.steps):
        message = "somebody may approve, and no step asks for it."
        yield _problem("approvers", "nobody_asked", message, "Write approval: true at a step, or beside the steps.")


def _of_order(plan: Plan) -> Iterator[Problem]:
    """Copies and groups first, then weights that grow."""
    before = 0.0
    for number, step in enumerate(plan.steps):
        field, weight = f"steps.{number}", step.weight_percent
        if step.share.way in WEIGHTLESS and weight != FULL:
            if weight:
                message = f"{step.share} needs no weight, and {weight:g} % of the others would come on top of it."
                yield _problem(
                    f"{field}.weight_percent", "misplaced", message, "Leave it out, or take a step for each."
                )
            elif before:
                message = f"{step.share} comes after {before:g} %, which would be taken back."
                yield _problem(field, "not_increasing", message, "Put copies and groups before the first weight.")
            continue
        if not 0 < weight <= FULL:
            yield _problem(field, "out_of_range", f"{weight:g} % is no share of the traffic.", "Stay in 0 to 100 %.")
        elif weight <= before:
            message = f"{weight:g} % comes after {before:g} %."
            yield _problem(field, "not_increasing", message, "Let every step be larger than the one before.")
        before = weight


def _of_way(field: str, step: Step) -> Iterator[Problem]:
    """How its requests come to the canary."""
    if not 0 <= step.mirror_percent <= FULL:
        message = f"{step.mirror_percent} % cannot be copied."
        yield _problem(f"{field}.mirror_percent", "out_of_range", message, "Copy 1 to 100 %.")
    if step.weight_percent == FULL:
        for name, given in (("split", step.split), ("mirror_percent", step.mirror_percent)):
            if given:
                message = "the step at 100 % is the promotion; all requests are the canary's."
                yield _problem(f"{field}.{name}", "misplaced", message, "Leave it out.")
        return
    if step.split is not None and step.mirror_percent:
        message = "copies of requests would be counted beside the canary's own."
        yield _problem(f"{field}.mirror_percent", "one_way", message, "Take a step for each.")
    if step.split is not None:
        yield from _of_split(f"{field}.split", step.split)
    if step.share.way not in COMPARED and not step.approval:
        chosen = "the same clients come again and again" if step.share.way is Way.STICKY else "clients choose their arm"
        message = f"in this step {chosen}, so no test can tell by itself that the canary is as good."
        yield _problem(f"{field}.approval", "approval_needed", message, "Write approval: true; a person then decides.")


def _of_split(field: str, split: SplitRule) -> Iterator[Problem]:
    """Names and values that no request could bring."""
    kind, name = ("header", split.header) if split.header is not None else ("cookie", split.cookie or "")
    if not TOKEN.fullmatch(name):
        fix = "Use letters, digits and '-'."
        yield _problem(f"{field}.{kind}", "bad_name", f"{name!r} cannot be the name of a {kind}.", fix)
    allowed = HEADER_VALUE if kind == "header" else COOKIE_VALUE
    if split.value is not None and not allowed.fullmatch(split.value):
        fix = "Use printable ASCII" + (" without blanks, quotes, ',', ';' and '\\'." if kind == "cookie" else ".")
        yield _problem(f"{field}.value", "bad_value", f"{split.value!r} can never be the value of a {kind}.", fix)


def _of_step(field: str, step: Step, plan: Plan) -> Iterator[Problem]:
    yield from _of_way(field, step)
    if step.weight_percent == FULL:
        if step.approval:
            message = "the step at 100 % is the promotion; nobody could be asked after it."
            yield _problem(f"{field}.approval", "misplaced", message, "Ask at the step before.")
        return
    if step.bake_min > step.bake_max:
        message = f"bake_min is {_shown(step.bake_min)}, bake_max only {_shown(step.bake_max)}."
        yield _problem(f"{field}.bake_min", "over_maximum", message, "Make bake_max at least as long.")
    if step.bake_max < plan.interval:
        message = f"bake_max is {_shown(step.bake_max)}, a look comes every {_shown(plan.interval)}."
        yield _problem(f"{field}.bake_max", "no_look_fits", message, "Bake longer, or look more often.")
    for name, least in (("bake_min", timedelta(0)), ("bake_max", timedelta(0))):
        yield from _of_duration(f"{field}.{name}", getattr(step, name), least)


def _of_numbers(plan: Plan) -> Iterator[Problem]:
    if not 0 < plan.alpha <= MAX_ALPHA:
        fix = f"Write a chance above 0, at most {MAX_ALPHA}; 0.01 rolls back one of 100 good canaries at most."
        yield _problem("alpha", "out_of_range", f"{plan.alpha:g} is no chance of an error.", fix)
    if plan.min_requests < 1:
        message = f"{plan.min_requests} requests would be enough for a verdict."
        yield _problem("min_requests", "out_of_range", message, "Ask for at least one.")
    second = timedelta(seconds=1)
    for name, least in (("interval", second), ("warm_up", timedelta(0)), ("approval_timeout", second)):
        yield from _of_duration(name, getattr(plan, name), least)
    for name in ("ready_timeout", "unready_limit", "shift_timeout"):
        yield from _of_duration(name, getattr(plan, name), second)


def _of_duration(field: str, duration: timedelta, least: timedelta) -> Iterator[Problem]:
    if not least <= duration <= MAX_DURATION:
        message = f"{_shown(duration)} is not between {_shown(least)} and {MAX_DURATION.days} days."
        yield _problem(field, "out_of_range", message, "Take a duration in that range.")


def _of_metrics(plan: Plan) -> Iterator[Problem]:
    if len(plan.metrics) > MAX_METRICS:
        message = f"there are {len(plan.metrics)} metrics; at most {MAX_METRICS}."
        yield _problem("metrics", "too_many", message, "Leave some out.")
    for name, count in Counter(rule.name for rule in plan.metrics).items():
        if count > 1:
            yield _problem("metrics", "duplicate", f"{name[:60]!r} is there {count} times.", "Name each metric once.")
    if plan.steps and plan.steps[0].weight_percent == FULL:
        return  # the canary gets all at once: nothing is compared
    if any(step.share.way not in COMPARED for step in plan.steps) and not any(
        rule.guard is not None and rule.must_be_measured for rule in plan.metrics
    ):
        message = "a split by header or cookie fails by guards alone, and no metric that must be measured has one."
        yield _problem("metrics", "guard_needed", message, "Give one a guard, as {name: error_rate, guard: 5%}.")
    if not any(rule.must_be_measured for rule in plan.metrics):
        message = "no metric must be measured, so the canary would be promoted on silence."
        yield _problem("metrics", "nothing_measured", message, "Name a metric whose no_data is not neutral.")


def _of_rule(field: str, rule: MetricRule) -> Iterator[Problem]:
    if rule.kind is Kind.QUANTILE and not (rule.quantile is not None and 0 < rule.quantile < 1):
        fix = "Write which one, above 0 and below 1, as 0.95."
        yield _problem(f"{field}.quantile", "out_of_range", f"{rule.quantile} is no quantile.", fix)
    if rule.kind is Kind.PROPORTION and rule.quantile is not None:
        message = f"{rule.name[:60]} is a proportion, which has no quantile."
        yield _problem(f"{field}.quantile", "misplaced", message, "Leave it out.")
    if not 0 <= rule.tolerance < math.inf:
        fix = "Write 0.5 to let the canary be worse by half, 0 to let it be no worse."
        yield _problem(f"{field}.tolerance", "out_of_range", f"{rule.tolerance:g} is no relative bound.", fix)
    if not 0 < rule.weight < math.inf:
        fix = "Write a number above 0; 2 gets twice the share of alpha that 1 gets."
        yield _problem(f"{field}.weight", "out_of_range", f"{rule.weight:g} is no weight.", fix)
    if rule.min_samples is not None and rule.min_samples < 1:
        message = f"{rule.min_samples} samples would be enough for a verdict."
        yield _problem(f"{field}.min_samples", "out_of_range", message, "Ask for at least one.")
    if rule.guard is not None:
        most = 1.0 if rule.kind is Kind.PROPORTION else math.inf
        if not 0 <= rule.guard <= most or math.isinf(rule.guard):
            fix = "Write a share from 0 to 1." if most == 1 else "Write a number in the metric's unit, 0 or more."
            yield _problem(f"{field}.guard", "out_of_range", f"{rule.guard:g} cannot be reached.", fix)


def _of_source(field: str, rule: MetricRule, interval: timedelta, sources: Mapping[str, Source]) -> Iterator[Problem]:
    source = sources.get(rule.name)
    if source is None:
        near = did_you_mean(rule.name, sources)
        fix = f"Did you mean {near}?" if near else f"What can be measured: {', '.join(sources)}."
        yield _problem(f"{field}.name", "unknown_metric", f"nobody measures {rule.name[:60]!r}.", fix)
        return
    if source.kind is not rule.kind:
        message = f"{rule.name} is measured as a {source.kind}, not as a {rule.kind}."
        yield _problem(f"{field}.kind", "other_kind", message, "Leave kind out.")
    if interval < source.min_interval:
        message = f"a look every {_shown(interval)} is more often than the {_shown(source.min_interval)} in which"
        fix = f"Look every {_shown(source.min_interval)} or less often."
        yield _problem("interval", "too_short", f"{message} {rule.name} is measured.", fix)


def _shown(duration: timedelta) -> str:
    return f"{duration.total_seconds():g} s"


def _problem(field: str, code: str, message: str, fix: str) -> Problem:
    return Problem(field=field, code=code, message=message, fix=fix)
