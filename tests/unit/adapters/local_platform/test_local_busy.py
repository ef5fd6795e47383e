"""A start that came too late only because the machine is busy says so, and what to do."""

from __future__ import annotations

import pytest

from fermion.adapters.local_platform.installation import busy


@pytest.mark.parametrize(
    ("load", "cores", "told"),
    [
        pytest.param(0.5, 2, "", id="an idle machine"),
        pytest.param(4.0, 2, "", id="twice its cores is what a start takes by itself"),
        pytest.param(
            24.1,
            2,
            ". The machine is busy (load 24 on 2 cores) and it goes on starting: run the same again",
            id="a machine that others use",
        ),
        pytest.param(
            3.0,
            1,
            ". The machine is busy (load 3 on 1 core) and it goes on starting: run the same again",
            id="a single core",
        ),
    ],
)
def test_a_busy_machine_is_told(load: float, cores: int, told: str) -> None:
    assert busy(load, cores) == told
