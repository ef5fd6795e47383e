"""Reports as files: whole or not at all, read back as they were, never outside their folder."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from report_scenes import SCENES, completed, hostile

from fermion.adapters.report.folder import FolderReports, write
from fermion.errors import OutsideBroken, OutsideUnavailable
from fermion.ports import Reports


@pytest.mark.parametrize("scene", [*SCENES.values(), hostile], ids=[*SCENES, "hostile"])
def test_what_was_written_is_read_back(tmp_path: Path, scene: object) -> None:
    reports: Reports = FolderReports(tmp_path / "not" / "there" / "yet")
    report = scene().report()  # type: ignore[operator]
    html, payload = map(Path, reports.write(report))
    assert reports.read(report.job.id) == report
    assert html.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert json.loads(payload.read_text(encoding="utf-8"))["schema"] == 1


def test_writing_again_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    report = completed().report()
    first = write(report, tmp_path)
    second = write(replace(report, log_tail="another end"), tmp_path)
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{report.job.id}.html", f"{report.job.id}.json"]
    assert FolderReports(tmp_path).read(report.job.id).log_tail == "another end"  # type: ignore[union-attr]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    report = completed().report()
    html, payload = write(report, tmp_path)
    before = payload.read_text()
    payload.unlink()
    payload.mkdir()  # a rename cannot replace a folder
    (payload / "held").write_text(before)
    with pytest.raises(OutsideUnavailable, match=r"cannot be written"):
        write(replace(report, log_tail="another end"), tmp_path)
    assert (payload / "held").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [html.name, payload.name], "no temporary file is left"


def test_a_report_that_was_never_written_is_none(tmp_path: Path) -> None:
    assert FolderReports(tmp_path / "absent").read("job-20260302-001") is None


@pytest.mark.parametrize("job_id", ["../secret", "/etc/passwd", "", ".", "..", "a/b", "a\x00b", "x" * 200])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, job_id: str) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()
    (tmp_path / "secret.json").write_text(json.dumps(completed().report().to_payload()))
    assert FolderReports(folder).read(job_id) is None
    report = completed().report()
    with pytest.raises(ValueError, match="cannot name a file"):
        write(replace(report, job=replace(report.job, id=job_id)), folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"schema": 1}', '{"schema": 99}', "\udcff"])
def test_what_is_not_a_report_is_broken_and_says_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / "job-20260302-001.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(OutsideBroken, match="write it again"):
        FolderReports(tmp_path).read("job-20260302-001")


def test_the_example_in_the_docs_reads_a_report(tmp_path: Path) -> None:
    page = Path(__file__).parents[4] / "docs" / "report.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    write(completed().report(), tmp_path / "run" / "reports")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.startswith("Published digits/7 1.0")
