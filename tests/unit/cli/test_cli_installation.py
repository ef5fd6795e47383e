"""``fermion down`` and its neighbours: what they say of what they found."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from installations import Installation

from fermion import wiring
from fermion.adapters.local_platform.installation import DownResult


@pytest.mark.parametrize(
    ("found", "said"),
    [
        pytest.param(
            DownResult(was_up=False, workloads=0, replicas=0, leftovers=0), ["Fermion was down already."], id="nothing"
        ),
        pytest.param(
            DownResult(was_up=True, workloads=1, replicas=0, leftovers=0),
            [
                "Ended 1 running training; `fermion restart --resume JOB` starts a job again from its last checkpoint.",
                "Fermion is down.",
            ],
            id="a training",
        ),
        pytest.param(
            DownResult(was_up=True, workloads=0, replicas=3, leftovers=0),
            ["Ended 3 replicas of services; they come back with `fermion up`.", "Fermion is down."],
            id="replicas",
        ),
        pytest.param(
            DownResult(was_up=False, workloads=0, replicas=0, leftovers=2),
            ["Ended 2 left-over processes.", "Fermion is down."],
            id="left-overs",
        ),
    ],
)
def test_down_says_what_it_ended_and_how_trainings_go_on(
    installed: Installation, monkeypatch: pytest.MonkeyPatch, found: DownResult, said: list[str]
) -> None:
    monkeypatch.setattr(wiring, "local_platform", lambda environ: SimpleNamespace(down=lambda say: found))
    assert installed.fermion("down") == (0, "\n".join(said) + "\n")
