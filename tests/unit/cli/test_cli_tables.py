"""Tables on a terminal of 80 columns, and in a file."""

from __future__ import annotations

import io

import pytest
from installations import Installation

from builders import NOW, make_lease
from fermion.adapters.models.local import LocalModels
from fermion.adapters.sql import open_store
from fermion.cli import output
from fermion.cli.output import Paper, short, table
from fermion.domain.artifacts import ModelDraft
from fermion.domain.leases import LeasePhase, end

POOLS = ("id", "model (method)", "nodes", "gpus", "held", "free", "waiting", "seen (UTC)")
JOBS = ("id", "name", "state", "done", "gpus", "pool", "submitted (UTC)")
MODELS = ("version", "checksum", "bytes", "published (UTC)", "metrics", "verified")
DATASETS = ("name", "newest", "versions", "from", "uri")
LEDGER = ("at (UTC)", "what", "gpus", "cause", "holder", "pool")
LONG = "file:///home/somebody/with/a/long/name/below/many/folders/fermion/run/examples/datasets/digits"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Paper:
    """80 columns wide; what is printed is in its file."""
    monkeypatch.setenv("COLUMNS", "80")
    paper = Paper(file=io.StringIO(), force_terminal=True, color_system=None, highlight=False, width=80)
    monkeypatch.setattr(output, "console", paper)
    return paper


def printed(paper: Paper) -> str:
    assert isinstance(paper.file, io.StringIO)
    return paper.file.getvalue()


@pytest.mark.parametrize(
    ("columns", "row", "folds"),
    [
        pytest.param(
            POOLS, ("local/declared", "declared slot (declared)", 1, 1, 0, 1, 0, "2026-03-02 10:00"), (), id="pools"
        ),
        pytest.param(
            JOBS,
            ("job-20260302-001", "digits on new data", "running (starting)", "100 %", 1, "local/declared", "10:00:00"),
            ("name",),
            id="jobs",
        ),
        pytest.param(
            MODELS,
            ("digits/1", "0123456789ab", 123456, "2026-03-02 10:00", "accuracy 0.9722, loss 0.1042", "yes"),
            (),
            id="models",
        ),
        pytest.param(DATASETS, ("digits", "0123456789ab", 1, "configuration", LONG), ("uri",), id="datasets"),
        pytest.param(
            LEDGER,
            ("10:00:00", "released", "-1", "stop_requested", "job-20260302-001", "local/declared"),
            (),
            id="ledger",
        ),
    ],
)
def test_at_80_columns_no_word_breaks(
    terminal: Paper, columns: tuple[str, ...], row: tuple[object, ...], folds: tuple[str, ...]
) -> None:
    terminal.print(table("", columns, [row], folds=folds))
    text = printed(terminal)
    assert max(map(len, text.splitlines())) <= 80
    for name, cell in zip(columns, row, strict=True):
        whole = [] if name in folds else str(cell).split()
        assert [word for word in (*name.split(), *whole) if word not in text] == []


def test_what_may_break_gives_way_first_and_is_whole_all_the_same(terminal: Paper) -> None:
    terminal.print(table("", DATASETS, [("digits", "0123456789ab", 1, "configuration", LONG)], folds=("uri",)))
    lines = printed(terminal).splitlines()
    place = lines[0].index("uri")
    assert "".join(line[place:].strip() for line in lines[1:]) == LONG


def test_in_a_file_nothing_is_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    paper = Paper(file=io.StringIO(), highlight=False)
    monkeypatch.setattr(output, "console", paper)
    paper.print(table("Datasets", DATASETS, [("digits", "0123456789ab", 1, "configuration", LONG * 3)], folds=("uri",)))
    paper.print("a sentence that goes on " * 20)
    assert len(printed(paper).splitlines()) == 4


def test_a_short_checksum_is_twelve_digits_without_its_kind() -> None:
    assert short("sha256:0123456789abcdef") == "0123456789ab"


def test_the_ledger_says_grant_and_release_with_the_cause(installed: Installation) -> None:
    assert installed.fermion("ledger")[1] == "Nothing is held now.\n"
    store = open_store(installed.database)
    lease = make_lease(holder_id="job-20260302-001")
    with store.begin() as tx:
        tx.leases.add(lease)
    assert "Held now" in installed.fermion("ledger")[1]
    with store.begin() as tx:
        tx.leases.end(end(lease, LeasePhase.RELEASED, cause="preempted", now=NOW))
    told = installed.fermion("ledger")[1].splitlines()
    assert (told[0], told[1].strip()) == ("Nothing is held now.", "Ledger")
    assert [line.split()[-5:] for line in told[3:]] == [
        ["granted", "+1", "–", "job-20260302-001", "local/declared"],
        ["released", "-1", "preempted", "job-20260302-001", "local/declared"],
    ]


def test_verified_models_say_so_one_by_one(installed: Installation) -> None:
    models = LocalModels(installed.root / "run" / "models")
    for number in (1, 2):
        made = installed.root / f"made-{number}"
        made.mkdir()
        (made / "model.bin").write_text(str(number))
        draft = ModelDraft(model="digits", metrics={"accuracy": 0.97}, lineage={}, created_at=NOW)
        models.publish(draft, made, key=f"job-{number}")
    path = next((installed.root / "run" / "models").rglob("2/**/model.bin"))
    path.chmod(0o644)
    path.write_text("other")
    code, told = installed.fermion("models", "--verify")
    rows = {line.split()[0]: line for line in told.splitlines()[2:]}
    assert code == 1
    assert rows["digits/1"].rstrip().endswith(" yes")
    assert "model.bin" in rows["digits/2"]
    assert "verified" not in installed.fermion("models")[1]
    assert "sha256:" not in told
    assert "sha256:" in installed.fermion("models", "--wide")[1]
