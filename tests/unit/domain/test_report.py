"""The report's numbers: where the time went, what GPUs were held for, what a series keeps, how to run it again."""

from __future__ import annotations

import json
import math
import shlex
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import at, make_device, make_ended_lease, make_job, make_lease, make_node, make_pool, make_spec
from fermion.domain.figures import Figure, Method
from fermion.domain.jobs import Job, JobSpec, Phase, Pins
from fermion.domain.leases import Slice
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.records import Decision, MetricPoint, StageSpan
from fermion.domain.report import (
    DECISIONS,
    HEADLINES,
    LOG_LINES,
    SCHEMA,
    Report,
    build_report,
    devices_in_words,
    tail,
)
from fermion.domain.reproduction import without_credentials
from fermion.domain.request import parse_request
from fermion.domain.series import SERIES_POINTS, SeriesPoint, thin
from fermion.domain.timeline import Activity, life

JOB = "job-20260302-001"
PINS = Pins(image_digest="sha256:" + "a" * 64, commit="c" * 40, datasets={"digits": "sha256:" + "d" * 64})


def ended_job(**changes: object) -> Job:
    defaults: dict[str, object] = {
        "phase": Phase.COMPLETED,
        "explanation": Explanation(Reason.MODEL_PUBLISHED, "Published."),
        "submitted_at": at(0),
        "queued_at": at(2),
        "ended_at": at(100),
    }
    return make_job(**{**defaults, **changes})


def span(stage: str, start: float, end: float | None, *, attempt: int = 1) -> StageSpan:
    return StageSpan(
        job_id=JOB, attempt=attempt, stage=stage, started_at=at(start), ended_at=None if end is None else at(end)
    )


def point(number: int, value: float, *, name: str = "loss", kind: str = "training", attempt: int = 1) -> MetricPoint:
    return MetricPoint(job_id=JOB, attempt=attempt, number=number, kind=kind, name=name, value=value, at=at(number))


def report_of(job: Job | None = None, **rows: object) -> Report:
    empty: dict[str, object] = {"leases": (), "spans": (), "points": (), "decisions": (), "now": at(200)}
    return build_report(job or ended_job(), **{**empty, **rows})  # type: ignore[arg-type]


# --- where the time went --------------------------------------------------------------------------------------------

FETCHING = (span("check_quota", 0, 1), span("enqueue", 1, 2), span("pull_image", 2, 10), span("mount_dataset", 3, 6))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param({}, {"waiting": 98, "between": 2}, id="a job that only waited"),
        pytest.param(
            {"spans": FETCHING},
            {"checking": 2, "staging": 8, "waiting": 90},
            id="stages side by side count once, and fetching counts before waiting",
        ),
        pytest.param(
            {
                "spans": (*FETCHING, span("save_model", 80, 99)),
                "leases": [make_ended_lease(granted_at=at(20), exec_at=at(21), exit_at=at(70), ended_s=72)],
            },
            {"checking": 2, "staging": 8, "waiting": 10, "holding": 3, "training": 49, "between": 9, "saving": 19},
            id="a lease is training while its process lives and only held before and after",
        ),
        pytest.param(
            {
                "spans": FETCHING,
                "leases": [
                    make_ended_lease("a", granted_at=at(20), exec_at=at(20), exit_at=at(40), ended_s=40),
                    make_ended_lease("b", granted_at=at(60), exec_at=at(60), exit_at=at(100), ended_s=100, attempt=2),
                ],
            },
            {"checking": 2, "staging": 8, "waiting": 30, "training": 60},
            id="between two leases the job is in line",
        ),
        pytest.param(
            {"leases": [make_ended_lease(granted_at=at(2), exec_at=None, ended_s=100)]},
            {"between": 2, "holding": 98},
            id="a lease whose process was never seen is held and nothing else",
        ),
        pytest.param(
            {"leases": [make_ended_lease(granted_at=at(2), exec_at=at(2), exit_at=at(100), ended_s=130)]},
            {"between": 2, "training": 98, "holding": 30},
            id="a lease that outlives its job is counted to its own end",
        ),
        pytest.param(
            {"spans": (span("train", 2, 100),)},
            {"between": 2, "waiting": 98},
            id="a train stage without a lease is no training",
        ),
    ],
)
def test_every_moment_counts_once_under_the_right_activity(rows: dict[str, object], expected: dict[str, float]) -> None:
    report = report_of(**rows)
    assert {str(share.activity): share.seconds for share in report.shares} == expected
    assert sum(expected.values()) == report.figures["wall_seconds"].value


def test_a_job_that_went_back_in_line_and_was_never_granted_again_waited_to_its_end() -> None:
    job = ended_job(queued_at=at(40), attempt=2, phase=Phase.FAILED, explanation=Explanation(Reason.QUEUE_TIMEOUT, ""))
    lease = make_ended_lease(granted_at=at(20), exec_at=at(20), exit_at=at(40), ended_s=40, cause="preempted")
    report = report_of(job, leases=[lease], spans=[span("enqueue", 1, 2)])
    waits = [(stage.attempt, stage.seconds) for stage in report.stages if stage.name == "wait_for_gpus"]
    assert waits == [(1, 18), (2, 60)]


offsets = st.integers(min_value=-20, max_value=220)


@given(
    spans=st.lists(
        st.tuples(st.sampled_from(["check_quota", "pull_image", "save_model", "odd"]), offsets, offsets | st.none())
    ),
    leases=st.lists(st.tuples(offsets, offsets, offsets, offsets), max_size=4),
    queued=st.none() | offsets,
)
def test_the_band_has_no_gap_and_sums_to_the_whole_whatever_the_rows_say(
    spans: list[tuple[str, int, int | None]], leases: list[tuple[int, int, int, int]], queued: int | None
) -> None:
    job = ended_job(queued_at=None if queued is None else at(queued))
    held = [
        make_ended_lease(f"l{i}", granted_at=at(a), exec_at=at(b), exit_at=at(c), ended_s=d)
        for i, (a, b, c, d) in enumerate(leases)
    ]
    band = life(job, leases=held, spans=[span(stage, a, b) for stage, a, b in spans], until=at(100))
    assert sum(piece.seconds for piece in band) == pytest.approx(100)
    assert band[0].started_at == at(0)
    for one, following in pairwise(band):
        assert one.started_at + timedelta(seconds=one.seconds) == following.started_at
        assert one.activity is not following.activity


def test_recorded_stages_keep_their_own_times_and_an_open_one_says_so() -> None:
    report = report_of(spans=[*FETCHING, span("write_report", 150, None)])
    assert [(stage.name, stage.seconds) for stage in report.stages if stage.method is Method.MEASURED] == [
        ("check_quota", 1),
        ("enqueue", 1),
        ("pull_image", 8),
        ("mount_dataset", 3),
        ("write_report", 50),
    ]
    assert [stage.name for stage in report.stages if stage.is_open] == ["write_report"]


def test_a_recorded_wait_and_training_are_not_shown_twice() -> None:
    lease = make_ended_lease(granted_at=at(20), exec_at=at(20), exit_at=at(40), ended_s=40)
    report = report_of(leases=[lease], spans=[span("wait_for_gpus", 2, 20), span("train", 20, 41)])
    assert [stage.name for stage in report.stages] == ["wait_for_gpus", "train"]


# --- GPU-seconds ----------------------------------------------------------------------------------------------------


def test_gpu_seconds_are_summed_over_leases_and_wasted_by_cause() -> None:
    lost = make_ended_lease("a", gpus=2, granted_at=at(10), exec_at=at(12), exit_at=at(30), ended_s=31)
    idle = make_ended_lease("b", gpus=2, granted_at=at(50), exec_at=None, ended_s=60, attempt=2)
    report = report_of(leases=[idle, lost])
    values = {name: report.figures[f"gpu_seconds_{name}"].value for name in ("held", "used", "wasted")}
    assert values == {"held": 62, "used": 36, "wasted": 26}
    assert {cause: figure.value for cause, figure in report.wasted.items()} == {
        "never_started": 20,
        "starting": 4,
        "ending": 2,
    }
    assert list(report.wasted) == ["never_started", "starting", "ending"], "the greatest waste first"
    assert [(lease.id, lease.held) for lease in report.leases] == [("a", 42), ("b", 20)], "oldest first"
    assert report.figures["used_ratio"].value == pytest.approx(36 / 62)


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.COMPLETED, Phase.WAITING])
def test_a_job_without_lease_model_pool_or_pins_has_a_report_with_reasons(phase: Phase) -> None:
    job = ended_job(phase=phase, queued_at=None, ended_at=None if phase is Phase.WAITING else at(3), pins=None)
    report = report_of(job)
    assert report.job.devices is None
    assert report.model is None
    assert report.figures["gpu_seconds_held"].value == 0
    assert report.figures["gpus"].reason == "the job never held a GPU"
    assert report.figures["model_bytes"].reason == "no model was published"
    assert {series.reason for series in report.system} == {"nothing ran: the job never held a GPU"}
    assert not report.reproduction.is_pinned


H200 = make_node(
    "n1",
    gpus=0,
    devices=tuple(make_device(i, model="NVIDIA H200", method=Method.MEASURED, prefix="GPU") for i in range(2)),
)


@pytest.mark.parametrize(
    ("slices", "pool", "expected"),
    [
        pytest.param((Slice("n0", ("n0-0",)),), make_pool(), "1 declared slot", id="one slot"),
        pytest.param((Slice("n0", ("n0-0", "n0-1")),), make_pool(), "2 declared slots", id="two slots"),
        pytest.param((Slice("n0", ("slot-0", "slot-1")),), None, "2 declared slots", id="slots of a pool that is gone"),
        pytest.param(
            (Slice("n1", ("GPU-0", "GPU-1")),), make_pool(nodes=[H200]), "2 × NVIDIA H200", id="measured devices"
        ),
        pytest.param(
            (Slice("n1", ("GPU-9",)),), make_pool(nodes=[H200]), "1 × GPU of unknown model", id="a device that left"
        ),
    ],
)
def test_devices_are_called_what_is_known_of_them(slices: tuple[Slice, ...], pool: object, expected: str) -> None:
    assert devices_in_words(make_lease(slices=slices), pool) == expected  # type: ignore[arg-type]


def test_a_declared_device_is_never_called_by_the_model_it_was_declared_with() -> None:
    node = make_node("n0", gpus=0, devices=(make_device(0, model="NVIDIA H100", prefix="n0"),))
    lease = make_ended_lease(granted_at=at(10), exec_at=at(11), exit_at=at(20), ended_s=21)
    report = report_of(leases=[lease], pool=make_pool(nodes=[node]))
    text = json.dumps(report.to_payload())
    assert "H100" not in text
    assert report.figures["gpus"].method is Method.DECLARED
    assert report.figures["gpu_utilisation_mean"].value is None
    assert "declared slots" in str(report.figures["gpu_utilisation_mean"].reason)


# --- series ---------------------------------------------------------------------------------------------------------


def test_a_series_tells_its_extremes_over_all_points_and_counts_what_is_no_number() -> None:
    values = [3.0, math.nan, 1.0, math.inf, 2.0]
    (series,) = report_of(points=[point(i, value) for i, value in enumerate(values)]).metrics
    assert (series.first.value, series.last.value, series.lowest.value, series.highest.value) == (3, 2, 1, 3)
    assert (series.count, series.not_finite) == (5, 2)
    assert [each.value for each in series.points] == [3.0, None, 1.0, None, 2.0]
    assert series.lowest.observed_at == at(2)


def test_a_series_of_nothing_but_nan_says_so() -> None:
    (series,) = report_of(points=[point(i, math.nan) for i in range(3)]).metrics
    assert series.reason == series.last.reason == "no recorded value is a finite number"


def test_means_of_use_are_over_the_recorded_points() -> None:
    lease = make_ended_lease(granted_at=at(10), exec_at=at(11), exit_at=at(20), ended_s=21)
    points = [
        point(i, v, name=name, kind="system") for name in ("cpu_cores", "memory_mib") for i, v in enumerate([1, 2, 6])
    ]
    figures = report_of(leases=[lease], points=points, pool=make_pool()).figures
    assert figures["cpu_cores_mean"].value == 3
    assert figures["memory_mib_peak"].value == 6


@pytest.mark.parametrize("count", [0, 1, SERIES_POINTS - 1, SERIES_POINTS, SERIES_POINTS + 1, 10_000])
def test_thinning_stays_under_the_limit_and_keeps_ends_and_extremes(count: int) -> None:
    points = [SeriesPoint(attempt=1, at=at(i), value=math.sin(i / 50)) for i in range(count)]
    if count > 5000:
        points[4321] = SeriesPoint(attempt=1, at=at(4321), value=99.0)
        points[1234] = SeriesPoint(attempt=1, at=at(1234), value=None)
    kept = thin(points)
    assert len(kept) == count if count <= SERIES_POINTS else len(kept) <= SERIES_POINTS
    assert list(kept) == sorted(kept, key=lambda each: each.at)
    assert set(kept) <= set(points), "nothing is made up"
    if count:
        assert (kept[0], kept[-1]) == (points[0], points[-1])
        assert {points[4321], points[1234]} <= set(kept) if count > 5000 else True


@given(
    st.lists(st.floats(allow_nan=False) | st.none(), min_size=9, max_size=300), st.integers(min_value=8, max_value=60)
)
def test_thinning_never_loses_the_highest_the_lowest_or_the_fact_of_a_gap(
    values: list[float | None], limit: int
) -> None:
    kept = [
        each.value for each in thin([SeriesPoint(attempt=1, at=at(i), value=v) for i, v in enumerate(values)], limit)
    ]
    assert len(kept) <= max(limit, 8)
    finite = [value for value in values if value is not None]
    if finite:
        assert (max(finite), min(finite)) == (
            max(v for v in kept if v is not None),
            min(v for v in kept if v is not None),
        )
    assert (None in kept) == (None in values)


# --- lineage, reproduction, text ------------------------------------------------------------------------------------


def test_the_command_asks_for_the_same_again_with_the_commit_pinned() -> None:
    spec = make_spec(
        name='it\'s $(rm -rf ~) `x` "é"',
        datasets=("digits",),
        hyperparameters={"lr": 0.1, "augment": True, "note": "a\u202eb\nSPEC\n"},
        gpus_per_node=2,
        max_runtime=timedelta(hours=2),
        ref="feature/x",
    )
    command = report_of(ended_job(spec=spec, pins=PINS)).reproduction.command
    first, body = command.split("\n", 1)
    body, _, rest = body.rpartition("\nSPEC\n")
    assert shlex.split(first) == ["fermion", "train", "--spec", "-", "<<SPEC"]
    assert rest == ""
    assert "SPEC" not in body.splitlines()
    assert "\u202e" not in command, "nothing in it is invisible"
    again: JobSpec = parse_request(json.loads(body))
    assert again.ref == PINS.commit
    assert (again.name, again.datasets, again.hyperparameters) == (spec.name, spec.datasets, spec.hyperparameters)
    assert (again.gpus, again.max_runtime, again.entrypoint) == (2, timedelta(hours=2), spec.entrypoint)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://git.example.org/a.git", "https://git.example.org/a.git"),
        ("https://ann:secret@git.example.org/a.git", "https://git.example.org/a.git"),
        ("https://token@git.example.org:8443/a.git", "https://git.example.org:8443/a.git"),
        ("ssh://git@git.example.org/a.git", "ssh://git@git.example.org/a.git"),
        ("ssh://git:secret@git.example.org/a.git", "ssh://git@git.example.org/a.git"),
        ("file:///srv/git/a.git", "file:///srv/git/a.git"),
        ("https://ann:secret@[broken/a.git", "https://[broken/a.git"),
    ],
)
def test_a_report_carries_no_credentials_of_the_repository(url: str, expected: str) -> None:
    assert without_credentials(url) == expected
    report = report_of(ended_job(spec=make_spec(repository=url), pins=PINS))
    assert "secret" not in json.dumps(report.to_payload())


def test_the_log_is_cut_to_its_last_lines_without_terminal_codes() -> None:
    log = (
        "\n".join(f"line {i}" for i in range(1000))
        + "\n\x1b[1;31mred\x1b[0m \x1b]0;title\x07end\n  1 %\r 50 %\r100 %\r\n"
    )
    lines = tail(log).split("\n")
    assert lines[-2:] == ["red end", "100 %"]
    assert len(lines) <= LOG_LINES
    assert tail("") == ""


def test_a_log_of_one_endless_line_is_cut_too() -> None:
    assert len(tail("x" * 10_000_000)) <= 24_000


def test_only_the_newest_decisions_are_kept_and_the_rest_is_counted() -> None:
    decisions = [
        Decision(
            id=f"d{i}",
            kind="admit",
            subject=JOB,
            verdict="wait",
            reason="r",
            message="",
            rule_version="1",
            decided_at=at(i),
        )
        for i in reversed(range(DECISIONS + 5))
    ]
    report = report_of(decisions=decisions)
    assert (len(report.decisions), report.decision_count) == (DECISIONS, DECISIONS + 5)
    assert report.decisions[-1].id == f"d{DECISIONS + 4}"


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_makes_a_headline_and_a_sentence(reason: Reason) -> None:
    outcome = report_of(ended_job(phase=Phase.FAILED, explanation=Explanation(reason, ""))).outcome
    assert outcome.headline == HEADLINES.get(reason, outcome.headline)
    assert outcome.message.endswith(".")
    assert "_" not in outcome.headline


def test_the_problems_of_a_refused_request_are_told_one_by_one() -> None:
    problems = [{"field": "image", "code": "unknown", "message": "no such image.", "fix": "Choose one."}]
    explanation = Explanation(Reason.CHECK_REFUSED, "Refused.", {"problems": problems, "count": 1})
    outcome = report_of(ended_job(phase=Phase.FAILED, explanation=explanation)).outcome
    assert outcome.problems == (problems[0],)
    assert outcome.numbers == {"count": 1}


def test_a_figure_of_the_caller_replaces_one_of_the_same_name_and_is_a_number_or_nothing() -> None:
    def measured(value: float) -> Figure:
        return Figure(value=value, unit="ratio", source="NVML", method=Method.MEASURED, observed_at=at(9))

    report = report_of(figures={"gpu_utilisation_mean": measured(0.93), "broken": measured(math.nan)})
    assert report.figures["gpu_utilisation_mean"].value == 0.93
    assert (report.figures["broken"].value, report.figures["broken"].reason) == (None, "the source said nan")


# --- payload --------------------------------------------------------------------------------------------------------


def rich_report() -> Report:
    lease = make_ended_lease(gpus=2, granted_at=at(10), exec_at=at(11), exit_at=at(20), ended_s=21)
    numbers = {"nested": {"deep": (1, 2.5, None, math.nan)}, "flag": True}
    decision = Decision(
        id="d1",
        kind="admit",
        subject=JOB,
        verdict="grant",
        reason="granted",
        message="",
        rule_version="1",
        decided_at=at(9),
        numbers=numbers,
    )
    return report_of(
        ended_job(pins=PINS, run=("train_model", "r1")),
        leases=[lease],
        spans=FETCHING,
        points=[point(i, value) for i, value in enumerate([1.0, math.nan, 0.5])],
        decisions=[decision],
        pool=make_pool(),
        log_tail="done \ud800\n",
    )


def test_a_report_survives_json() -> None:
    report = rich_report()
    text = json.dumps(report.to_payload(), allow_nan=False)
    assert Report.from_payload(json.loads(text)) == report
    assert Report.from_payload(json.loads(text)).to_payload() == report.to_payload()


def test_the_same_rows_give_the_same_report() -> None:
    assert rich_report() == rich_report()


def test_the_schema_of_the_payload_is_what_programs_were_promised() -> None:
    payload = rich_report().to_payload()
    assert payload["schema"] == SCHEMA == 1
    assert set(payload) == {
        "schema", "generated_at", "job", "outcome", "figures", "wasted", "band", "shares", "stages", "leases", "metrics",
        "system", "model", "lineage", "reproduction", "decisions", "decision_count", "log_tail",
    }  # fmt: skip
    figure = payload["figures"]["gpu_seconds_held"]  # type: ignore[index, call-overload]
    assert set(figure) == {"value", "unit", "source", "method", "observed_at", "reason"}
    assert {f"{activity}_seconds" for activity in Activity} <= set(payload["figures"])  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "payload",
    [{}, {"schema": 2}, {"schema": 1}, {"schema": 1, "job": None}, {**rich_report().to_payload(), "stages": 3}],
    ids=["empty", "another schema", "nothing but the schema", "no job", "a field of another type"],
)
def test_what_is_not_a_report_is_refused(payload: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="schema"):
        Report.from_payload(payload)
