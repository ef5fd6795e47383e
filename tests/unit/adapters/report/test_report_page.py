"""The page: complete, quick, self-contained, and harmless whatever the strings in it are."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest
from report_scenes import HOSTILE, SCENES, Scene, completed, curve, hostile, out_of_memory, preempted, refused

from builders import at, make_ended_lease, make_job, make_spec
from fermion.adapters.report import charts
from fermion.adapters.report.render import key_figures, render_html, timeline
from fermion.adapters.report.wording import amount, duration, number, percent, size, visible
from fermion.domain.figures import Figure, Method
from fermion.domain.records import MetricPoint
from fermion.domain.series import SERIES_POINTS, build_series

EVERY = pytest.mark.parametrize("scene", [*SCENES.values(), hostile], ids=[*SCENES, "hostile"])
VOID = {"meta", "link", "br", "img", "hr", "input"}
ALLOWED = set(
    re.findall(
        r"\w+",
        "html head meta link title style body main header section footer h1 h2 h3 p span small b i s br code pre div dl dt"
        " dd ol ul li figure figcaption table thead tbody tr th td svg g path rect circle text",
    )
)


class Page(HTMLParser):
    """Every tag, attribute and piece of text, as a browser's tokenizer would find them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def words(self) -> str:
        return re.sub(r"\s+", " ", self.text)


def page_of(scene: Scene) -> Page:
    return Page(render_html(scene.report()))


# --- safe -----------------------------------------------------------------------------------------------------------


@EVERY
def test_the_page_refers_to_nothing_outside_itself(scene: object) -> None:
    html = render_html(scene().report())  # type: ignore[operator]
    page = Page(html)
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action", "formaction", "poster", "data", "srcset", "background"):
                assert (tag, value) == ("link", "data:,")
            if name == "style":
                assert re.fullmatch(r"left:[\d.]+%(;width:[\d.]+%)?", value), value
    style = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert len(style) == 1
    assert "@import" not in style[0]
    assert "url(" not in style[0]


@EVERY
def test_the_page_is_made_of_known_tags_and_each_is_closed(scene: object) -> None:
    page = page_of(scene())  # type: ignore[operator]
    assert {tag for tag, _ in page.tags} <= ALLOWED
    assert page.open == []


def test_hostile_strings_are_shown_as_text_and_never_as_markup() -> None:
    html = render_html(hostile().report())
    assert "<script" not in html
    assert "<img" not in html
    assert html.count("</style>") == 1
    page = Page(html)
    assert page.text.count("<script>alert('x')</script>") > 20, "it is there for the reader to see"
    assert not [tag for tag, attributes in page.tags if any("alert" in name for name in attributes)]


def test_what_cannot_be_seen_or_encoded_is_made_visible() -> None:
    html = render_html(hostile().report())
    html.encode("utf-8")
    assert not [c for c in "\x00\x1b\u202e\ud800" if c in html]
    assert "hunter2" not in html
    assert visible("a\x00b\u202ec\nd\te") == "a�b�c\nd\te"


def test_a_policy_in_the_page_forbids_scripts_and_requests() -> None:
    policies = [
        a["content"] for tag, a in page_of(completed()).tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == [
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    ]


def test_classes_come_from_our_own_words_only() -> None:
    hostile_words = {word for _, attributes in page_of(hostile()).tags for word in attributes.get("class", "").split()}
    known_words = {
        word for make in SCENES.values() for _, a in page_of(make()).tags for word in a.get("class", "").split()
    }
    assert hostile_words <= known_words | {"waste2", "waste3", "bad", "between"}


# --- complete -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scene", "expected"),
    [
        pytest.param(
            completed,
            ["Published digits/7", "completed", "2 declared slots", "76.4 GPU-s", "98.6 %", "wasted, starting", "learning_rate",
             "c0ffee", "lr 0.05", "sha256:a1a1", "declared slots: this machine has no GPU", "fermion train --spec -", "lease-000041"],
            id="completed",
        ),
        pytest.param(
            refused,
            ["The request was refused", "there is no image 'digit:1'", "Choose one of: digits:1, torch-cpu:2.", "held none",
             "no GPU was ever held", "not pinned", "none was published"],
            id="refused in the check",
        ),
        pytest.param(
            out_of_memory,
            ["Ran out of memory", "Ask for more with memory_mib", "over the limit of 2048 MiB", "SIGKILL", "train: out of memory"],
            id="out of memory",
        ),
        pytest.param(
            preempted,
            ["Published digits/7", "in 2 attempts", "preempted", "lease-000055", "attempt 2", "takes 2 GPUs"],
            id="preempted, then completed",
        ),
    ],
)  # fmt: skip
def test_the_page_tells_what_happened(scene: object, expected: list[str]) -> None:
    words = page_of(scene()).words()  # type: ignore[operator]
    assert [text for text in expected if text not in words] == []


def test_the_log_comes_before_the_timeline_only_when_the_job_failed() -> None:
    failed, well = page_of(out_of_memory()).words(), page_of(completed()).words()
    assert failed.index("The end of the log") < failed.index("Where the time went")
    assert well.index("The end of the log") > well.index("Where the time went")


@EVERY
def test_every_key_figure_is_shown_with_its_source(scene: object) -> None:
    report = scene().report()  # type: ignore[operator]
    words = Page(render_html(report)).words()
    for key in key_figures(report):
        assert f"{key.figure.method} {visible(key.figure.source)}" in words


@EVERY
def test_bars_stay_inside_their_row_and_the_band_fills_its_own(scene: object) -> None:
    drawn = timeline(scene().report())  # type: ignore[operator]
    for bar in [*drawn.band, *(bar for row in drawn.rows for bar in row.bars)]:
        assert 0 <= bar.left <= 100
        assert 0 <= bar.width <= 100 - bar.left + 0.01
    assert all(0 <= left <= 100 for left, _ in drawn.marks)


# --- charts ---------------------------------------------------------------------------------------------------------


def test_each_attempt_is_a_line_of_its_own() -> None:
    report = preempted().report()
    svg = charts.chart(report.metrics[0], label="loss")
    assert len(re.findall(r'class="line reactive', svg)) == 2
    assert {"color-0", "color-1"} <= set(re.findall(r"color-\d", svg))
    assert "<title>epoch 6: " in svg


def test_a_value_that_is_no_number_is_a_gap_and_is_told() -> None:
    lease = make_ended_lease(granted_at=at(1), exec_at=at(1), exit_at=at(50), ended_s=50)
    values = [4.0, 3.0, math.nan, math.nan, 2.0, 1.0]
    scene = Scene(job=make_job(submitted_at=at(0)), leases=[lease], points=curve("loss", values, start=5, step_s=1))
    html = render_html(scene.report())
    assert "2 of 6 values were no finite number (gaps)" in html
    assert html.count('class="line reactive') == 2


def test_many_points_are_thinned_and_the_page_says_so() -> None:
    points = curve("loss", [math.sin(i) for i in range(48_000)], start=1, step_s=0.01)
    html = render_html(Scene(job=make_job(submitted_at=at(0)), points=points).report())
    (drawn,) = re.findall(r"([\d,]+) of 48,000 points drawn", html)
    assert SERIES_POINTS / 2 < int(drawn) <= SERIES_POINTS


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([1.0], id="one value"),
        pytest.param([0.0, 0.0, 0.0], id="always nothing"),
        pytest.param([5.0] * 40, id="always the same"),
        pytest.param([1.0, 1.0 + 2**-52], id="as near as floats get"),
        pytest.param([1e308, -1e308], id="as far as floats get"),
        pytest.param([5e-324, 1e-323], id="as small as floats get"),
        pytest.param([0.0, 5e-324], id="nothing and next to nothing"),
        pytest.param([1e-9, 1e12], id="many magnitudes"),
        pytest.param([math.nan, 1.0, math.nan], id="a value between gaps"),
        pytest.param([-3.0, -1.0], id="below zero"),
    ],
)
@pytest.mark.parametrize("kind", ["training", "system"])
def test_any_values_make_a_chart_whose_coordinates_are_numbers(values: list[float], kind: str) -> None:
    points = curve("m", values, start=0, step_s=1, kind=kind)
    svg = charts.chart(build_series("m", points, kind=kind, unit="value", source="s", now=at(9)), label="m")
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"<title>.*?</title>", "", svg))
    heights = [float(y) for y in re.findall(r'cy="([^"]+)"', svg)]
    assert heights
    assert all(-1 <= y <= charts.HEIGHT for y in heights)


@pytest.mark.parametrize(
    ("points", "axis"),
    [
        pytest.param([(1, 1, None), (1, 2, None)], "epoch", id="one value an epoch"),
        pytest.param([(1, 1, 10), (1, 1, 20)], "step", id="several values an epoch, told apart by the step"),
        pytest.param([(1, 1, None), (1, 1, None)], "after", id="several values an epoch and no step"),
        pytest.param([(1, 1, None), (2, 1, None)], "epoch", id="the same epoch again in the next attempt"),
        pytest.param([(1, None, None), (1, 2, None)], "after", id="an epoch is missing"),
        pytest.param([(1, 3, 7)], "after", id="one point"),
    ],
)
def test_the_axis_is_what_tells_the_points_apart(points: list[tuple[int, int | None, int | None]], axis: str) -> None:
    rows = [
        MetricPoint(
            job_id="j",
            attempt=attempt,
            number=i,
            kind="training",
            name="m",
            value=1.0,
            at=at(i),
            epoch=epoch,
            step=step,
        )
        for i, (attempt, epoch, step) in enumerate(points)
    ]
    series = build_series("m", rows, kind="training", unit="value", source="s", now=at(9))
    assert charts.x_axis(series.points)[0] == axis


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.3, 1.1, [0.4, 0.6, 0.8, 1.0]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (95.0, 3605.0, [1000, 2000, 3000]),
        (1, 1, []),
        (0, math.inf, []),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert charts.ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("high", "expected"),
    [
        (65, [0, 10, 20, 30, 40, 50, 60]),
        (969, [0, 120, 240, 360, 480, 600, 720, 840, 960]),
        (10_800, [0, 1800, 3600, 5400, 7200, 9000, 10_800]),
        (86_400 * 10, [0, 172_800, 345_600, 518_400, 691_200, 864_000]),
    ],
)
def test_ticks_of_time_are_round_on_a_clock(high: float, expected: list[float]) -> None:
    assert charts.time_ticks(high) == pytest.approx(expected)


# --- quick ----------------------------------------------------------------------------------------------------------


def test_three_metrics_of_a_thousand_points_render_within_a_second() -> None:
    points = [
        each
        for name in ("loss", "accuracy", "learning_rate")
        for each in curve(name, [math.sin(i / 40) for i in range(1000)], start=1, step_s=1)
    ]
    scene = Scene(job=make_job(spec=make_spec(), submitted_at=at(0)), points=points)
    began = time.perf_counter()
    render_html(scene.report())
    assert time.perf_counter() - began < 1


def test_importing_the_adapter_loads_neither_pygal_nor_jinja() -> None:
    program = (
        "import sys, fermion.adapters.report.folder;"
        " print([name for name in ('pygal', 'jinja2', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"


# --- wording --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0 s"), (0.05, "0.05 s"), (0.97, "1.0 s"), (9.96, "10.0 s"), (59.94, "59.9 s"), (59.96, "1 m 00 s"), (119.6, "2 m 00 s"),
        (3599.6, "1 h 00 m"), (8040, "2 h 14 m"), (86_399, "1 d 00 h"), (273_600, "3 d 04 h"),
    ],
)  # fmt: skip
def test_durations_read_as_people_say_them(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.97224, "0.9722"),
        (12_480, "12,480"),
        (3.1e-07, "3.100e-07"),
        (1234.56, "1,234.6"),
        (None, "–"),
        (math.nan, "–"),
        (-2.0, "-2"),
    ],
)
def test_numbers_keep_four_digits(value: float | None, expected: str) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(
    ("ratio", "expected"), [(0, "0 %"), (0.0004, "< 0.1 %"), (0.981, "98.1 %"), (0.9996, "> 99.9 %"), (1, "100 %")]
)
def test_percentages_never_round_to_all_or_nothing(ratio: float, expected: str) -> None:
    assert percent(ratio) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 bytes"), (1023, "1,023 bytes"), (1024, "1 KiB"), (1_843_612, "1.8 MiB"), (2**40 * 3, "3 TiB")],
)
def test_sizes_are_binary(count: int, expected: str) -> None:
    assert size(count) == expected


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [(76.4, "gpu_seconds", "76.4 GPU-s"), (36_000, "gpu_seconds", "36,000 GPU-s (10.0 GPU-h)"), (0.5, "ratio", "50 %"), (41.7, "percent", "41.7 %"),
     (640, "mib", "640 MiB"), (1.651, "cores", "1.651 cores"), ("SIGKILL", "signal", "SIGKILL")],
)  # fmt: skip
def test_a_figure_is_told_in_its_unit(value: float | str, unit: str, expected: str) -> None:
    assert amount(Figure(value=value, unit=unit, source="s", method=Method.MEASURED, observed_at=at(0))) == expected


def test_the_hostile_string_is_as_hostile_as_the_tests_need() -> None:
    assert all(
        piece in HOSTILE
        for piece in ("<script>", "</style>", "'", '"', "onerror=", "https://", "\x00", "\u202e", "\ud800")
    )
