"""``fermion demo`` where it cannot come to its end: words instead of a traceback, and no claim of an earlier demo left."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from installations import Installation
from rich.console import Console

from builders import make_job
from fermion import wiring
from fermion.adapters.local_platform.installation import UpResult
from fermion.cli import demo, examples, output
from fermion.errors import OutsideUnavailable

ADDRESS = {"url": "http://127.0.0.1:1", "user": "admin", "password_file": "/nowhere"}


def summary(installed: Installation) -> dict[str, object]:
    return json.loads((installed.root / "run" / "demo.json").read_text())


def test_without_git_it_says_what_to_install_and_claims_nothing(
    installed: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_start", lambda say, port: ADDRESS)
    monkeypatch.setattr(examples.shutil, "which", lambda name: None)
    (installed.root / "run" / "demo.json").write_text('{"ok": true, "model": "digits/1"}')
    code, told = installed.fermion("demo")
    assert code == 3
    assert "no `git` on the PATH" in told
    assert summary(installed) == {"ok": False, "failed_claims": "the demo did not come to its end"}


def test_what_the_start_notes_is_told(installed: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    note = "port 8080 is taken by nginx; the pages are on 8081"
    up = UpResult(
        url="http://127.0.0.1:8081", user="admin", password_file=installed.root, started=True, seconds=1.0,
        notes=[note], import_errors={"mine.py": "NameError: x"},
    )  # fmt: skip
    monkeypatch.setattr(wiring, "local_platform", lambda environ: SimpleNamespace(up=lambda port, say: up))
    monkeypatch.setattr(examples.shutil, "which", lambda name: None)
    _, printed, _ = installed.called("demo")
    assert printed.splitlines() == [
        note, "dags/mine.py cannot be imported: NameError: x", "Fermion is up: http://127.0.0.1:8081"
    ]  # fmt: skip


def test_a_platform_that_does_not_start_leaves_no_claim_of_an_earlier_demo(
    installed: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(say: object, port: object) -> dict[str, str]:
        raise OutsideUnavailable("the database does not take connections", what="postgres")

    monkeypatch.setattr(demo, "_start", fails)
    (installed.root / "run" / "demo.json").write_text('{"ok": true}')
    code, told = installed.fermion("demo", "--json")
    assert code == 3
    assert "connections" in told
    assert summary(installed)["ok"] is False


@pytest.mark.parametrize("port", ["abc", "99999"])
def test_a_port_that_is_none_is_told_in_words(installed: Installation, port: str) -> None:
    code, printed, complained = installed.called("demo", "--port", port)
    assert (code, printed) == (2, "")
    assert "FERMION_PORT" in complained


def test_the_stages_are_told_in_their_order_and_none_apart_from_its_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (demo, output):
        monkeypatch.setattr(place, "console", Console(width=60))
    stages = {"wait_for_gpus": 8.1, "clone_repository": 0.1, "save_model": 0.1, "pull_image": 0.0, "train": 11.5}
    claims = {
        "gpu_seconds_held": 1, "gpu_seconds_wasted": 0, "gpus": 1, "gpus_are": "declared", "report": "",
        "ui": "", "login": "", "password_file": "", "seconds": 1.0,
    }  # fmt: skip
    demo.show(make_job(), demo.Summary(claims=dict(claims), stages=stages))
    told = [line.strip("│ ").removeprefix("time").strip() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in told if "_" in line] == [
        "pull_image 0.0 s   clone_repository 0.1 s", "wait_for_gpus 8.1 s   train 11.5 s", "save_model 0.1 s"
    ]  # fmt: skip
