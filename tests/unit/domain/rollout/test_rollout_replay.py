"""Replay: that stored looks give the same verdicts again, and that what was changed in them is found where it was changed."""

from __future__ import annotations

import json
from dataclasses import replace

from rollout_builders import ERRORS, LATENCY, errors, latency, make_look, make_plan

from fermion.domain.payloads import from_payload, to_payload
from fermion.domain.rollout.looks import Look, Outcome, Reading
from fermion.domain.rollout.replay import replay

PLAN = make_plan(metrics=(ERRORS, LATENCY))


def history() -> list[Look]:
    """Five looks with every outcome, over two steps."""
    slow = latency((50, 30, 15, 5), (800, 60, 30, 10))
    looks = [make_look(errors((1, 10), (9, 90)), latency((5, 3, 1, 1), (80, 6, 3, 1)), plan=PLAN)]
    looks.append(make_look(errors(), slow, plan=PLAN, previous=looks[-1]))
    looks.append(make_look(errors(), Reading(metric="latency_p95", error="gone"), plan=PLAN, previous=looks[-1]))
    looks.append(make_look(errors((3, 100)), slow, plan=PLAN, previous=looks[-1], step=1))
    looks.append(make_look(errors((40, 100)), slow, plan=PLAN, previous=looks[-1], step=1))
    return looks


def stored(looks: list[Look]) -> list[Look]:
    """As they come back from a database."""
    return [from_payload(Look, json.loads(json.dumps(to_payload(look)))) for look in looks]


def found(looks: list[Look]) -> list[tuple[int, str]]:
    return [(difference.look, difference.field) for difference in replay(PLAN, looks)]


def test_stored_looks_give_the_same_again() -> None:
    looks = history()
    assert {look.outcome for look in looks} == {Outcome.NODATA, Outcome.FAIL, Outcome.ERROR}
    assert replay(PLAN, stored(looks)) == []


def test_no_looks_have_no_differences() -> None:
    assert replay(PLAN, []) == []


def test_a_verdict_that_does_not_follow_is_found_where_it_stands() -> None:
    looks = history()
    looks[1] = replace(looks[1], outcome=Outcome.PASS, failed_look=None, failure="")
    assert {(look, field) for look, field in found(looks) if look == 2} == {
        (2, "outcome"),
        (2, "failed_look"),
        (2, "failure"),
    }


def test_a_count_that_was_changed_is_found() -> None:
    looks = history()
    measured = replace(looks[0].measured, readings=(errors((5, 10), (9, 90)), looks[0].measured.readings[1]))
    looks[0] = replace(looks[0], measured=measured)
    fields = [field for look, field in found(looks) if look == 1]
    assert "metrics.error_rate.statistic" in fields
    assert "metrics.error_rate.canary_value" in fields
    assert all(look == 1 for look, _ in found(looks)), "the looks after it follow from what is stored"


def test_a_look_that_is_missing_is_found() -> None:
    looks = history()
    assert (3, "number") in found([looks[0], *looks[2:]])


def test_another_plan_gives_other_verdicts() -> None:
    lax = make_plan(metrics=(replace(ERRORS, tolerance=99.0), replace(LATENCY, tolerance=99.0)))
    fields = {difference.field for difference in replay(lax, history())}
    assert "outcome" in fields


def test_other_rules_are_said_once_a_look() -> None:
    looks = [replace(look, rule_version="rollout/0") for look in history()]
    assert found(looks) == [(look.number, "rule_version") for look in looks]


def test_the_last_digit_of_a_logarithm_is_no_difference() -> None:
    looks = history()
    metric = looks[0].metrics[0]
    near = replace(metric, statistic=metric.statistic * (1 + 1e-12))
    far = replace(metric, statistic=metric.statistic + 1e-6)
    assert found([replace(looks[0], metrics=(near, looks[0].metrics[1]))]) == []
    assert found([replace(looks[0], metrics=(far, looks[0].metrics[1]))]) == [(1, "metrics.error_rate.statistic")]


def test_a_difference_says_where_and_what() -> None:
    looks = history()
    (difference, *_) = replay(PLAN, [replace(looks[0], sentence="all is well")])
    assert str(difference).startswith("look 1, sentence: stored all is well, replayed error_rate has 10 samples")
