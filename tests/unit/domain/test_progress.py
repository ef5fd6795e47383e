"""Progress lines: user code may print anything, and nothing it prints is an error or grows without bound."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fermion.domain.jobs import Progress
from fermion.domain.progress import MAX_METRIC_NAMES, MAX_NAME_LENGTH, ParsedProgress, parse

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def read(*lines: str, previous: Progress | None = None) -> ParsedProgress:
    return parse(lines, previous or Progress(), now=NOW)


def codes(parsed: ParsedProgress) -> set[str]:
    return {remark.code for remark in parsed.remarks}


def test_a_line_moves_the_progress_and_gives_a_point_for_each_metric() -> None:
    parsed = read('{"progress": 35, "epoch": 3, "epochs": 10, "step": 40, "metrics": {"loss": 0.1, "accuracy": 1}}')
    assert parsed.progress == Progress(percent=35.0, epoch=3, epochs=10, at=NOW)
    assert [(p.number, p.name, p.value, p.epoch, p.step, p.at) for p in parsed.points] == [
        (0, "loss", 0.1, 3, 40, NOW),
        (0, "accuracy", 1.0, 3, 40, NOW),
    ]
    assert parsed.remarks == ()


def test_every_line_is_counted_so_that_reading_twice_gives_the_same_numbers() -> None:
    text = '{"metrics": {"a": 1}}\nnoise\n\n{"metrics": {"a": 2}}\n'
    whole = parse(text, Progress(), now=NOW)
    assert [point.number for point in whole.points] == [0, 3]
    first = parse(text[:28], Progress(), now=NOW)
    second = parse(text[28:], first.progress, now=NOW, first_number=first.next_number, names=first.names)
    assert (*first.points, *second.points) == whole.points
    assert second.next_number == whole.next_number == 4


def test_only_a_line_feed_ends_a_line() -> None:
    parsed = parse('{"metrics": {"a\u2028": 1, "b": 2}}\n', Progress(), now=NOW)
    assert parsed.next_number == 1
    assert [point.name for point in parsed.points] == ["b"]


def test_points_become_records_of_their_attempt() -> None:
    (point,) = read('{"metrics": {"loss": 0.5}}').to_points("job-20260102-001", 2)
    assert (point.job_id, point.attempt, point.number, point.kind, point.name) == (
        "job-20260102-001",
        2,
        0,
        "training",
        "loss",
    )


def test_the_percent_follows_from_the_epochs_when_it_is_not_said() -> None:
    assert read('{"epoch": 3, "epochs": 4}').progress.percent == 75.0
    assert read('{"epoch": 3, "epochs": 4, "progress": 10}').progress.percent == 10.0
    assert read('{"epochs": 4}', '{"epoch": 1}').progress.percent == 25.0
    assert read('{"epoch": 3}').progress == Progress(percent=0.0, epoch=3, at=NOW)
    assert read('{"epoch": 0, "epochs": 0}').progress.percent == 0.0


def test_what_a_line_does_not_say_stays_as_it_was() -> None:
    previous = Progress(percent=50.0, epoch=5, epochs=10, at=NOW - timedelta(minutes=1))
    assert read('{"metrics": {"loss": 1}}', previous=previous).progress == Progress(
        percent=50.0, epoch=5, epochs=10, at=NOW
    )


@pytest.mark.parametrize(
    "line", ["", "   ", '{"other": 1}', "{}", '{"metrics": {}}', '{"metrics": null, "progress": null}']
)
def test_a_line_that_says_nothing_is_no_sign_of_progress(line: str) -> None:
    parsed = read(line)
    assert parsed.progress == Progress()
    assert parsed.remarks == ()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        pytest.param('{"progress": 3', "broken_json", id="a cut line"),
        pytest.param("epoch 3 of 10", "broken_json", id="plain words"),
        pytest.param("\ufffd\ufffd{", "broken_json", id="bytes that were no text"),
        pytest.param("[" * 60_000, "broken_json", id="too deep to read"),
        pytest.param("1" * 5_000, "broken_json", id="a number with too many digits"),
        pytest.param("[1, 2]", "not_an_object", id="a list"),
        pytest.param('{"progress": "' + "x" * 70_000 + '"}', "too_long", id="a very long line"),
        pytest.param('{"progress": "half"}', "not_a_number", id="progress in words"),
        pytest.param('{"progress": true}', "not_a_number", id="progress as a bool"),
        pytest.param('{"progress": NaN}', "not_finite", id="progress not a number"),
        pytest.param('{"progress": 1e999}', "not_finite", id="progress infinite"),
        pytest.param('{"epoch": -1}', "epoch_out_of_range", id="a negative epoch"),
        pytest.param('{"epochs": 1e300}', "epochs_out_of_range", id="more epochs than can be counted"),
        pytest.param('{"metrics": [1]}', "metrics_not_an_object", id="metrics as a list"),
        pytest.param('{"metrics": {"a": "b"}}', "not_a_number", id="a metric in words"),
        pytest.param('{"metrics": {"a": {"b": 1}}}', "not_a_number", id="a metric nested"),
        pytest.param('{"metrics": {"a": -Infinity}}', "not_finite", id="a metric infinite"),
        pytest.param('{"metrics": {"a": 1' + "0" * 400 + "}}", "not_finite", id="a metric too large"),
        pytest.param('{"metrics": {"": 1}}', "bad_metric_name", id="a metric without a name"),
        pytest.param('{"metrics": {"a\\n": 1}}', "bad_metric_name", id="a metric with a line break"),
        pytest.param(
            '{"metrics": {"' + "a" * (MAX_NAME_LENGTH + 1) + '": 1}}', "bad_metric_name", id="a name one too long"
        ),
    ],
)
def test_what_cannot_be_understood_is_left_out_with_a_remark(line: str, code: str) -> None:
    parsed = read(line)
    assert parsed.progress == Progress()
    assert parsed.points == ()
    assert codes(parsed) == {code}


def test_a_bad_value_does_not_take_the_good_ones_with_it() -> None:
    parsed = read('{"progress": "half", "epoch": 2, "metrics": {"bad": NaN, "good": 1}}')
    assert parsed.progress.epoch == 2
    assert [(point.name, point.value) for point in parsed.points] == [("good", 1.0)]


@pytest.mark.parametrize(("said", "kept"), [(400, 100.0), (100.01, 100.0), (100, 100.0), (0, 0.0), (-3, 0.0)])
def test_the_percent_is_clamped_and_the_remark_says_so(said: float, kept: float) -> None:
    parsed = read(json.dumps({"progress": said}))
    assert parsed.progress.percent == kept
    assert codes(parsed) == (set() if said == kept else {"clamped"})


def test_an_epoch_beyond_the_epochs_is_taken_as_the_last() -> None:
    parsed = read('{"epoch": 12, "epochs": 10}')
    assert (parsed.progress.epoch, parsed.progress.epochs, parsed.progress.percent) == (10, 10, 100.0)
    assert codes(parsed) == {"epoch_beyond"}
    assert read('{"epoch": 12}', previous=Progress(epochs=10)).progress.epoch == 10


def test_the_number_of_metric_names_is_bounded_over_many_calls() -> None:
    names: frozenset[str] = frozenset()
    kept = 0
    for part in range(3):
        line = json.dumps({"metrics": {f"m{part}-{number}": 1 for number in range(MAX_METRIC_NAMES)}})
        parsed = parse([line], Progress(), now=NOW, names=names)
        kept += len(parsed.points)
        names = parsed.names
    assert kept == len(names) == MAX_METRIC_NAMES
    assert codes(parsed) == {"too_many_metrics"}


def test_a_thousand_equal_complaints_are_one_remark_with_a_count() -> None:
    (remark,) = read("{}", *["noise"] * 1000).remarks
    assert (remark.code, remark.count, remark.number) == ("broken_json", 1000, 1)


@pytest.mark.parametrize(
    ("at", "expected", "is_remarked"),
    [
        pytest.param("2026-01-02T03:04:00+00:00", datetime(2026, 1, 2, 3, 4, tzinfo=UTC), False, id="ISO 8601"),
        pytest.param(
            "2026-01-02T03:04:00", datetime(2026, 1, 2, 3, 4, tzinfo=UTC), False, id="without a zone it is UTC"
        ),
        pytest.param(NOW.timestamp() - 5, NOW - timedelta(seconds=5), False, id="Unix seconds"),
        pytest.param(NOW.timestamp() + 0.5, NOW, False, id="a clock that is a little ahead"),
        pytest.param("2027-01-02T03:04:00Z", NOW, True, id="the future"),
        pytest.param("1999-01-02T03:04:00Z", NOW, True, id="long ago"),
        pytest.param("yesterday", NOW, True, id="words"),
        pytest.param(1e300, NOW, True, id="beyond any calendar"),
        pytest.param([], NOW, True, id="a list"),
    ],
)
def test_a_line_may_say_its_time(at: object, expected: datetime, is_remarked: bool) -> None:
    parsed = read(json.dumps({"at": at, "metrics": {"a": 1}}))
    assert parsed.points[0].at == parsed.progress.at == expected
    assert codes(parsed) == ({"bad_time"} if is_remarked else set())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(["progress", "epoch", "epochs", "step", "metrics", "at"])


@given(st.lists(st.text() | st.dictionaries(KEYS, JSON).map(json.dumps), max_size=5))
def test_any_lines_give_a_sound_progress(lines: list[str]) -> None:
    parsed = read(*lines)
    assert 0 <= parsed.progress.percent <= 100
    assert parsed.progress.at is None or parsed.progress.at <= NOW
    assert all(math.isfinite(point.value) and point.name in parsed.names for point in parsed.points)
    assert parsed.next_number == len(lines)
    assert len(parsed.remarks) <= 16
