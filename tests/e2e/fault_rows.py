"""The rows of the fault table: each breaks one thing while a canary is tried or a service serves, under requests of clients.

A row answers what became of its deployment and what the clients saw. What must be true afterwards of every row (the service
serves, nothing is held or runs that should not) is checked by ``fault_table.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import create_engine, text

from e2e.live import wait_until
from e2e.outages import hidden, router_socket
from e2e.served import DAMAGED, USUAL_MS, Answers, Served, has_ended, is_nonsense
from fermion.cli.load import Load, Seen
from fermion.domain.rollout.looks import Measured, Outcome
from fermion.domain.rollout.rollouts import Phase
from fermion.domain.serving.services import HOLDING
from fermion.errors import RequestRefused
from fermion.usecases.serving.queries import Deployment
from fermion.usecases.stop import request_stop

PHASES = (Phase.WAITING, Phase.SHIFTING, Phase.WARMING, Phase.BAKING, Phase.PROMOTING)
"""Those that a good rollout without approvals comes through. Shifting and promoting last some milliseconds: whoever asks fifty
times a second sees them mostly, not always."""


@dataclass(frozen=True)
class Shown:
    """What a row showed. ``seconds_to_safe``: from the first moment at which clients could be hurt to the last; None where none
    was."""

    found: Deployment
    seen: Seen
    seconds_to_safe: float | None = None


@dataclass(frozen=True)
class Row:
    """One fault. ``status`` and ``reasons`` are right for the rollout; ``run_state`` for its run.

    ``unserved_s``: for so long requests may go unserved, 0 where none may; ``why_unserved`` is the reason.
    """

    name: str
    status: str
    reasons: tuple[str, ...]
    run: Callable[[Served], Shown]
    run_state: str = "failed"
    smoke: bool = False
    unserved_s: float = 0.0
    why_unserved: str = ""


ROWS: list[Row] = []


def row(
    status: str,
    *reasons: str,
    run_state: str = "failed",
    smoke: bool = False,
    unserved_s: float = 0.0,
    why_unserved: str = "",
) -> Callable[[Callable[[Served], Shown]], Callable[[Served], Shown]]:
    """Enter the function into the table under its own name."""

    def enter(function: Callable[[Served], Shown]) -> Callable[[Served], Shown]:
        made = Row(function.__name__, status, reasons, function, run_state, smoke, unserved_s, why_unserved)
        ROWS.append(made)
        return function

    return enter


# --- a canary that is bad ----------------------------------------------------------------------------------------------


def _bad_canary(
    served: Served, load: Load, plan: dict[str, object] | None = None, *, within_s: float = 120, **faults: object
) -> Shown:
    """Release a version with these faults while the clients ask, and wait for what becomes of it; nobody touches anything."""
    with load:
        found = served.deploy(served.publish(**faults), plan=plan)
        found = served.wait_for_end(found, within_s=within_s)
    return Shown(found, load.seen, load.seen.bad_for_s)


@row("aborted", "canary_dead", smoke=True)
def canary_crashes_at_start(served: Served) -> Shown:
    """The new version's server exits as soon as it is started: it never gets a request."""
    served.stand()
    shown = _bad_canary(served, served.clients(), start="crash")
    assert not shown.seen.bad, f"{shown.seen.bad} bad answers"
    return shown


@row("rolled_back", "failed", smoke=True)
def canary_answers_500(served: Served) -> Shown:
    """The new version answers 3 of 100 requests with 500. No guard is crossed by so few: the test has to be sure of it."""
    served.stand()
    plan: dict[str, object] = {"bake_min": "60s", "bake_max": "90s"}
    return _bad_canary(served, served.clients(), plan, error_share=0.03)


@row("aborted", "ready_timeout", "canary_dead")
def canary_never_ready(served: Served) -> Shown:
    """The new version's server starts and never answers its probes: it never gets a request."""
    served.stand()
    shown = _bad_canary(served, served.clients(), {"ready_timeout": "15s"}, start="hang")
    assert not shown.seen.bad, f"{shown.seen.bad} bad answers"
    return shown


@row("rolled_back", "failed")
def canary_is_slow(served: Served) -> Shown:
    """The new version takes twice as long for each answer: far from any guard, and surely worse."""
    served.stand()
    latency = {"name": "latency_p95", "tolerance": 0.5, "guard": "5s"}
    plan: dict[str, object] = {"bake_min": "60s", "bake_max": "90s", "metrics": ["error_rate", latency]}
    slow_s = 1.8 * USUAL_MS / 1000
    load = served.clients(is_bad=lambda answer: answer.elapsed.total_seconds() > slow_s)
    shown = _bad_canary(served, load, plan, latency_ms=2 * USUAL_MS)
    assert shown.found.rollout is not None
    assert "latency_p95" in shown.found.rollout.explanation.message, shown.found.rollout.explanation.message
    return replace(shown, seconds_to_safe=served.exposed_s(shown.found))


@row(
    "rolled_back",
    "failed",
    "canary_dead",
    "canary_unready",
    unserved_s=5.0,
    why_unserved="the canary's only replica is killed with requests in it, and gets its share until that is seen",
)
def canary_leaks_memory(served: Served) -> Shown:
    """The new version keeps memory with each request until it is killed for it."""
    served.stand()
    plan: dict[str, object] = {"bake_min": "60s", "bake_max": "90s", "unready_limit": "1s"}
    return _bad_canary(served, served.clients(), plan, leak_mib=16)


@row("aborted", "failed")
def canary_answers_nonsense(served: Served) -> Shown:
    """The new version's confidence is no number: the plan's check of outputs sees that before anybody is sent there."""
    served.stand()
    grey = {"name": "pixels", "datatype": "FP64", "shape": [1, 64], "data": 0.5}
    confidence = {"name": "confidence", "dtype": "float64", "shape": [-1], "range": [0, 1]}
    checks = [{"name": "grey", "inputs": [grey], "outputs": [confidence]}]
    load = served.clients(is_bad=is_nonsense)
    shown = _bad_canary(served, load, {"bake_min": "60s", "bake_max": "90s", "output_checks": checks}, nan_share=1.0)
    assert shown.found.rollout is not None
    assert "confidence" in shown.found.rollout.explanation.message, shown.found.rollout.explanation.message
    assert not shown.seen.bad_at, f"{len(shown.seen.bad_at)} bad answers"
    return shown


# --- a canary for one group of clients alone -----------------------------------------------------------------------------

PER_GROUP = 10.0
SPLIT_WITHIN = 15.0
"""Percent points: a look of a second counts some thirty requests, and those on their way at its ends in one sum or the other."""
CHANGING = timedelta(seconds=1)
"""For so long after the router was told may requests that are on their way still come from where it sent them before."""


def _bad_for_a_group(served: Served, way: dict[str, object], headers: Callable[[str], dict[str, str]]) -> Shown:
    """Release a version that fails half of its requests to group ``beta``, while that group, group ``alpha`` and clients without any
    ask. ``headers`` are what a client of a group brings. Nobody touches anything."""
    served.stand()
    plan: dict[str, object] = {
        "steps": [{"split": {**way, "value": "beta"}, "approval": True}, 100],
        "warm_up": "6s",  # the split stands, and nothing is concluded yet
        "bake_max": "60s",
        "metrics": [{"name": "error_rate", "guard": "10%"}],
    }
    groups = {"beta": headers("beta"), "alpha": headers("alpha"), "none": {}}
    answers = {name: Answers() for name in groups}
    with ExitStack() as asking:
        loads = [
            asking.enter_context(served.clients(is_bad=answers[name].judge, headers=brought, per_second=PER_GROUP))
            for name, brought in groups.items()
        ]
        found = served.wait_for_end(served.deploy(served.publish(error_share=0.5, nan_share=1.0), plan=plan))
        ended_at = served.since(found, Phase.ROLLED_BACK) + CHANGING
        wait_until(lambda: len(answers["beta"].between(ended_at)) >= 10, within_s=20, what="answers after the rollback")
    _check_group(served, found, answers, ended_at)
    return Shown(found, _together([load.seen for load in loads]), served.exposed_s(found))


def _check_group(served: Served, found: Deployment, answers: dict[str, Answers], ended_at: datetime) -> None:
    """Group ``beta`` got the new version as long as the split stood, nobody else ever, and the looks say what part that was."""
    split_at, judged_at = served.since(found, Phase.WARMING) + CHANGING, served.since(found, Phase.BAKING)
    during, afterwards = answers["beta"].between(split_at, judged_at), answers["beta"].between(ended_at)
    assert len(during) >= 10, f"{len(during)} answers while the split stood"
    assert all(during), f"{during.count(False)} of {len(during)} of the group were not the canary's"
    assert not any(afterwards), f"{afterwards.count(True)} of {len(afterwards)} after the rollback were the canary's"
    for name in ("alpha", "none"):
        hit = sum(is_new for _, is_new in answers[name].given)
        assert not hit, f"{hit} of {len(answers[name].given)} answers to {name} were the canary's"
    _check_measured([look.measured for look in served.looks(found) if look.measured.split is not None], answers)


def _check_measured(looks: list[Measured], answers: dict[str, Answers]) -> None:
    """The looks counted the group's part of the requests as the clients did."""
    counts = [look.readings[0] for look in looks if look.readings[0].error is None]
    canary, stable = sum(sum(each.canary) for each in counts), sum(sum(each.stable) for each in counts)
    assert canary, "the looks counted no request of the canary"
    sent = {name: len(each.between(looks[0].started_at, looks[-1].ended_at)) for name, each in answers.items()}
    counted, really = 100 * canary / (canary + stable), 100 * sent["beta"] / sum(sent.values())
    assert abs(counted - really) <= SPLIT_WITHIN, f"the looks counted {counted:.0f} %, the clients {really:.0f} %"


def _together(groups: list[Seen]) -> Seen:
    """What several groups of clients saw, as one."""
    whole = Seen()
    for each in groups:
        whole.statuses.update(each.statuses)
        whole.failed.update(each.failed)
        whole.bad_at = sorted([*whole.bad_at, *each.bad_at])
        whole.unserved_at = sorted([*whole.unserved_at, *each.unserved_at])
    return whole


@row("rolled_back", "failed")
def group_by_header_gets_errors(served: Served) -> Shown:
    """The new version is bad, and only who brings a header gets it: it goes back, and nobody else saw an error."""
    return _bad_for_a_group(served, {"header": "x-group"}, lambda group: {"X-Group": group})


@row("rolled_back", "failed")
def group_by_cookie_gets_errors(served: Served) -> Shown:
    """The same for those who bring a cookie, among others."""
    return _bad_for_a_group(served, {"cookie": "group"}, lambda group: {"Cookie": f"seen=1; group={group}; lang=en"})


# --- what serves dies ---------------------------------------------------------------------------------------------------


@row(
    "promoted",
    "serves_all",
    run_state="success",
    smoke=True,
    unserved_s=6.0,
    why_unserved="there is one router: until it is started again nobody carries a request",
)
def router_killed(served: Served) -> Shown:
    """``kill -9`` of Envoy during the canary: it comes back with the table that it had, and the rollout goes on."""
    served.stand()
    router = served.live.program("router")
    with served.clients() as load:
        found = served.deploy(served.publish(), plan={"bake_min": "8s"})
        served.wait_for(found, Phase.BAKING)
        router.kill()
        killed_at = time.monotonic()
        found = served.wait_for_end(found)
    return Shown(found, load.seen, max([0.0, *(at - killed_at for at in load.seen.unserved_at)]))


@row("promoted", "serves_all", run_state="success", smoke=True)
def stable_replica_killed(served: Served) -> Shown:
    """``kill -9`` of one of two servers of the revision that serves, during the canary: the other answers, it comes back."""
    state = served.stand(2)
    stable = next(each.id for each in state.revisions if each.number == state.service.stable)
    with served.clients() as load:
        found = served.deploy(served.publish(), plan={"bake_min": "8s"})
        found = served.wait_for(found, Phase.BAKING)
        victim = served.ready_replicas(stable)[0]
        served.server(victim).kill()
        killed_at = time.monotonic()
        wait_until(lambda: victim not in served.ready_replicas(stable), within_s=10, what=f"{victim} gone")
        wait_until(lambda: victim in served.ready_replicas(stable), within_s=30, what=f"{victim} back")
        back_s = time.monotonic() - killed_at
        found = served.wait_for_end(found)
    return Shown(found, load.seen, back_s)


@row("promoted", "serves_all", run_state="success")
def metrics_source_gone(served: Served) -> Shown:
    """The router's counters cannot be read for 20 s: nothing is concluded from that, and the rollout goes on afterwards."""
    served.stand()
    socket = router_socket(served.live)
    with served.clients() as load:
        found = served.deploy(served.publish(), plan={"bake_min": "8s", "bake_max": "60s"})
        found = served.wait_for(found, Phase.BAKING)
        wait_until(lambda: served.looks(found), within_s=20, what="a first look")
        with hidden(socket):
            time.sleep(20)
            during = served.again(found)
            looks = served.looks(during)
        assert during.rollout is not None
        assert not during.rollout.is_final, f"it is {during.rollout.phase}: {during.rollout.explanation.message}"
        assert any(look.outcome is Outcome.ERROR for look in looks), [look.outcome for look in looks]
        assert not any(look.failed_look for look in looks), "a look failed"
        found = served.wait_for_end(found)
    return Shown(found, load.seen)


@row("promoted", "serves_all", run_state="success")
def no_gpus_at_promotion(served: Served) -> Shown:
    """A training takes the last GPU during the canary: the promotion replaces replica by replica."""
    served.stand(2)
    with served.clients() as load:
        found = served.deploy(served.publish(), plan={"bake_min": "12s"})
        found = served.wait_for(found, Phase.BAKING)
        held = sum(row.phase in HOLDING for row in served.rows())
        job = served.live.submit(
            hyperparameters={"seconds": 300, "epochs": 600}, gpus=served.live.slots - held, priority=1
        )
        served.live.wait_for(job.id, "running")
        assert served.again(found).rollout is not None
        found = served.wait_for_end(found)
    request_stop(served.live.ctx, job.id, actor="tester")
    ended = served.live.wait_for_end(job.id)
    assert ended.explanation.reason == "stopped", f"the training did not keep its GPU: {ended.explanation.message}"
    return Shown(found, load.seen)


@row("retired", "staging_failed")
def model_changed_on_disk(served: Served) -> Shown:
    """A file of the model is changed after its deployment was accepted and before it is fetched: the checksum tells which,
    nothing of it runs, and the same request is refused from then on."""
    served.stand()
    version = served.publish(
        latency_ms=USUAL_MS + 0.001 * (time.time() % 1000)
    )  # no other version has the same content
    with served.clients() as load:
        found = served.deploy(version)
        served.damage(version)
        found = served.wait_for_end(found)
        time.sleep(2)
    assert DAMAGED in found.revision.explanation.message, found.revision.explanation.message
    with pytest.raises(RequestRefused, match="is damaged"):
        served.deploy(version)
    return Shown(found, load.seen)


# --- a person at Airflow's pages ---------------------------------------------------------------------------------------


@row("rolled_back", "aborted_by_hand", smoke=True)
def run_marked_failed(served: Served) -> Shown:
    """Somebody marks the run failed during the canary: its requests go back to stable, and nothing of it is left."""
    served.stand()
    with served.clients() as load:
        found = served.deploy(served.publish(), plan={"bake_min": "60s", "bake_max": "90s"})
        found = served.wait_for(found, Phase.BAKING)
        dag_id, run_id = found.revision.run or ("", "")
        served.live.call("PATCH", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}", {"state": "failed"}).raise_for_status()
        found = served.wait_for_end(found)
    return Shown(found, load.seen)


@row("promoted", "serves_all", run_state="success")
def run_cleared(served: Served) -> Shown:
    """Somebody clears the whole run during the canary: it finds its revision again, and the rollout goes on."""
    served.stand()
    with served.clients() as load:
        found = served.deploy(served.publish(), plan={"bake_min": "12s"})
        found = served.wait_for(found, Phase.BAKING)
        dag_id, run_id = found.revision.run or ("", "")
        body = {"dry_run": False, "only_failed": False}
        served.live.call("POST", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/clear", body).raise_for_status()
        found = served.wait_for_end(found, within_s=200)
    return Shown(found, load.seen)


@row("rolled_back", "aborted_by_hand", run_state="absent")
def dag_deleted(served: Served) -> Shown:
    """Somebody deletes the DAG by REST during the canary: its runs are gone, the sync lets go of what they carried."""
    served.stand()
    with served.clients() as load:
        found = served.deploy(served.publish(), plan={"bake_min": "150s", "bake_max": "200s"})
        found = served.wait_for(found, Phase.BAKING)
        served.wait_for_task(found, "canary", "deferred")
        served.live.call("DELETE", "/api/v2/dags/deploy_service").raise_for_status()
        found = served.wait_for_end(found, within_s=130)
    wait_until(
        lambda: served.live.call("GET", "/api/v2/dags/deploy_service").status_code == 200,
        within_s=120,
        what="the DAG parsed again",
    )
    return Shown(found, load.seen)


# --- Airflow's processes, and the database -----------------------------------------------------------------------------


KILLED_WITHIN_S = 900.0
"""Five deaths, after each of which the program starts anew: some seconds on an idle machine, two minutes on an overloaded one."""


def _killed_in_every_phase(served: Served, program: str) -> Shown:
    """``kill -9`` of a program once in each phase that the rollout comes through, each time after it has come back."""
    served.stand()
    left = {"staging", *(str(phase) for phase in PHASES)}
    with served.clients(most_s=KILLED_WITHIN_S + 100) as load:
        victim = served.live.program(program)
        found = served.deploy(served.publish(), plan={"bake_min": "6s", "bake_max": "200s", "shift_timeout": "200s"})
        deadline = time.monotonic() + KILLED_WITHIN_S
        while not has_ended(found) and time.monotonic() < deadline:
            found = served.again(found)
            phase = str(found.revision.phase if found.rollout is None else found.rollout.phase)
            if phase in left:
                left.discard(phase)
                victim.kill()
                victim = served.live.program(program, other_than=victim.pid)
            time.sleep(0.02)
        found = served.wait_for_end(found, within_s=10)
    missed = left & {"staging", "waiting", "baking"}
    assert not missed, f"{program} was not killed while it was {', '.join(sorted(missed))}"
    return Shown(found, load.seen)


@row("promoted", "serves_all", run_state="success")
def scheduler_killed(served: Served) -> Shown:
    """``kill -9`` of the scheduler, once in every phase."""
    return _killed_in_every_phase(served, "scheduler")


@row("promoted", "serves_all", run_state="success")
def triggerer_killed(served: Served) -> Shown:
    """``kill -9`` of the triggerer, once in every phase."""
    return _killed_in_every_phase(served, "triggerer")


@row("promoted", "serves_all", run_state="success")
def api_server_killed(served: Served) -> Shown:
    """``kill -9`` of the API server, once in every phase."""
    return _killed_in_every_phase(served, "api-server")


@row("promoted", "serves_all", run_state="success")
def database_locked(served: Served) -> Shown:
    """Somebody locks the platform's tables for longer than it has patience, as a repair by hand would: requests go on."""
    served.stand()
    with served.clients() as load:
        found = served.deploy(served.publish(), plan={"bake_min": "8s", "bake_max": "90s"})
        found = served.wait_for(found, Phase.BAKING)
        with create_engine(served.live.settings.database_url).begin() as somebody:
            for table in ("services", "revisions", "replicas", "rollouts", "leases"):
                somebody.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
            time.sleep(30)
        found = served.wait_for_end(found)
    return Shown(found, load.seen)
