"""A stage that fails and is tried again: whoever asks is told of the last try, its words, and what is known of the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from world import DAG, World

from fermion.adapters.models.local import LocalModels
from fermion.cli.payloads import job_payload
from fermion.cli.watching import read_view
from fermion.domain.artifacts import ModelDraft, ModelVersion
from fermion.domain.jobs import Phase
from fermion.errors import OutsideUnavailable
from fermion.usecases.check import check
from fermion.usecases.explain import explain
from fermion.usecases.save import save_model
from fermion.usecases.stage import enqueue, pull_image
from fermion.usecases.tend import PREPARE_EVERY

FULL = "No space left on device; 0 bytes are free."


class FullRepository(LocalModels):
    """A repository on a full disk."""

    def publish(self, draft: ModelDraft, folder: Path, *, key: str) -> ModelVersion:
        raise OutsideUnavailable(FULL)


def failing_to_save(world: World, tmp_path: Path) -> str:
    """A job whose model could not be published once."""
    job = world.saving()
    world.ctx = replace(world.ctx, models=FullRepository(tmp_path / "full"))
    with pytest.raises(OutsideUnavailable):
        save_model(world.ctx, job.id)
    return job.id


def failing_to_stage(world: World, tmp_path: Path) -> str:
    """A job whose image could not be fetched once."""
    job = world.submit()
    check(world.ctx, job.id)
    enqueue(world.ctx, job.id)
    with world.line_cut(), pytest.raises(OutsideUnavailable):
        pull_image(world.ctx, job.id)
    return job.id


@pytest.mark.parametrize(
    ("fail", "stage", "words"),
    [
        pytest.param(failing_to_save, "save_model", FULL, id="publishing"),
        pytest.param(failing_to_stage, "pull_image", "does not answer", id="staging"),
    ],
)
def test_the_last_try_is_told_with_its_words(
    world: World, tmp_path: Path, fail: Callable[[World, Path], str], stage: str, words: str
) -> None:
    job_id = fail(world, tmp_path)
    answer = explain(world.ctx, job_id)
    view = read_view(world.ctx, job_id)
    for told in (answer["message"], view.message, job_payload(view.job, spans=view.spans)["message"]):
        assert f"The last try of {stage} failed at 12:" in str(told)
        assert words in str(told)
    failure = answer["last_failure"]
    assert isinstance(failure, dict)
    assert (failure["stage"], failure["next_try_at"]) == (stage, None)
    assert words in failure["message"]


def test_once_it_went_well_nothing_is_told_of_it(world: World, tmp_path: Path) -> None:
    job_id = failing_to_stage(world, tmp_path)
    pull_image(world.ctx, job_id)
    answer = explain(world.ctx, job_id)
    assert answer["last_failure"] is None
    assert "failed" not in str(answer["message"])


@pytest.mark.parametrize(
    ("state", "told"),
    [
        pytest.param("up_for_retry", "Its run waits to try it again.", id="between two tries"),
        pytest.param("running", "It is being tried again now.", id="the next try runs"),
        pytest.param("failed", "Its run does not try it again.", id="no try is left"),
        pytest.param("removed", None, id="a state that says nothing"),
        pytest.param(None, None, id="the engine does not know the task"),
    ],
)
def test_the_engine_is_asked_what_it_does_about_it(
    world: World, tmp_path: Path, state: str | None, told: str | None
) -> None:
    job_id = failing_to_save(world, tmp_path)
    if state is not None:
        world.runs.put_task(DAG, job_id, "save_model", state)
    answer = explain(world.ctx, job_id)
    assert answer["last_failure"]["next_try"] == told  # type: ignore[index]
    assert str(answer["message"]).endswith(told or FULL)


def test_an_engine_that_does_not_answer_keeps_nobody_from_being_told(world: World, tmp_path: Path) -> None:
    job_id = failing_to_save(world, tmp_path)
    world.runs.line.cut()
    assert explain(world.ctx, job_id)["last_failure"]["next_try"] is None  # type: ignore[index]
    world.ctx = replace(world.ctx, runs=None)
    assert explain(world.ctx, job_id)["last_failure"]["next_try"] is None  # type: ignore[index]


def test_of_a_fresh_attempt_the_time_of_the_next_try_is_known(world: World) -> None:
    job = world.running()
    world.driver.workloads.lose(world.name(job.id))
    world.tend()
    with world.line_cut():
        world.tend()
    failed_at = world.clock.now()
    assert world.job(job.id).phase is Phase.STAGING
    answer = explain(world.ctx, job.id)
    failure = answer["last_failure"]
    assert isinstance(failure, dict)
    assert failure["stage"] == "prepare"
    assert failure["next_try_at"] == (failed_at + PREPARE_EVERY).isoformat()
    assert str(answer["message"]).endswith(f"The next try comes at {failed_at + PREPARE_EVERY:%H:%M:%S} UTC.")
    world.clock.advance(PREPARE_EVERY)
    world.tend()
    assert explain(world.ctx, job.id)["last_failure"] is None


def test_preparing_is_a_stage_of_the_report(world: World) -> None:
    job = world.waiting()
    with world.ctx.store.read() as tx:
        outcomes = {span.stage: span.outcome for span in tx.records.spans(job.id)}
    assert outcomes["prepare"] == "succeeded"
