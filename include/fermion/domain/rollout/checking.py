"""Judging output checks: ERROR, NODATA, FAIL or PASS for each, in this order. Pure."""

from __future__ import annotations

from typing import Final

from fermion.domain.rollout.looks import CheckLook, CheckReading, Measured, Outcome
from fermion.domain.rollout.plan import OutputCheck, Plan
from fermion.domain.serving.output_check import check_seen

MOST_SHOWN: Final = 5
"""Of the problems of one answer."""


def judge_checks(plan: Plan, measured: Measured) -> tuple[CheckLook, ...]:
    """What a look says of each of the plan's output checks.

    1. ERROR: it could not be asked. 2. NODATA: no replica was ready to be asked. 3. FAIL: the answer is no outputs, or not
    those that are expected. 4. PASS.
    """
    readings = {reading.check: reading for reading in measured.checks}
    return tuple(
        CheckLook(check=check.name, outcome=outcome, sentence=f"Output check {check.name} {said}.")
        for check in plan.output_checks
        for outcome, said in [_judge(check, readings.get(check.name))]
    )


def _judge(check: OutputCheck, reading: CheckReading | None) -> tuple[Outcome, str]:
    if reading is None or reading.error is not None:
        why = "nobody asked it" if reading is None else (reading.error or "").rstrip(".")
        return Outcome.ERROR, f"could not be asked: {why}"
    if reading.replica is None:
        return Outcome.NODATA, "was not asked: no replica of the canary is ready"
    if reading.refused is not None:
        return Outcome.FAIL, f"is violated by {reading.replica}, which gives no outputs: {reading.refused.rstrip('.')}"
    problems = check_seen(reading.outputs, check.outputs, rows=check.rows)
    if problems:
        more = f"; and {len(problems) - MOST_SHOWN} more" if len(problems) > MOST_SHOWN else ""
        return Outcome.FAIL, f"is violated by {reading.replica}: {'; '.join(problems[:MOST_SHOWN])}{more}"
    return Outcome.PASS, f"passes: {reading.replica} gives {_outputs(len(reading.outputs))} as expected"


def _outputs(count: int) -> str:
    return f"{count} output{'s' if count != 1 else ''}"
