"""A plan from what a person wrote (YAML or JSON), or all of its problems at once. Pure; in the manner of ``domain/request.py``.

``steps: [10, 50, 100]`` is a whole plan: all else has a default. Keys may be snake_case or camelCase; a number alone is a
step's weight, a name alone is a metric; durations are ``30s``, ``5m`` or, as a number, seconds; a latency's guard may
be ``500ms``. What stands beside ``steps`` for all of them (``bake_min``, ``bake_max``, ``approval``) may stand in one, too.
How a step splits or copies requests is read by ``split_reading.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from fermion.domain.fields import Fields, shown
from fermion.domain.problems import Problem
from fermion.domain.rollout.check_reading import read_checks
from fermion.domain.rollout.plan import (
    FULL,
    SOURCES,
    USUAL,
    Kind,
    MetricRule,
    NoData,
    OnApprovalTimeout,
    OnUndecided,
    Plan,
    Source,
    Step,
    Worse,
)
from fermion.domain.rollout.plan_problems import problems_of
from fermion.domain.rollout.split_reading import read_split
from fermion.errors import RequestRefused

_STEP_KEYS: Final = tuple(field.name for field in fields(Step))
_RULE_KEYS: Final = tuple(field.name for field in fields(MetricRule))
_PLAN_KEYS: Final = (*(field.name for field in fields(Plan)), "bake_min", "bake_max", "approval")
_OTHER_NAMES: Final = {"weight": "weight_percent", "percent": "weight_percent", "mirror": "mirror_percent"}
"""Of a step."""

_DURATIONS: Final = ("interval", "warm_up", "approval_timeout", "ready_timeout", "unready_limit", "shift_timeout")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReading:
    """What was read: the plan, or None and why."""

    plan: Plan | None
    problems: tuple[Problem, ...] = ()


def read_plan(raw: object, sources: Mapping[str, Source] = SOURCES) -> PlanReading:
    """The plan that was meant, or all that is wrong with it; ``sources`` are the metrics that can be measured, by name."""
    problems: list[Problem] = []
    given = Fields("", raw, {name: name for name in _PLAN_KEYS}, problems)
    if not isinstance(raw, Mapping):
        return PlanReading(plan=None, problems=tuple(problems))
    plan = _plan(given, sources)
    blamed = {problem.field for problem in problems}
    later = problems_of(plan, sources)  # also of what could be read of a plan that is wrong elsewhere
    problems += [each for each in later if not any(_is_same(each.field, field) for field in blamed)]
    return PlanReading(plan=None if problems else plan, problems=tuple(problems))


def parse_plan(raw: object, sources: Mapping[str, Source] = SOURCES) -> Plan:
    """The plan that was meant.

    Raises:
        RequestRefused: it has problems; all of them are listed.
    """
    reading = read_plan(raw, sources)
    if reading.plan is None:
        raise RequestRefused(reading.problems, what="rollout plan")
    return reading.plan


def _is_same(field: str, blamed: str) -> bool:
    """Whether the field is the blamed one, a part of it, or the one item that it is a part of."""
    return field == blamed or field.startswith(f"{blamed}.") or ("." in field and blamed.startswith(f"{field}."))


def _plan(given: Fields, sources: Mapping[str, Source]) -> Plan:
    common = _baking(given, {"bake_min": _default(Step, "bake_min"), "bake_max": _default(Step, "bake_max")})
    common["approval"] = given.truth("approval", default=False)
    if "steps" not in given.values:
        given.refuse("steps", "missing", "it is missing.", "Write the weights in percent, as [10, 50, 100].")
    steps = [_step(given, number, each, common) for number, each in enumerate(given.items("steps", []))]
    metrics = [_rule(given, number, each, sources) for number, each in enumerate(given.items("metrics", [*USUAL]))]
    durations = {name: given.duration(name, _default(Plan, name)) for name in _DURATIONS}
    return Plan(
        steps=tuple(steps),
        metrics=tuple(metrics),
        alpha=given.number("alpha", _default(Plan, "alpha")),
        min_requests=given.whole("min_requests", _default(Plan, "min_requests")),
        on_undecided=given.word("on_undecided", OnUndecided, OnUndecided.EXTEND),
        on_approval_timeout=given.word("on_approval_timeout", OnApprovalTimeout, OnApprovalTimeout.PAUSE),
        output_checks=read_checks(given),
        approvers=_approvers(given),
        **durations,
    )


def _approvers(given: Fields) -> tuple[str, ...]:
    """Names of users; one alone may stand without a list."""
    value = given.values.get("approvers", [])
    names = [value] if isinstance(value, str) else given.items("approvers", [])
    found: list[str] = []
    for name in names:
        if isinstance(name, str) and 0 < len(name.strip()) <= 100 and name.isprintable():
            found.append(name.strip())
        else:
            fix = "Write names as the people sign in, as [ann, bob]."
            given.refuse("approvers", "not_a_name", f"{shown(name)} is no user's name.", fix)
    return tuple(dict.fromkeys(found))


def _default(kind: Any, name: str) -> Any:
    return kind.__dataclass_fields__[name].default


def _baking(given: Fields, usual: Mapping[str, Any]) -> dict[str, Any]:
    """Both ends of the bake; where only one is given the other gives way."""
    least, most = (given.duration(name, usual[name]) for name in ("bake_min", "bake_max"))
    if "bake_min" in given.values and "bake_max" not in given.values:
        most = max(least, most)
    if "bake_max" in given.values and "bake_min" not in given.values:
        least = min(least, most)
    return {"bake_min": least, "bake_max": most}


def _step(plan: Fields, number: int, raw: object, common: Mapping[str, Any]) -> Step:
    raw = raw if isinstance(raw, Mapping) else {"weight_percent": raw}
    names = {name: name for name in _STEP_KEYS} | _OTHER_NAMES
    given = Fields(f"steps.{number}", raw, names, plan.problems)
    before = len(given.problems)
    split = read_split(given)
    mirror = given.whole("mirror_percent", 0)
    needs_weight = not mirror and (split is None or split.is_sticky)
    if needs_weight and "weight_percent" not in given.values and len(given.problems) == before:
        given.refuse(
            "weight_percent", "missing", "it is missing.", "Write the canary's share of the traffic in percent."
        )
    weight = given.number("weight_percent", math.nan if needs_weight else 0.0)
    if weight != FULL:
        approval = given.truth("approval", default=common["approval"])
        baking = _baking(given, common)
        return Step(weight_percent=weight, approval=approval, split=split, mirror_percent=mirror, **baking)
    for name in ("bake_min", "bake_max"):
        if name in given.values:
            given.refuse(name, "misplaced", "the step at 100 % is the promotion; it is not baked.", "Leave it out.")
    approval = given.truth("approval", default=False)
    return Step(weight_percent=weight, approval=approval, split=split, mirror_percent=mirror)


def _rule(plan: Fields, number: int, raw: object, sources: Mapping[str, Source]) -> MetricRule:
    raw = raw if isinstance(raw, Mapping) else {"name": raw}
    given = Fields(f"metrics.{number}", raw, {name: name for name in _RULE_KEYS}, plan.problems)
    name = given.text("name", f"metric {number}")
    source = sources.get(name, Source(name=name))
    kind = given.word("kind", Kind, source.kind)
    usual = source if source.kind is kind else Source(name=name, kind=kind)
    quantile = given.number("quantile", usual.quantile) if usual.quantile or "quantile" in given.values else None
    return MetricRule(
        name=name,
        kind=kind,
        worse=given.word("worse", Worse, usual.worse),
        quantile=quantile,
        guard=given.amount("guard") if "guard" in given.values else None,
        tolerance=given.number("tolerance", usual.tolerance),
        weight=given.number("weight", 1.0),
        min_samples=given.whole("min_samples", 0) if "min_samples" in given.values else None,
        no_data=given.word("no_data", NoData, NoData.INCONCLUSIVE),
    )
