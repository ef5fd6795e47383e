"""What one decision of the canary engine costs: the look after a long history of many metrics."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from statistics import median

from tests.benchmarks import rollout_rules as rules
from tests.benchmarks.lines import Line, percentile
from tests.benchmarks.rollout_rules import ERRORS, LATENCY, PLAN
from tests.benchmarks.rollout_streams import Counts, Scenario, stream

from fermion.domain.payloads import from_payload, to_payload
from fermion.domain.rollout.judging import judge
from fermion.domain.rollout.looks import Look, Measured, Reading
from fermion.domain.rollout.plan import Plan

DECISION_BAR_MS = 10.0


def main(given: argparse.Namespace) -> Iterator[Line]:
    """One line; it is short enough to be judged always."""
    yield decision_line()


def decision_line(*, metrics: int = 50, looks: int = 1000) -> Line:
    """What the look after a long history costs, with and without reading the one before from its stored JSON.

    The bar is for processor time, which neighbours on the machine do not change; the time on the wall stands beside it.
    """
    pairs = [
        (replace(rule, name=f"{rule.name}_{number}")) for number in range(metrics // 2) for rule in (ERRORS, LATENCY)
    ]
    plan = replace(PLAN, metrics=tuple(pairs))
    counts = list(stream(Scenario(rate=50.0), 7, looks + 1))
    look: Look | None = None
    for number in range(looks):
        look = judge(plan, _measured(plan, counts[number], number), look)
    stored = json.dumps(to_payload(look))
    measured = _measured(plan, counts[looks], looks)
    bare, wall, whole = [], [], []
    for _ in range(50):
        began, began_wall = time.process_time(), time.perf_counter()
        judge(plan, measured, look)
        bare.append(1000 * (time.process_time() - began))
        wall.append(1000 * (time.perf_counter() - began_wall))
        began = time.process_time()
        json.dumps(to_payload(judge(plan, measured, from_payload(Look, json.loads(stored)))))
        whole.append(1000 * (time.process_time() - began))
    return Line(
        bench="decision",
        bar=f"{metrics} metrics after {looks} looks < {DECISION_BAR_MS:g} ms",
        holds=median(bare) < DECISION_BAR_MS,
        value=median(bare),
        raw={
            "unit": "ms of processor time",
            "p95_ms": round(percentile(bare, 0.95), 2),
            "wall_p50_ms": round(median(wall), 2),
            "with_json_p50_ms": round(median(whole), 2),
            "stored_bytes": len(stored),
            "failed": look is not None and look.failed_look is not None,
        },
    )


def _measured(plan: Plan, counts: Counts, number: int) -> Measured:
    errors, latency = rules.reading_of(counts)
    readings: list[Reading] = []
    for rule in plan.metrics:
        readings.append(replace(errors if rule.quantile is None else latency, metric=rule.name))
    begin = rules.BEGIN + number * rules.INTERVAL
    return Measured(
        step=0, weight_percent=10, started_at=begin, ended_at=begin + rules.INTERVAL, readings=tuple(readings)
    )
