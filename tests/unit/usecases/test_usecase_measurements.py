"""Looks and figures from a metrics system that scrapes the router, over a whole platform in memory."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from serving_world import ServingWorld

from fermion.adapters.memory.measurements import MemoryMeasurements
from fermion.adapters.memory.outages import Line
from fermion.domain.rollout.looks import Outcome
from fermion.domain.rollout.replay import replay
from fermion.domain.rollout.rollouts import Phase
from fermion.usecases.serving.queries import service_state
from fermion.usecases.serving.sync import record_traffic
from fermion.usecases.serving.tend import ServiceTender

EVERY_S = 0.5


class RecordedWorld(ServingWorld):
    """A platform whose looks are made from what is scraped before each round, while ``is_scraped``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.line = Line("the metrics system")
        self.measurements = MemoryMeasurements(self.driver.router.counters, self.line)
        rules = replace(self.ctx.rules, looks_from_measurements=True)
        self.ctx = replace(self.ctx, measurements=self.measurements, rules=rules)
        self.services = ServiceTender(self.ctx)
        self.is_scraped = True

    def go_on(self, count: int, *, requests: int = 40) -> None:
        """So many rounds under requests."""
        for _ in range(count):
            self.rounds(1, every_s=EVERY_S, requests=requests)
            if self.is_scraped:
                self.measurements.scrape(self.revisions)

    @property
    def revisions(self) -> list[str]:
        """The ids of all of them."""
        with self.ctx.store.read() as tx:
            return [each.id for each in tx.services.revisions(self.service().id)]


@pytest.fixture
def world(tmp_path: Path) -> RecordedWorld:
    return RecordedWorld(tmp_path)


def test_a_good_canary_is_promoted_by_looks_at_what_was_recorded(world: RecordedWorld) -> None:
    world.serving()
    new = world.deploy()
    world.go_on(40)
    assert world.rollout(new).phase is Phase.PROMOTED
    looks = world.looks(new)
    assert {look.outcome for look in looks} <= {Outcome.PASS, Outcome.NODATA}
    assert not replay(world.rollout(new).plan, looks)
    for before, after in pairwise(looks):
        assert after.measured.started_at >= before.measured.ended_at


def test_a_bad_canary_is_rolled_back_by_looks_at_what_was_recorded(world: RecordedWorld) -> None:
    old = world.serving()
    new = world.deploy()
    world.driver.router.answers(new.id, 500)
    world.go_on(40)
    assert world.rollout(new).phase is Phase.ROLLED_BACK
    assert world.weights() == {old.id: 100}


def test_a_metrics_system_that_is_gone_is_an_error_and_promotes_nothing(world: RecordedWorld) -> None:
    world.serving()
    new = world.deploy()
    world.go_on(10)
    assert world.rollout(new).phase is Phase.BAKING
    before = len(world.looks(new))
    world.line.cut()
    world.go_on(20)
    later = world.looks(new)[before:]
    assert {look.outcome for look in later} == {Outcome.ERROR}
    assert "does not answer" in later[0].sentence
    assert world.rollout(new).phase is Phase.BAKING
    world.line.mend()
    world.go_on(20)
    assert world.rollout(new).phase is Phase.PROMOTED


def test_no_look_is_made_before_there_is_a_new_scrape_and_silence_becomes_an_error(world: RecordedWorld) -> None:
    world.serving()
    new = world.deploy(plan={"steps": [20, 100], "interval": "2s", "warm_up": "1s", "bake_min": "4m", "bake_max": "5m"})
    world.go_on(10)
    world.is_scraped = False
    world.go_on(6)
    before = len(world.looks(new))
    world.go_on(100)
    assert len(world.looks(new)) == before, "what is looked at is not older than the last look"
    world.go_on(30)
    later = world.looks(new)[before:]
    assert {look.outcome for look in later} == {Outcome.ERROR}
    assert "has recorded nothing" in later[0].sentence
    assert world.rollout(new).phase is Phase.BAKING


def test_figures_name_their_source_and_are_none_where_nothing_was_measured(world: RecordedWorld) -> None:
    world.serving()
    assert service_state(world.ctx, "digits").lately is None
    world.go_on(20, requests=10)
    state = service_state(world.ctx, "digits")
    assert state.source == "a metrics system in memory"
    assert state.lately is not None
    assert state.day is not None
    assert state.lately.requests == state.day.requests == 190, "the first scrape comes after ten"
    assert state.lately.until == world.clock.now()
    assert state.p95_ms is not None
    world.line.cut()
    state = service_state(world.ctx, "digits")
    assert (state.lately, state.day, state.p95_ms) == (None, None, None)
    assert "does not answer" in state.trouble


def test_without_a_metrics_system_the_routers_own_counters_of_all_revisions_are_added_up(tmp_path: Path) -> None:
    world = ServingWorld(tmp_path)
    world.serving()
    record_traffic(world.ctx)
    new = world.deploy()
    world.rounds(1)
    record_traffic(world.ctx)
    world.rounds(70, requests=40)
    assert world.rollout(new).phase is Phase.PROMOTED
    state = service_state(world.ctx, "digits")
    assert state.source == "router"
    assert state.day is not None
    assert state.day.requests == 70 * 40
