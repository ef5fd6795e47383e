"""What keeping house forgets, and what it never touches."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from serving_world import PLAN, ServingWorld
from world import REPOSITORY

from fermion.adapters.memory.records import MemoryRecords
from fermion.domain.jobs import Pins
from fermion.domain.records import Event
from fermion.domain.retention import Freed, Retention
from fermion.errors import OutsideUnavailable
from fermion.usecases.report import write_report
from fermion.usecases.retain import retain
from fermion.usecases.serving.wishes import close, scale
from fermion.usecases.stop import request_stop
from platforms import Platform

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
WEEK = Retention(runs=7 * DAY, workloads=7 * DAY, events=7 * DAY, decisions=7 * DAY, points=7 * DAY, reports=7 * DAY)


@dataclass
class Upkeep:
    """An engine that writes down what it was asked to forget. Keeps ``ports.EngineUpkeep``."""

    asked: list[tuple[datetime, tuple[str, ...]]] = field(default_factory=list)
    answers: bool = True

    def forget(self, before: datetime, *, dags: Sequence[str] = ()) -> str:
        if not self.answers:
            raise OutsideUnavailable("the engine is away")
        self.asked.append((before, tuple(dags)))
        return "runs"


@pytest.fixture
def platform(tmp_path: Path) -> Platform:
    return Platform(tmp_path, WEEK)


def has_folder(platform: Platform, job_id: str) -> bool:
    return platform.driver.space.has_checkpoint(job_id)


def ended(platform: Platform, run_id: str, **changes: object) -> str:
    """A completed job with a checkpoint and a report."""
    job = platform.start(platform.submit(run_id, **changes))
    platform.driver.space.write(platform.driver.space.checkpoints(job.id), {"last.ckpt": b"state"})
    job = platform.finish(job)
    write_report(platform.ctx, job.id)
    return job.id


def test_folders_and_reports_go_when_their_age_is_passed_and_not_before(platform: Platform) -> None:
    job_id = ended(platform, "r1")
    platform.clock.advance(7 * DAY)
    retain(platform.ctx)
    assert has_folder(platform, job_id)
    platform.clock.advance(timedelta(seconds=1))
    assert any("folders of 1 job that" in line for line in retain(platform.ctx))
    assert not has_folder(platform, job_id)
    assert platform.ctx.reports.page(job_id) is None


def test_a_published_model_and_the_ledger_stay(platform: Platform) -> None:
    job_id = ended(platform, "r1")
    platform.clock.advance(400 * DAY)
    retain(platform.ctx)
    version = platform.ctx.models.get("digits", 1)
    assert version is not None
    assert list(platform.ctx.models.verify(version)) == []
    with platform.ctx.store.read() as tx:
        assert [entry.gpus for entry in tx.leases.ledger()] == [1, -1]
    assert platform.job(job_id).model_version == 1


def test_a_checkpoint_that_an_open_job_resumes_from_stays_until_that_has_ended(platform: Platform) -> None:
    old = ended(platform, "r1")
    resumed = platform.submit("r2", checkpoint=old)
    platform.clock.advance(30 * DAY)
    retain(platform.ctx)
    assert has_folder(platform, old)
    platform.finish(platform.start(resumed))
    retain(platform.ctx)
    assert not has_folder(platform, old)


def test_each_job_is_looked_at_once_after_it_came_of_age(platform: Platform) -> None:
    ended(platform, "r1")
    platform.clock.advance(8 * DAY)
    assert any("folders" in line for line in retain(platform.ctx))
    assert not any("folders" in line for line in retain(platform.ctx))
    ended(platform, "r2")
    platform.clock.advance(8 * DAY)
    assert any("folders of 1 job that" in line for line in retain(platform.ctx))


def test_more_jobs_than_one_page_are_all_forgotten(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fermion.usecases.retain.PAGE", 2)
    ids = [ended(platform, f"r{number}") for number in range(5)]
    platform.clock.advance(8 * DAY)
    retain(platform.ctx)
    assert [job_id for job_id in ids if has_folder(platform, job_id)] == []


def test_old_events_go_and_young_ones_stay(platform: Platform) -> None:
    with platform.ctx.store.begin() as tx:
        for name, age in (("old", 8 * DAY), ("young", 6 * DAY)):
            tx.records.add_event(Event(actor="ann", verb="said", target=name, at=platform.clock.now() - age))
    retain(platform.ctx)
    with platform.ctx.store.read() as tx:
        assert [event.target for _, event in tx.records.events()] == ["young"]


def test_without_a_retention_nothing_is_ever_forgotten(tmp_path: Path) -> None:
    platform = Platform(tmp_path)
    job_id = ended(platform, "r1")
    platform.clock.advance(4000 * DAY)
    assert retain(platform.ctx) == []
    assert has_folder(platform, job_id)


def test_the_engine_forgets_old_runs_and_sooner_those_of_the_upkeep(platform: Platform) -> None:
    upkeep = Upkeep()
    now = platform.clock.now()
    retain(replace(platform.ctx, upkeep=upkeep))
    assert upkeep.asked == [(now - DAY, ("sync_platform", "keep_house")), (now - 7 * DAY, ())]


def test_the_engine_keeps_everything_since_the_oldest_open_job_began(platform: Platform) -> None:
    upkeep = Upkeep()
    job = platform.submit("r1")
    platform.clock.advance(40 * DAY)
    retain(replace(platform.ctx, upkeep=upkeep))
    assert upkeep.asked[-1] == (job.submitted_at, ())


def test_an_engine_that_does_not_answer_fails_the_round_after_everything_else_was_done(platform: Platform) -> None:
    job_id = ended(platform, "r1")
    platform.clock.advance(8 * DAY)
    with pytest.raises(OutsideUnavailable, match="away"):
        retain(replace(platform.ctx, upkeep=Upkeep(answers=False)))
    assert not has_folder(platform, job_id)


def test_records_are_forgotten_an_hour_at_a_time_from_where_the_last_time_came_to(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[datetime] = []
    forget = MemoryRecords.forget

    def note(records: MemoryRecords, *, before: datetime, kinds: Collection[str]) -> int:
        if "events" in kinds:
            asked.append(before)
        return forget(records, before=before, kinds=kinds)

    monkeypatch.setattr(MemoryRecords, "forget", note)
    retain(platform.ctx)
    platform.clock.advance(5 * HOUR)
    with platform.ctx.store.begin() as tx:
        for hours in (1, 3, 6):
            at = platform.clock.now() - 7 * DAY - hours * HOUR
            tx.records.add_event(Event(actor="ann", verb="said", target="x", at=at))
    assert "3 events older than 7 days" in retain(platform.ctx)
    end = platform.clock.now() - 7 * DAY
    assert asked == [end - 5 * HOUR, *(end - hours * HOUR for hours in (4, 3, 2, 1, 0))]


def test_what_an_open_job_has_pinned_stays_in_the_caches_whether_it_runs_or_waits(platform: Platform) -> None:
    platform.driver.datasets.cap = 0
    waiting, running = platform.submit("r1"), platform.start(platform.submit("r2"))
    assert retain(platform.ctx) == []
    platform.finish(running)
    assert retain(platform.ctx) == [], "the other one waits"
    request_stop(platform.ctx, waiting.id, actor="ann")
    platform.tend(waiting)
    assert retain(platform.ctx) == ["1 staged datasets of cluster local, 0 bytes"]


def test_what_a_dead_publisher_left_is_cleared_and_told_with_its_bytes(platform: Platform, tmp_path: Path) -> None:
    left = tmp_path / "models" / ".staging" / "dead"
    left.mkdir(parents=True)
    (left / "weights").write_bytes(b"12345")
    assert retain(platform.ctx) == ["1 leftovers of dead publishers, 5 bytes"]
    assert not left.exists()


def test_a_cluster_that_does_not_answer_keeps_nothing_else_from_being_tidied(platform: Platform) -> None:
    upkeep = Upkeep()
    platform.driver.line.cut()
    with pytest.raises(OutsideUnavailable):
        retain(replace(platform.ctx, upkeep=upkeep))
    assert len(upkeep.asked) == 2


def test_logs_of_removed_replicas_go_when_their_age_is_passed_and_those_of_present_ones_stay(tmp_path: Path) -> None:
    world = ServingWorld(tmp_path)
    world.ctx = replace(world.ctx, rules=replace(world.ctx.rules, retention=WEEK))
    served = world.serving()
    name = f"{served.id}-2"
    world.driver.replicas.print(name, "hello")
    world.driver.replicas.print(f"{served.id}-1", "hello")
    scale(world.ctx, "digits", 1, by="ann")
    world.rounds(30)
    assert name not in world.driver.replicas.names()
    world.clock.advance(6 * DAY)
    retain(world.ctx)
    assert world.driver.replicas.log(name).text == "hello"
    world.clock.advance(1 * DAY + HOUR)
    assert any("1 logs of replicas of cluster local removed more than 7 days ago" in line for line in retain(world.ctx))
    assert world.driver.replicas.log(name).text == ""
    assert world.driver.replicas.log(f"{served.id}-1").text == "hello"


def test_what_a_serving_revision_has_pinned_stays_in_the_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = ServingWorld(tmp_path)
    served = world.serving(repository=REPOSITORY, ref="main")
    asked: list[Pins] = []

    def tidy(needed: Collection[Pins]) -> Freed:
        asked.extend(needed)
        return Freed()

    monkeypatch.setattr(world.driver.code, "tidy", tidy)
    retain(world.ctx)
    assert [(pins.image_digest, pins.commit) for pins in asked] == [(served.pins.image_digest, world.commit)]


def test_staged_models_leave_oldest_first_and_never_what_an_open_revision_has_pinned(tmp_path: Path) -> None:
    world = ServingWorld(tmp_path)
    old = world.serving(keep_warm="0s", plan={**PLAN, "steps": [100]})
    world.publish("better")
    served = world.deploy(keep_warm="0s", plan={**PLAN, "steps": [100]})
    world.rounds(60)
    world.publish("waits")
    waiting = world.deploy()
    unused = world.publish("of another service")
    world.driver.models.stage(unused)
    kept = [served.pins.model_checksum, waiting.pins.model_checksum]
    cache = world.driver.models
    assert list(cache.staged) == [old.pins.model_checksum, *kept, unused.checksum]
    for cap, leaves in ((4, 0), (3, 1), (0, 2)):
        cache.cap = cap
        told = [f"{leaves} staged models of cluster local, 0 bytes"] if leaves else []
        assert retain(world.ctx, dry_run=True) == told
        assert len(cache.staged) == 4, "nothing has left yet"
    cache.cap = 3
    assert retain(world.ctx) == ["1 staged models of cluster local, 0 bytes"]
    assert list(cache.staged) == [*kept, unused.checksum], "the oldest went"
    cache.cap = 0
    retain(world.ctx)
    assert list(cache.staged) == kept
    close(world.ctx, "digits", by="ann")
    world.rounds(60)
    retain(world.ctx)
    assert not cache.staged
