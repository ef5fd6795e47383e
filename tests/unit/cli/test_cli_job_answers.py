"""``fermion jobs``, ``job``, ``stop``, ``restart`` and ``explain``: what they answer, and their exit codes."""

from __future__ import annotations

from datetime import datetime

import pytest
from installations import Installation

from builders import NOW, at, make_job, make_lease, make_spec
from fermion.adapters.memory.runs import MemoryRuns
from fermion.domain.jobs import Phase, Pins, Progress
from fermion.domain.reasons import Explanation, Reason
from fermion.domain.records import MetricPoint, StageSpan

WAITING, RUNNING, COMPLETED, FAILED = (f"job-20260302-00{number}" for number in (1, 2, 3, 4))
PINS = Pins(image_digest="sha256:" + "a" * 64, commit="c" * 40, datasets={"digits": "sha256:" + "d" * 64})
PROBLEM = {"field": "gpus", "code": "out_of_range", "message": "0 is out of range.", "fix": "Ask for 1 to 8."}


@pytest.fixture
def stocked(installed: Installation) -> Installation:
    """One job of each status; the running one holds all eight GPUs of the pool."""
    running = make_job(
        RUNNING,
        phase=Phase.RUNNING,
        spec=make_spec(gpus_per_node=8),
        explanation=Explanation(Reason.TRAINING, "The training process is alive."),
        progress=Progress(percent=40, epoch=4, epochs=10, at=at(-1)),
        started_at=at(-40),
        run=("train_model", RUNNING),
        pins=PINS,
    )
    completed = make_job(
        COMPLETED,
        phase=Phase.COMPLETED,
        explanation=Explanation(Reason.MODEL_PUBLISHED, "Published digits/1.", {"path": "digits/1"}),
        model_version=1,
        pins=PINS,
        ended_at=at(-10),
    )
    failed = make_job(
        FAILED,
        phase=Phase.FAILED,
        explanation=Explanation(Reason.CHECK_REFUSED, "The request has 1 problem.", {"problems": [PROBLEM]}),
        ended_at=at(-5),
    )
    installed.put(
        make_job(WAITING, pins=PINS), running, completed, failed, leases=[make_lease(gpus=8, holder_id=RUNNING)]
    )
    with installed.rows() as tx:
        tx.records.put_span(
            StageSpan(
                job_id=RUNNING,
                attempt=1,
                stage="pull_image",
                started_at=at(-50),
                ended_at=at(-48),
                outcome="succeeded",
            )
        )
        tx.records.add_points(
            [
                MetricPoint(
                    job_id=RUNNING, attempt=1, number=1, kind="training", name="loss", value=0.25, at=NOW, epoch=4
                )
            ]
        )
    return installed


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_jobs_are_listed_with_their_status(stocked: Installation) -> None:
    answer = stocked.called("jobs", "--json")
    assert answer.code == 0
    assert {job["id"]: job["status"] for job in answer.document} == {
        WAITING: "pending",
        RUNNING: "running",
        COMPLETED: "completed",
        FAILED: "failed",
    }
    told = stocked.called("jobs", columns=160).out
    assert all(job_id in told for job_id in (WAITING, RUNNING, COMPLETED, FAILED))
    assert "pending (waiting)" in told


@pytest.mark.parametrize(
    ("status", "expected"), [("pending", WAITING), ("running", RUNNING), ("completed", COMPLETED), ("failed", FAILED)]
)
def test_jobs_are_filtered_by_status(stocked: Installation, status: str, expected: str) -> None:
    assert [job["id"] for job in stocked.called("jobs", "--status", status, "--json").document] == [expected]


def test_only_so_many_jobs_as_asked_for_are_listed(stocked: Installation) -> None:
    assert len(stocked.called("jobs", "--limit", "2", "--json").document) == 2


def test_a_status_that_there_is_not_is_refused_with_those_that_there_are(stocked: Installation) -> None:
    answer = stocked.called("jobs", "--status", "paused", columns=200)
    assert (answer.code, answer.out) == (2, "")
    assert "completed" in answer.err


# --- one job ----------------------------------------------------------------------------------------------------------


def test_a_job_answers_all_that_is_documented(stocked: Installation) -> None:
    answer = stocked.called("job", RUNNING, "--json")
    job = answer.document
    assert answer.code == 0
    assert (job["id"], job["status"], job["phase"], job["progress"]) == (RUNNING, "running", "running", 40)
    assert (job["epoch"], job["epochs"], job["gpus"]) == (4, 10, 8)
    assert (job["message"], job["numbers"]) == ("The training process is alive.", {})
    assert job["pins"] == {
        "image_digest": PINS.image_digest,
        "commit": PINS.commit,
        "datasets": {"digits": PINS.datasets["digits"]},
    }
    assert job["run"] == {"dag_id": "train_model", "run_id": RUNNING}
    assert datetime.fromisoformat(job["submitted_at"]) == at(-60)


def test_a_job_is_shown_with_its_stages_epochs_and_metrics(stocked: Installation) -> None:
    answer = stocked.called("job", RUNNING)
    assert answer.code == 0
    for expected in (RUNNING, "pull_image", "2.0 s", "40 %", "epoch 4/10", "loss 0.2500", "The training process"):
        assert expected in answer.out


def test_a_refused_job_has_its_problems(stocked: Installation) -> None:
    job = stocked.called("job", FAILED, "--json").document
    assert (job["reason"], job["numbers"]) == ("check_refused", {"problems": [PROBLEM]})


def test_a_completed_job_names_its_model(stocked: Installation) -> None:
    job = stocked.called("job", COMPLETED, "--json").document
    assert (job["output_model_path"], job["numbers"]["path"]) == ("digits/1", "digits/1")


# --- stop -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job_id", [WAITING, RUNNING])
def test_the_wish_to_stop_is_stored(stocked: Installation, job_id: str) -> None:
    answer = stocked.called("stop", job_id)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith(f"{job_id} was asked to end")
    assert stocked.job(job_id).stop_requested_at is not None


def test_stop_answers_the_job_as_json(stocked: Installation) -> None:
    answer = stocked.called("stop", RUNNING, "--json")
    assert (answer.code, answer.document["id"], answer.document["status"]) == (0, RUNNING, "running")


def test_an_ended_job_stays_as_it_is(stocked: Installation) -> None:
    answer = stocked.called("stop", COMPLETED)
    assert (answer.code, answer.out.strip()) == (0, f"{COMPLETED} has ended already: Published digits/1.")
    assert stocked.called("stop", COMPLETED, "--json").document["status"] == "completed"
    assert stocked.job(COMPLETED).stop_requested_at is None


# --- restart ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> MemoryRuns:
    """The workflow engine that the command finds."""
    runs = MemoryRuns()
    monkeypatch.setattr("fermion.wiring.open_runs", lambda settings: runs)
    return runs


def end_a_job(installed: Installation) -> str:
    """An ended job that can be started again: its repository and its image are there. Its commit."""
    url, commit = installed.repository()
    pins = Pins(image_digest=PINS.image_digest, commit=commit)
    ended = make_job(
        FAILED,
        spec=make_spec(image="plain:1", repository=url, memory_mib=64),
        phase=Phase.FAILED,
        explanation=Explanation(Reason.USER_CODE, "The training code exited with code 1; its log says why."),
        pins=pins,
        ended_at=NOW,
    )
    installed.put(ended)
    return commit


@pytest.mark.parametrize(("words", "checkpoint"), [((), None), (("--resume",), FAILED)])
def test_a_restart_is_a_new_job_with_the_same_commit(
    installed: Installation, engine: MemoryRuns, words: tuple[str, ...], checkpoint: str | None
) -> None:
    commit = end_a_job(installed)
    checkpoints = installed.root / "run" / "work" / "jobs" / FAILED / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "checkpoint.json").write_text("{}")

    answer = installed.called("restart", FAILED, *words, "--json")

    made = answer.document
    assert (answer.code, made["restart_of"], made["status"]) == (0, FAILED, "pending"), answer
    assert (made["pins"]["commit"], made["spec"]["ref"]) == (commit, commit)
    assert installed.job(made["id"]).spec.checkpoint == checkpoint
    assert engine.state("train_model", made["id"]).state != "absent", "its run was started"


def test_a_restart_says_how_to_watch_it(installed: Installation, engine: MemoryRuns) -> None:
    end_a_job(installed)
    answer = installed.called("restart", FAILED, columns=200)
    (made,) = (job for job in installed.called("jobs", "--json").document if job["restart_of"] == FAILED)
    assert answer.code == 0
    assert f"{made['id']} is submitted." in answer.out
    assert f"fermion logs -f {made['id']}" in answer.out


@pytest.mark.parametrize("job_id", [WAITING, RUNNING])
def test_a_job_that_has_not_ended_cannot_be_restarted(stocked: Installation, job_id: str) -> None:
    answer = stocked.called("restart", job_id, "--json")
    assert (answer.code, answer.document["error"]) == (5, "conflict")
    assert f"fermion stop {job_id}" in answer.document["message"]
    answer = stocked.called("restart", job_id)
    assert (answer.code, answer.out) == (5, "")
    assert f"fermion stop {job_id}" in answer.err


def test_a_restart_of_what_can_never_run_is_refused_with_all_problems(
    stocked: Installation, engine: MemoryRuns
) -> None:
    answer = stocked.called("restart", COMPLETED, "--json")
    assert (answer.code, answer.document["error"]) == (2, "request_refused")
    assert {problem["field"] for problem in answer.document["problems"]} == {"image", "repository"}


def test_a_restart_while_the_platform_is_down_says_so_and_leaves_no_job(installed: Installation) -> None:
    end_a_job(installed)
    for name, text in {"secrets/passwords.json": '{"admin": "x"}', "airflow/url": "http://127.0.0.1:1"}.items():
        file = installed.root / "run" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    answer = installed.called("restart", FAILED, "--json")
    assert (answer.code, answer.document["error"]) == (3, "outside_unavailable"), answer
    assert [job["id"] for job in installed.called("jobs", "--json").document] == [FAILED]


# --- explain ----------------------------------------------------------------------------------------------------------


def test_a_waiting_job_is_explained_with_the_numbers_of_now(stocked: Installation) -> None:
    answer = stocked.called("explain", WAITING, "--json")
    told = answer.document
    assert (answer.code, told["job"], told["status"], told["phase"]) == (0, WAITING, "pending", "waiting")
    assert told["reason"] == "waiting_for_quota"
    assert told["numbers"]["position"] == 1
    assert set(told["expected_start"]) >= {"p50", "p90", "reason"}


def test_an_explanation_is_told_in_words(stocked: Installation) -> None:
    told = stocked.called("explain", WAITING, columns=300)
    message = stocked.called("explain", WAITING, "--json").document["message"]
    assert (told.code, told.err) == (0, "")
    assert message in told.out
    assert "Expected start: " in told.out


@pytest.mark.parametrize("job_id", [RUNNING, COMPLETED, FAILED])
def test_a_job_that_is_not_in_line_is_explained_by_what_was_stored(stocked: Installation, job_id: str) -> None:
    answer = stocked.called("explain", job_id, "--json")
    assert (answer.code, answer.document["expected_start"]) == (0, None)
    assert answer.document["message"] == stocked.job(job_id).explanation.message
    assert "Expected start" not in stocked.called("explain", job_id).out
