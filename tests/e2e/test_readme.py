"""The README's commands, run one after the other as they are written, by somebody who has just started the platform."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.live import ROOT, Live, wait_until

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]

LINE_WITHIN_S = 400


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    installation = Live(tmp_path, slots=4)
    (tmp_path / "root" / ".venv").symlink_to(Path(sys.prefix))
    try:
        installation.up()
        yield installation
    finally:
        installation.down()


def commands_of(page: str) -> list[str]:
    """The lines of the section's first block, without their remarks."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split(f"\n## {page}\n")[1]
    (block, *_) = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [line.split("  #")[0].strip() for line in block.splitlines()]


def newest_job(live: Live) -> str:
    with live.ctx.store.read() as tx:
        return tx.jobs.find(limit=1)[0].id


def start_training(live: Live) -> None:
    job_id = live.submit(hyperparameters={"seconds": 60, "epochs": 60}).id
    wait_until(lambda: (live.job(job_id).progress.epoch or 0) > 2, what=f"the third epoch of {job_id}")


def test_every_command_of_the_readme_does_what_it_says(live: Live) -> None:
    lines = commands_of("Use")
    assert len(lines) >= 9
    for line in lines:
        if " stop " in line:  # its reader has a training that runs, and that has left a checkpoint
            start_training(live)
        written = line.replace("JOB", newest_job(live)) if "JOB" in line else line
        done = subprocess.run(
            ["bash", "-ec", written],
            env=live.environ,
            cwd=live.folder / "root",
            capture_output=True,
            text=True,
            timeout=LINE_WITHIN_S,
            check=False,
        )
        assert done.returncode == 0, f"{written}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), f"{written} said nothing"
