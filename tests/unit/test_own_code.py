"""The page about one's own code: its training and its request work as they stand there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from ruamel.yaml import YAML

from fermion.domain.jobs import JobSpec, Progress
from fermion.domain.progress import ParsedProgress, parse
from fermion.domain.request import arguments_of, parse_request
from fermion.settings import load

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "docs" / "bring-your-own-code.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found.group(1)


def request() -> JobSpec:
    return parse_request(YAML(typ="safe").load(block("yaml")))


def test_the_request_on_the_page_is_accepted_and_fits_the_shipped_configuration(tmp_path: Path) -> None:
    settings = load(environ={"FERMION_ROOT": str(CHECKOUT), "FERMION_STATE": str(tmp_path)})
    assert request().image in settings.images
    assert request().pool.split("/")[0] in settings.clusters
    assert any(f"//{host}/" in request().repository for host in settings.code.hosts)


def test_the_training_on_the_page_trains_reports_and_resumes(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(block("python"))
    for name in ("output", "checkpoints"):
        (tmp_path / name).mkdir()

    def run(epochs: int) -> ParsedProgress:
        command = [sys.executable, "train.py", *arguments_of({**request().hyperparameters, "epochs": epochs})]
        environment = {
            "FERMION_OUTPUT_DIR": str(tmp_path / "output"),
            "FERMION_CHECKPOINT_DIR": str(tmp_path / "checkpoints"),
        }
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        return parse(done.stdout, Progress(), now=datetime.now(UTC))

    first, second = run(3), run(5)
    assert (first.remarks, second.remarks) == ((), ())
    assert [point.epoch for point in (*first.points, *second.points)] == [1, 2, 3, 4, 5]
    assert second.progress.percent == 100
    assert second.points[-1].value < first.points[0].value
    assert abs(json.loads((tmp_path / "output" / "model.json").read_text())["weight"] - 3) < 0.1
