"""Make the looks of a rollout: read the router's counters when a look is due, judge what came since the last one, store it.

The readings are stored, so whoever looks next goes on from them, after a restart too. Where looks are made from a metrics
system, it has the readings, and it is asked for what came since the last look. Where the plan has output checks, the canary is asked
them at every look, and before it gets any traffic.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, cast

from fermion.domain.payloads import from_payload, to_payload
from fermion.domain.records import Decision
from fermion.domain.rollout.judging import judge
from fermion.domain.rollout.looks import CheckReading, Look, Measured, Outcome
from fermion.domain.rollout.plan import Plan, Way
from fermion.domain.rollout.rollouts import Rollout
from fermion.domain.serving.replicas import ReplicaSeen
from fermion.domain.serving.routing import answers_of, copies_of
from fermion.domain.serving.services import Revision, Service
from fermion.domain.serving.traffic import Counters, Window, window
from fermion.errors import FermionError
from fermion.ports import Driver, Measurements
from fermion.usecases.context import Context
from fermion.usecases.serving.checking import ask_checks
from fermion.usecases.serving.measuring import measured

log = logging.getLogger(__name__)

SILENT_AFTER = timedelta(minutes=1)
"""A metrics system that has nothing newer for so long is not well: until then the next scrape is waited for."""

CHECK: Final = "output_check"
"""The kind of the decisions about a first revision's outputs."""

Asking = Callable[[], tuple[CheckReading, ...]]
"""Asks the canary the plan's output checks."""


@dataclass(slots=True)
class Looker:
    """Looks at rollouts."""

    ctx: Context

    def look(
        self, driver: Driver, service: Service, rollout: Rollout, canary: Sequence[ReplicaSeen], *, is_ready: bool
    ) -> Look | None:
        """The newest look of the rollout, made now if one is due.

        ``canary`` are the canary's replicas as they were just seen, ``is_ready`` whether all that it needs are ready.
        """
        with self.ctx.store.read() as tx:
            newest = tx.rollouts.newest_look(rollout.id)
        turn = 0 if newest is None else newest.number
        ask: Asking = partial(ask_checks, self.ctx, service, rollout.plan, canary, turn=turn)
        if rollout.checks_outputs_first:
            due = is_ready and _is_check_due(rollout, newest, self.ctx.clock.now())
            return self._check_first(rollout, newest, ask) if due else newest
        if not rollout.makes_looks:
            return newest
        since = self._since(rollout, newest)
        if self.ctx.measurements is not None and self.ctx.rules.looks_from_measurements:
            return self._look_recorded(self.ctx.measurements, rollout, newest, since, ask)
        with self.ctx.store.read() as tx:
            known = tx.traffic.since(arms_of(rollout), since)
        began = _began(known, rollout, since)
        now = self.ctx.clock.now()
        if began is not None and now - began < rollout.plan.interval:
            return newest
        counters, trouble = self._read(driver, rollout)
        if began is None:
            self._begin(counters)
            return newest
        return self._make(rollout, newest, known, counters, began=began, now=now, trouble=trouble, ask=ask)

    def _check_first(self, rollout: Rollout, newest: Look | None, ask: Asking) -> Look | None:
        """The look before the first weight: only the output checks are judged."""
        began, checks = self.ctx.clock.now(), ask()
        seen = _before_traffic(checks, began, self.ctx.clock.now())
        return self._keep(rollout, judge(rollout.plan, seen, newest), ())

    def check_alone(self, service: Service, revision: Revision, states: Sequence[ReplicaSeen]) -> Look | None:
        """The output checks of a first revision, which has no rollout: the newest look, made now if one is due.

        It is kept as a decision about the revision. None: its plan asks for none.
        """
        plan = revision.spec.plan
        if not plan.output_checks:
            return None
        with self.ctx.store.read() as tx:
            known = tx.records.decisions(subject=revision.id, kind=CHECK)
        newest = max((_look_of(each) for each in known), key=lambda look: look.number, default=None)
        began = self.ctx.clock.now()
        if newest is not None and not _is_to_repeat(newest, plan, began):
            return newest
        checks = ask_checks(self.ctx, service, plan, states, turn=0 if newest is None else newest.number)
        look = judge(plan, _before_traffic(checks, began, self.ctx.clock.now()), newest)
        with self.ctx.store.begin() as tx:
            tx.records.add_decision(_decision(revision, look))
        log.info("revision %s, look %s: %s. %s", revision.id, look.number, look.outcome, look.sentence)
        return look

    def _look_recorded(
        self, source: Measurements, rollout: Rollout, newest: Look | None, since: datetime, ask: Asking
    ) -> Look | None:
        """As ``look``, from what was recorded: exact between two scrapes, and none before there is a new one."""
        now = self.ctx.clock.now()
        if now - since < rollout.plan.interval:
            return newest
        found: Mapping[str, Window] = {}
        trouble = ""
        try:
            found = source.windows(arms_of(rollout), since, now)
        except FermionError as error:
            log.warning("rollout %s could not be measured this time: %s", rollout.id, error)
            trouble = error.message
        if not found and not trouble:
            if now - since < max(SILENT_AFTER, rollout.plan.interval):
                return newest
            trouble = f"{source.source} has recorded nothing of the two revisions since {since:%H:%M:%S}."
        ended = max((each.until for each in found.values()), default=now)
        return self._judge(
            rollout,
            newest,
            found,
            began=min(since, ended),
            ended=ended,
            trouble=trouble,
            told_by=source.source,
            ask=ask,
        )

    def _since(self, rollout: Rollout, newest: Look | None) -> datetime:
        """The next window begins where the last one ended, but not before this weight was warm."""
        start = rollout.baking_since or rollout.changed_at
        if newest is None or newest.measured.step != rollout.step:
            return start
        return max(start, newest.measured.ended_at)

    def _read(self, driver: Driver, rollout: Rollout) -> tuple[Mapping[str, Counters], str]:
        try:
            return driver.router.counters(arms_of(rollout)), ""
        except FermionError as error:
            log.warning("rollout %s could not be measured this time: %s", rollout.id, error)
            return {}, error.message

    def _begin(self, counters: Mapping[str, Counters]) -> None:
        if counters:
            with self.ctx.store.begin() as tx:
                tx.traffic.add(list(counters.values()))

    def _make(
        self,
        rollout: Rollout,
        newest: Look | None,
        known: Mapping[str, Sequence[Counters]],
        counters: Mapping[str, Counters],
        *,
        began: datetime,
        now: datetime,
        trouble: str,
        ask: Asking,
    ) -> Look | None:
        arms = {
            arm: _window([each for each in known.get(arm, ()) if each.observed_at >= began], counters.get(arm))
            for arm in arms_of(rollout)
        }
        ended = max((each.observed_at for each in counters.values()), default=now)
        read = list(counters.values())
        return self._judge(rollout, newest, arms, began=began, ended=ended, trouble=trouble, counters=read, ask=ask)

    def _judge(
        self,
        rollout: Rollout,
        newest: Look | None,
        arms: Mapping[str, Window | None],
        *,
        began: datetime,
        ended: datetime,
        trouble: str,
        ask: Asking,
        told_by: str = "the router",
        counters: Sequence[Counters] = (),
    ) -> Look | None:
        """The look at these windows, stored with the readings that they came from."""
        canary, stable = arms_of(rollout)
        seen: Measured = measured(
            rollout.plan,
            step=rollout.step,
            canary=arms.get(canary),
            stable=arms.get(stable),
            trouble=trouble,
            told_by=told_by,
            started_at=began,
            ended_at=ended,
            checks=ask(),
        )
        return self._keep(rollout, judge(rollout.plan, seen, newest), counters)

    def _keep(self, rollout: Rollout, look: Look, counters: Sequence[Counters]) -> Look | None:
        """The look as stored, or the one that somebody else stored before."""
        with self.ctx.store.begin() as tx:
            if not tx.rollouts.add_look(rollout.id, look):
                return tx.rollouts.newest_look(rollout.id)
            tx.traffic.add(counters)
        log.info("rollout %s, look %s: %s. %s", rollout.id, look.number, look.outcome, look.sentence)
        return look


def arms_of(rollout: Rollout) -> tuple[str, str]:
    """The keys of the counters that canary and stable are judged by.

    Copies are compared with what stable's replicas answered, taken in the same way.
    """
    if rollout.present_step.share.way is Way.MIRRORED:
        return copies_of(rollout.canary), answers_of(rollout.stable)
    return rollout.canary, rollout.stable


def _is_check_due(rollout: Rollout, newest: Look | None, now: datetime) -> bool:
    """At once, after an interval where it could not be asked, and anew where the rollout went back to waiting."""
    if newest is None or newest.measured.ended_at < rollout.changed_at:
        return True
    return _is_to_repeat(newest, rollout.plan, now)


def _is_to_repeat(newest: Look, plan: Plan, now: datetime) -> bool:
    is_open = newest.outcome in (Outcome.ERROR, Outcome.NODATA)
    return is_open and now - newest.measured.ended_at >= plan.interval


def _before_traffic(checks: tuple[CheckReading, ...], began: datetime, ended: datetime) -> Measured:
    return Measured(step=0, weight_percent=0.0, started_at=began, ended_at=ended, readings=(), checks=checks)


def _look_of(decision: Decision) -> Look:
    return from_payload(Look, cast(Mapping[str, Any], decision.inputs["look"]))


def _decision(revision: Revision, look: Look) -> Decision:
    return Decision(
        id=f"{CHECK}-{revision.id}-{look.number}",
        kind=CHECK,
        subject=revision.id,
        verdict=str(look.outcome),
        reason=str(look.outcome),
        message=look.sentence,
        rule_version=look.rule_version,
        decided_at=look.measured.ended_at,
        inputs={"look": to_payload(look)},
    )


def _began(known: Mapping[str, Sequence[Counters]], rollout: Rollout, since: datetime) -> datetime | None:
    """The first moment from then on at which both arms were read; None when there was none yet."""
    times = [{each.observed_at for each in known.get(arm, ()) if each.observed_at >= since} for arm in arms_of(rollout)]
    both = set.intersection(*times)
    return min(both) if both else None


def _window(before: Sequence[Counters], now: Counters | None) -> Window | None:
    if not before or now is None or now.observed_at <= before[0].observed_at:
        return None
    return window([*before, now])
