"""``deploy_service`` on a live platform: approvals, asked by Airflow and answered over REST as its pages do; what follows a
model; what failed before. One installation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from e2e.live import Live, wait_until
from fermion.cli.load import Load
from fermion.cli.output import Exit
from fermion.domain.artifacts import ModelDraft
from fermion.domain.rollout.rollouts import Rollout, WishKind
from fermion.domain.serving.following import is_follow_run
from fermion.domain.serving.services import Revision
from fermion.usecases.serving.approvals import answer_open, answers
from fermion.usecases.serving.queries import service_state
from fermion.usecases.serving.submit import RETRIED, launch
from fermion.usecases.serving.wishes import rollout_of, wish

pytestmark = [pytest.mark.live, pytest.mark.timeout(400)]

PLAN: Mapping[str, object] = {
    "steps": [{"weight": 50, "approval": True}, 100],
    "interval": "1s",
    "warm_up": "1s",
    "bake_min": "2s",
    "bake_max": "60s",
    "min_requests": 10,
    "unready_limit": "2s",
    "metrics": [{"name": "error_rate", "guard": "10%"}],
}
TWICE = [{"weight": 30, "approval": True}, {"weight": 60, "approval": True}, 100]
SOON_S = 60


SERVER = """
import http.server, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self, status=200):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET(int(sys.argv[1]) if len(sys.argv) > 1 else 200)

    def log_message(self, *words):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """With service ``naps``, whose first revision serves what the sleeper trained."""
    folder = tmp_path_factory.mktemp("deploy-service")
    installation = Live(folder, slots=4)
    try:
        installation.up()
        prepare(installation, folder / "server")
        yield installation
    finally:
        installation.down()


def prepare(live: Live, folder: Path) -> None:
    """A model, a server's code, and a first revision that serves."""
    folder.mkdir()
    (folder / "server.py").write_text(SERVER, encoding="utf-8")
    live.make_repository("server", folder)
    train(live)
    deploy(live)
    wait_until(lambda: service_state(live.ctx, "naps").status == "ready", what="the first revision")


def train(live: Live) -> None:
    job = live.wait_for_end(live.submit(hyperparameters={"seconds": 1, "epochs": 2}).id)
    assert job.status == "completed", job.explanation.message


def request(live: Live, **changes: object) -> dict[str, object]:
    return {
        "name": "naps",
        "model": "sleeper",
        "engine": "command",
        "command": "python server.py",
        "repository": f"file://{live.settings.examples_dir}/server.git",
        "image": "python:3",
        "pool": "local/declared",
        "memory_mib": 256,
        "keep_warm": "0s",
        "plan": PLAN,
        **changes,
    }


def deploy(live: Live, *, follow: bool = False, **plan: object) -> Revision:
    # One test's fault is nothing to the next one, which deploys the same thing.
    spec = request(live, plan={**PLAN, **plan}, follow=follow, retry_failed=True)
    return launch(live.ctx, live.runs, spec, actor="tester")


def path_of(made: Revision) -> str:
    return f"/api/v2/dags/deploy_service/dagRuns/{made.id}"


def state_of(live: Live, made: Revision, task_id: str = "approve[0]") -> str:
    return live.runs.state("deploy_service", made.id).tasks.get(task_id, "")


def rollout(live: Live, made: Revision) -> Rollout:
    return rollout_of(live.ctx, f"ro-{made.id}")


def wait_for_question(live: Live, made: Revision, weight: int) -> str:
    """The text of the question about that step where the pages list it, once a person can answer it; and the task's note."""

    def look() -> str | None:
        found = live.call("GET", f"{path_of(made)}/hitlDetails?response_received=false&state=awaiting_input").json()
        for each in found.get("hitl_details", []):
            assert list(each["params"]) == ["note"]
            if f"has passed {weight} %" in each["body"]:
                number = each["task_instance"]["map_index"]
                note = live.call("GET", f"{path_of(made)}/taskInstances/approve/{number}").json().get("note") or ""
                return f"{each['body']}\n{note}"
        return None

    return str(wait_until(look, within_s=SOON_S, what=f"the question at {weight} %"))


def say(live: Live, made: Revision, word: str, note: str, *, number: int = 0) -> httpx.Response:
    body = {"chosen_options": [word], "params_input": {"note": note}}
    return live.call("PATCH", f"{path_of(made)}/taskInstances/approve/{number}/hitlDetails", body)


def end_of(live: Live, made: Revision) -> str:
    """The state in which the run ended."""
    return str(
        wait_until(
            lambda: (state := live.runs.state("deploy_service", made.id).state) in {"success", "failed"} and state,
            within_s=SOON_S,
            what=f"the end of {made.id}",
        )
    )


def environ_of(process: psutil.Process) -> Mapping[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


@contextmanager
def clients(live: Live) -> Iterator[None]:
    """Requests all the while."""
    endpoint = service_state(live.ctx, "naps").endpoint
    with Load(f"{endpoint}/infer", {}, per_second=40):
        yield


def test_each_step_that_asks_is_asked_for_also_while_the_triggerer_is_killed(live: Live) -> None:
    with clients(live):
        made = deploy(live, steps=TWICE)
        body = wait_for_question(live, made, 30)
        assert "60 % next" in body
        live.kill("triggerer")
        assert say(live, made, "Approve", "first").status_code == 200
        assert "100 % next" in wait_for_question(live, made, 60)
        answer_open(live.ctx, live.runs, made.id.rpartition("-")[0], approved=True, by="tester", note="second")
        assert end_of(live, made) == "success"
    kept = answers(live.ctx, rollout(live, made))
    assert [(each.verdict, each.inputs["by"], each.inputs["note"]) for each in kept] == [
        ("approved", "admin", "first"),
        ("approved", "tester", "second"),
    ]
    assert all(each.numbers["look"] for each in kept)
    assert (rollout(live, made).phase, state_of(live, made)) == ("promoted", "success")


def test_an_approval_of_somebody_else_is_refused_and_asked_for_again_with_the_reason(live: Live) -> None:
    with clients(live):
        made = deploy(live, approvers=["cara"])
        assert "Who may approve**: cara" in wait_for_question(live, made, 50)
        assert say(live, made, "Approve", "I am the administrator").status_code == 200
        refused = "An approval by admin was refused: cara may approve this rollout."
        wait_until(lambda: refused in wait_for_question(live, made, 50), within_s=SOON_S, what="the question again")
        answer_open(live.ctx, live.runs, f"ro-{made.id}", approved=True, by="cara")
        assert end_of(live, made) == "success"
    assert [each.verdict for each in answers(live.ctx, rollout(live, made))] == ["refused", "approved"]
    assert state_of(live, made) == "success"


def test_a_canary_that_fails_while_it_waits_goes_back_and_closes_the_question(live: Live) -> None:
    with clients(live):
        made = deploy(live)
        wait_for_question(live, made, 50)
        stopped = [each for each in psutil.process_iter() if environ_of(each).get("FERMION_REPLICA") == f"{made.id}-1"]
        assert stopped
        for server in stopped:
            server.suspend()
        wait_until(lambda: rollout(live, made).phase == "rolled_back", within_s=SOON_S, what="the rollback")
        for server in stopped:
            server.resume()
        assert end_of(live, made) == "failed"
    assert rollout(live, made).phase == "rolled_back"
    assert (state_of(live, made), state_of(live, made, "watch_approval")) == ("skipped", "failed")
    assert say(live, made, "Approve", "too late").status_code == 200
    assert service_state(live.ctx, "naps").service.stable != made.number


def test_a_question_that_nobody_answers_in_time_does_what_the_plan_says(live: Live) -> None:
    with clients(live):
        made = deploy(live, approval_timeout="6s")
        wait_for_question(live, made, 50)
        wait_until(lambda: rollout(live, made).phase == "paused", within_s=SOON_S, what="the pause")
        wait_until(lambda: state_of(live, made) == "deferred", within_s=SOON_S, what="the end of the question")
        wish(live.ctx, f"ro-{made.id}", WishKind.RESUME, by="tester")
        wait_for_question(live, made, 50)
        wish(live.ctx, f"ro-{made.id}", WishKind.PROMOTE, by="tester")
        assert end_of(live, made) == "success"
    assert state_of(live, made) == "skipped"


def test_new_versions_are_released_by_themselves_each_once_and_in_order(live: Live) -> None:
    following = deploy(live, follow=True, steps=[100])
    newest = max(each.number for each in live.ctx.models.versions("sleeper"))
    wait_until(lambda: stable(live) == (following.number, f"sleeper/{newest}"), what="the revision that follows")
    jobs = [live.submit(hyperparameters={"seconds": 1, "epochs": 2}) for _ in range(2)]
    for job in jobs:
        live.wait_for_end(job.id)
    wait_until(lambda: stable(live) == (following.number + 2, f"sleeper/{newest + 2}"), what="the newest version")
    state = service_state(live.ctx, "naps")
    made = [each for each in state.revisions if each.run is not None and is_follow_run(each.run[1])]
    assert [each.model_path for each in made] == [f"sleeper/{newest + 1}", f"sleeper/{newest + 2}"]
    for each in made:
        assert each.run is not None
        run_id = each.run[1]
        ended = wait_until(
            lambda run_id=run_id: (
                (found := live.runs.state("deploy_service", run_id).state) in {"success", "failed"} and found
            ),
            what=run_id,
        )
        assert ended == "success"
    released = live.call("GET", "/api/v2/dags/release_model/dagRuns").json()["dag_runs"]
    assert sorted(each["partition_key"] for each in released) == [f"sleeper/{n}" for n in range(1, newest + 3)]


def test_what_failed_is_refused_at_every_door_until_a_person_wants_it_tried_again(live: Live, tmp_path: Path) -> None:
    spec = tmp_path / "bad.yaml"
    bad = request(live, command="python server.py 500", plan={**PLAN, "steps": [50, 100]}, follow=True)
    spec.write_text(json.dumps(bad), encoding="utf-8")  # JSON is YAML
    served = stable(live)
    with clients(live):
        first = tried(live, spec)
        refused = live.fermion("deploy", "--spec", str(spec), check=False, by="tester")
        assert refused.returncode == Exit.REFUSED, refused.stdout + refused.stderr
        for words in (f"failed as {first.id}", first.explanation.message, "--retry-failed"):
            assert words in " ".join(refused.stderr.split()), refused.stderr
        copy, run_id = release_a_copy(live)
        assert service_state(live.ctx, "naps").service.newest == first.number, "a refused request made a revision"
        again = tried(live, spec, "--retry-failed")
    assert again.number == first.number + 1
    with live.ctx.store.read() as tx:
        (followed,) = tx.records.decisions(subject=first.service_id, kind="follow")
        (retried,) = tx.records.decisions(subject=again.id, kind=RETRIED)
    assert (followed.verdict, followed.reason, followed.inputs["model_path"]) == ("refused", "failed_before", copy)
    assert (retried.verdict, retried.inputs["failed"]) == ("allowed", first.id)
    assert live.runs.state("release_model", run_id).state == "failed"
    assert stable(live) == served


def tried(live: Live, spec: Path, *words: str) -> Revision:
    """The revision that this deployment makes, once it was rolled back and its run has ended."""
    command = ("deploy", "--spec", str(spec), "--wait", "--timeout", "90", "--json")
    done = live.fermion(*command, *words, check=False, by="tester")
    assert done.returncode == Exit.FAILED, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["rollout"]["phase"] == "rolled_back", told
    made = next(each for each in service_state(live.ctx, "naps").revisions if each.id == told["revision"])
    assert end_of(live, made) == "failed"
    return made


def release_a_copy(live: Live) -> tuple[str, str]:
    """Publish the newest version's files once more and have ``release_model`` give them away: the version, and the run once it
    has ended."""
    newest = max(live.ctx.models.versions("sleeper"), key=lambda each: each.number)
    folder = live.folder / "copy"
    published = live.settings.models_dir / "sleeper" / str(newest.number)
    shutil.copytree(published, folder, ignore=shutil.ignore_patterns("manifest.json"))
    draft = ModelDraft(model="sleeper", metrics={}, lineage={}, created_at=live.ctx.clock.now())
    copy = live.ctx.models.publish(draft, folder, key="copy")
    assert (copy.number, copy.checksum) == (newest.number + 1, newest.checksum)
    run_id = "by-hand"
    body = {"logical_date": None, "dag_run_id": run_id}
    live.call("POST", "/api/v2/dags/release_model/dagRuns", body).raise_for_status()
    wait_until(
        lambda: live.runs.state("release_model", run_id).state in {"success", "failed"}, within_s=SOON_S, what=run_id
    )
    return copy.path, run_id


def stable(live: Live) -> tuple[int, str] | None:
    """Number and model of the revision that serves."""
    state = service_state(live.ctx, "naps")
    return next(
        ((each.number, each.model_path) for each in state.revisions if each.number == state.service.stable), None
    )
