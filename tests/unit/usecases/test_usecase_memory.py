"""A request for more memory than a node has is refused when it is checked, with the numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from world import World

from builders import make_node
from fermion.errors import RequestRefused
from fermion.usecases.submit import submit


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, nodes=[make_node("box", gpus=4, memory_mib=23_552)])


def refusal(world: World, **changes: object) -> list[str]:
    """The codes of what is wrong with the request, once it is checked."""
    try:
        world.stage(submit(world.ctx, world.request(**changes), dag_id="train_model", run_id="r1", actor="ann").id)
    except RequestRefused as refused:
        return [problem.code for problem in refused.problems]
    return []


def test_as_much_memory_as_the_node_has_is_taken(world: World) -> None:
    assert refusal(world, memory_mib=23_552) == []


def test_more_memory_than_the_node_has_is_refused_with_both_numbers(world: World) -> None:
    assert refusal(world, memory_mib=4_194_304) == ["over_memory"]
    with world.ctx.store.read() as tx:
        (job,) = tx.jobs.find()
    assert "23552 MiB" in job.explanation.message
    assert "4194304 MiB" in job.explanation.message


def test_it_is_told_together_with_what_else_is_wrong(world: World) -> None:
    assert set(refusal(world, memory_mib=23_553, gpus_per_node="four", image="nothing:1")) == {
        "over_memory",
        "not_a_number",
        "unknown_image",
    }


def test_a_job_that_asks_for_no_memory_is_not_judged_by_it(tmp_path: Path) -> None:
    assert refusal(World(tmp_path, nodes=[make_node("box", gpus=4, memory_mib=16)])) == []
