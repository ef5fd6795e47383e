"""Commands about services: deploy, look, scale, steer a rollout, go back."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fermion.cli.jobs import read_spec
from fermion.cli.output import Exit, clock, console, errors, print_json, seconds, table
from fermion.cli.service_payloads import (
    approval_payload,
    engine_payload,
    look_payload,
    rollout_payload,
    service_payload,
    traffic_payload,
    why_of,
)
from fermion.cli.session import Session, session
from fermion.domain.problems import Problem
from fermion.domain.serving.routing import Spread, copies_of
from fermion.errors import RequestRefused

if TYPE_CHECKING:
    from fermion.domain.rollout.looks import Look
    from fermion.domain.rollout.rollouts import WishKind
    from fermion.usecases.serving.queries import Deployment

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]
Name = Annotated[str, typer.Argument(help="A service's name or id.", metavar="SERVICE")]
Rollout = Annotated[str, typer.Argument(help="A rollout's id, or its service's name.", metavar="ROLLOUT")]
Note = Annotated[str, typer.Option(help="Why; it is kept with your name.")]

TICK_S = 0.3

rollouts = typer.Typer(name="rollout", help="Look at a rollout, and steer it.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    for command in (deploy, services, service, predict, scale, rollback, traffic, close, engines):
        app.command()(command)
    for word in (status, approve, reject, pause, resume, promote, abort, replay):
        rollouts.command()(word)
    app.add_typer(rollouts)


# --- deploying --------------------------------------------------------------------------------------------------------


def deploy(
    spec: Annotated[Path, typer.Option(help="The deployment's spec (YAML or JSON); - is standard input.")],
    wait: Annotated[
        bool, typer.Option("--wait", help="Show the rollout until it ends; the exit code is its outcome.")
    ] = False,
    timeout: Annotated[float | None, typer.Option(help="With --wait: give up watching after so many seconds.")] = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Try it also where the same thing failed before; kept with your name."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Deploy a model version as the next revision of a service."""
    with session(as_json) as here:
        from fermion.usecases.serving.queries import deployment
        from fermion.usecases.serving.submit import launch

        raw = here.settings.expand_spec(read_spec(spec))
        if retry_failed:
            raw = {**raw, "retry_failed": True}
        made = launch(here.platform, here.runs, raw, actor=here.user)
        found = deployment(here.platform, made.service_id, made.number)
        if wait:
            found = wait_for_deployment(here, found, timeout=timeout, quiet=as_json)
        _say_deployed(found, wait=wait, as_json=as_json)
    if wait and not (found.serves or found.is_over):
        raise typer.Exit(Exit.GOES_ON)
    if wait and not found.serves:
        raise typer.Exit(Exit.FAILED)


def _say_deployed(found: Deployment, *, wait: bool, as_json: bool) -> None:
    revision = found.revision
    if as_json:
        print_json(
            {
                "service": found.service.id,
                "name": found.service.name,
                "revision": revision.id,
                "model_path": revision.model_path,
                "phase": str(revision.phase),
                "serves": found.serves,
                "message": revision.explanation.message,
                "rollout": rollout_payload(found.rollout) if found.rollout else None,
            }
        )
    elif not wait:
        console.print(
            f"[bold]{revision.id}[/] is submitted. Watch it: fermion rollout status {found.service.name} --watch"
        )
    else:
        word = "serves" if found.serves else str(revision.phase)
        console.print(f"{revision.id} ({revision.model_path}) {word}: {revision.explanation.message}", markup=False)


def wait_for_deployment(here: Session, found: Deployment, *, timeout: float | None, quiet: bool) -> Deployment:
    """The deployment when it serves or is over (or, after ``timeout``, as it is); one line for every change and look."""
    from fermion.usecases.serving.queries import deployment

    deadline = None if timeout is None else time.monotonic() + timeout
    said, looks = "", 0
    try:
        while True:
            found = deployment(here.platform, found.service.id, found.revision.number)
            line = _line(found)
            if line != said and not quiet:
                console.print(line, markup=False, soft_wrap=True)
                said = line
            looks = _say_looks(here, found, looks, quiet=quiet)
            if found.serves or found.is_over or (deadline is not None and time.monotonic() > deadline):
                return found
            time.sleep(TICK_S)
    except KeyboardInterrupt:
        errors.print(
            f"Stopped watching; {found.revision.id} goes on. Watch it: fermion rollout status {found.service.name}"
        )
        raise typer.Exit(Exit.INTERRUPTED) from None


def _line(found: Deployment) -> str:
    if found.rollout is not None and not found.serves:
        return f"{found.revision.id} {found.rollout.phase}: {found.rollout.explanation.message}"
    return f"{found.revision.id} {found.revision.phase}: {found.revision.explanation.message}"


def _say_looks(here: Session, found: Deployment, after: int, *, quiet: bool) -> int:
    if found.rollout is None:
        return after
    with here.platform.store.read() as tx:
        looks = tx.rollouts.looks(found.rollout.id, after=after)
    for look in looks:
        if not quiet:
            style = "red" if look.outcome == "fail" else "dim"
            console.print(f"  {look_line(look)}", markup=False, soft_wrap=True, style=style)
        after = look.number
    return after


def look_line(look: Look) -> str:
    """One look in one line: weight, requests of both arms, what each metric was in canary and stable, and the verdict."""
    arms = next((each for each in look.measured.readings if each.canary or each.stable), None)
    part = look.measured.counted_percent
    counted = f", requests {sum(arms.canary)} + {sum(arms.stable)}" if arms else ""
    counted += f" ({part:.1f} %)" if part is not None else ""
    values = "".join(
        f", {each.metric} {_value(each.metric, each.canary_value)} / {_value(each.metric, each.stable_value)}"
        for each in look.metrics
    )
    checked = "".join(f", output check {each.check} {each.outcome}" for each in look.checks)
    told = "" if look.outcome == "pass" else f" {look.sentence}"
    return f"look {look.number} at {look.measured.share}{counted}{values}{checked}: {look.outcome}.{told}"


def _value(metric: str, value: float | None) -> str:
    """A share in percent, a latency in milliseconds."""
    if value is None:
        return "–"
    return f"{1000 * value:.0f} ms" if metric.startswith("latency") else f"{100 * value:.1f} %"


# --- looking ----------------------------------------------------------------------------------------------------------


def services(
    everything: Annotated[bool, typer.Option("--all", help="Closed ones too.")] = False, as_json: Json = False
) -> None:
    """List services."""
    with session(as_json) as here:
        from fermion.usecases.serving.queries import service_states

        found = service_states(here.platform, is_open=None if everything else True)
        if as_json:
            print_json([service_payload(each) for each in found])
            return
        rows = []
        for each in found:
            stable = next((r.model_path for r in each.revisions if r.number == each.service.stable), "–")
            qps = f"{each.lately.requests / each.lately.seconds:.1f}" if each.lately and each.lately.seconds else "–"
            replicas = f"{each.ready}/{each.current}/{each.service.replicas}"
            rows.append((each.service.name, each.status, stable, replicas, qps, each.endpoint or "–"))
        columns = ("name", "status", "model", "ready/current/desired", "qps", "endpoint")
        console.print(table("", columns, rows))


def service(name: Name, as_json: Json = False) -> None:
    """Show a service: its revisions, replicas, weights and traffic."""
    with session(as_json) as here:
        from fermion.usecases.serving.queries import service_state

        found = service_state(here.platform, name)
        if as_json:
            print_json(service_payload(found))
            return
        one = found.service
        console.print(f"[bold]{one.id}[/]  {one.name}  {found.status}  at {found.endpoint or 'an unknown address'}")
        console.print(f"requests go to: {spread_line(found.spread)} (read back from the router)", markup=False)
        for window, words in ((found.lately, "last two minutes"), (found.day, "last 24 hours")):
            if window is not None and window.requests:
                good = 100 * (1 - window.failures / window.requests)
                mean = f"{window.mean_ms:.1f} ms" if window.mean_ms is not None else "–"
                told = f"{words}: {window.requests} requests, {good:.2f} % good, mean {mean} ({found.source}, {clock(window.until)})"
                console.print(told, markup=False)
        if found.trouble:
            console.print(f"not all is measured: {found.trouble}", markup=False)
        rows = [(r.id, r.model_path, r.phase, r.wanted, clock(r.created_at)) for r in found.revisions]
        console.print(table("revisions", ("id", "model", "phase", "wanted", "made"), rows))
        replicas = [
            (row.name, row.phase, seen.state if seen else "–", seen.starts if seen else "–", why_of(row, seen))
            for row, seen in found.replicas
        ]
        console.print(table("replicas", ("name", "row", "seen", "starts", "why"), replicas))


def spread_line(spread: Spread | None) -> str:
    """How requests are spread, in one line."""
    if spread is None:
        return "nobody knows where"
    if spread == Spread():
        return "none"
    told = [
        *(f"{match.backend} with {match.kind} {match.name}: {match.value}" for match in spread.matches),
        *(f"{backend} {share} %" for backend, share in spread.weights.items()),
        *([f"kept by cookie {spread.sticky_cookie}"] if spread.sticky_cookie else []),
        *([f"{spread.mirror.backend} a copy of {spread.mirror.percent} %"] if spread.mirror else []),
    ]
    return ", ".join(told)


def traffic(name: Name, as_json: Json = False) -> None:
    """Show how a service's requests are split: what is wished, what the router says, what was counted."""
    with session(as_json) as here:
        from fermion.usecases.serving.queries import service_state

        found = service_state(here.platform, name)
        driver = here.platform.driver_of(found.service.pool)
        names = [each.id for each in found.revisions]
        counters = driver.router.counters([*names, *map(copies_of, names)])
        payload = traffic_payload(found, counters)
        if as_json:
            print_json(payload)
            return
        keys = ("revision", "wished_percent", "applied_percent", "requests", "failures", "copies")
        rows = [[each[key] if each[key] is not None else "–" for key in keys] for each in payload]
        console.print(table("", ("revision", "wished %", "router %", "requests", "5xx", "copies"), rows))
        console.print(f"The router says: {spread_line(found.spread)}.", markup=False, soft_wrap=True)


def predict(
    name: Name,
    inputs: Annotated[
        Path,
        typer.Option(
            help='The inputs as JSON, as {"pixels": [[0, 1, …]]} or the protocol\'s own; - is standard input.'
        ),
    ],
    as_json: Json = False,
) -> None:
    """Ask a service for a prediction, through the router as its clients do."""
    with session(as_json) as here:
        from fermion.usecases.serving.predict import predict as ask

        outputs = ask(here.platform, name, read_document(inputs))
        if as_json:
            print_json([each.to_payload() for each in outputs])
            return
        for each in outputs:
            shown = ", ".join(str(value) for value in each.data[:20])
            console.print(f"{each.name} {each.datatype} {list(each.shape)}: {shown}", markup=False, soft_wrap=True)


def read_document(path: Path) -> object:
    """The JSON in a file; ``-`` is standard input.

    Raises:
        RequestRefused: no such file, or no JSON.
    """
    try:
        return json.loads(sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problem = Problem(field="inputs", code="unreadable", message=f"{path}: {error}.", fix="Give a JSON file.")
        raise RequestRefused([problem]) from error


def engines(as_json: Json = False) -> None:
    """List the model servers that the platform knows, and where each really serves."""
    from fermion.domain.serving.engine_presets import ENGINES

    found = [engine_payload(each) for each in ENGINES.values()]
    if as_json:
        print_json(found)
        return
    rows = [
        (each["name"], ", ".join(map(str, each["api_types"])), ", ".join(map(str, each["drivers"])), each["about"])
        for each in found
    ]
    console.print(table("", ("engine", "speaks", "serves on", "what it is"), rows))


# --- changing ---------------------------------------------------------------------------------------------------------


def scale(
    name: Name,
    replicas: Annotated[int, typer.Argument(help="How many replicas.", metavar="REPLICAS")],
    as_json: Json = False,
) -> None:
    """Set how many replicas a service has."""
    with session(as_json) as here:
        from fermion.usecases.serving.wishes import scale as scale_service

        changed = scale_service(here.platform, name, replicas, by=here.user)
        _after(here, changed.id, f"{changed.name}: {changed.replicas} replicas are wanted.", as_json=as_json)


def rollback(
    name: Name,
    to: Annotated[int | None, typer.Option(help="The number of the revision; else the newest warm one.")] = None,
    as_json: Json = False,
) -> None:
    """Send all requests back to a revision that is still warm. Starts nothing."""
    with session(as_json) as here:
        from fermion.usecases.serving.tend import ServiceTender
        from fermion.usecases.serving.wishes import roll_back

        began = time.monotonic()
        changed = roll_back(here.platform, name, to=to, by=here.user)
        ServiceTender(here.platform).round()
        took = seconds(time.monotonic() - began)
        _after(
            here, changed.id, f"{changed.name}: revision {changed.stable} serves again after {took}.", as_json=as_json
        )


def close(name: Name, as_json: Json = False) -> None:
    """Take a service down for good and free its GPUs."""
    with session(as_json) as here:
        from fermion.usecases.serving.wishes import close as close_service

        changed = close_service(here.platform, name, by=here.user)
        _after(here, changed.id, f"{changed.name} is being taken down.", as_json=as_json)


def _after(here: Session, service_id: str, message: str, *, as_json: bool) -> None:
    if as_json:
        from fermion.usecases.serving.queries import service_state

        print_json(service_payload(service_state(here.platform, service_id)))
    else:
        console.print(message, markup=False, soft_wrap=True)


# --- rollouts ---------------------------------------------------------------------------------------------------------


def status(
    rollout: Rollout,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until it ends.")] = False,
    as_json: Json = False,
) -> None:
    """Show where a rollout is, its looks, and what people answered."""
    with session(as_json) as here:
        from fermion.usecases.serving.approvals import answers
        from fermion.usecases.serving.wishes import rollout_of

        shown = 0
        while True:
            found = rollout_of(here.platform, rollout)
            given = answers(here.platform, found)
            with here.platform.store.read() as tx:
                looks = tx.rollouts.looks(found.id, after=shown)
            if as_json and (found.is_final or not watch):
                approvals = [approval_payload(each) for each in given]
                print_json(
                    {**rollout_payload(found), "looks": [look_payload(look) for look in looks], "approvals": approvals}
                )
                return
            if not as_json:
                for look in looks:
                    console.print(look_line(look), markup=False, soft_wrap=True)
                    shown = look.number
                if found.is_final or not watch:
                    for each in given:
                        console.print(f"{clock(each.decided_at)} {each.message}", markup=False, soft_wrap=True)
                    console.print(
                        f"{found.id} is {found.phase}: {found.explanation.message}", markup=False, soft_wrap=True
                    )
                    return
            time.sleep(TICK_S)


def pause(rollout: Rollout, note: Note = "", as_json: Json = False) -> None:
    """Hold the rollout where it is; looks go on and may still roll it back."""
    _wish(rollout, "pause", note, as_json)


def resume(rollout: Rollout, note: Note = "", as_json: Json = False) -> None:
    """Let a paused rollout go on."""
    _wish(rollout, "resume", note, as_json)


def promote(rollout: Rollout, note: Note = "", as_json: Json = False) -> None:
    """Skip what is left and send all requests to the new revision."""
    _wish(rollout, "promote", note, as_json)


def abort(rollout: Rollout, note: Note = "", as_json: Json = False) -> None:
    """Go back to the revision that served before."""
    _wish(rollout, "abort", note, as_json)


def approve(rollout: Rollout, note: Note = "", as_json: Json = False) -> None:
    """Say yes where the plan asks a person."""
    _answer(rollout, note, as_json, approved=True)


def reject(rollout: Rollout, note: Note = "", as_json: Json = False) -> None:
    """Say no where the plan asks a person; the rollout goes back."""
    _answer(rollout, note, as_json, approved=False)


def _answer(rollout: str, note: str, as_json: bool, *, approved: bool) -> None:
    with session(as_json) as here:
        from fermion.usecases.serving.approvals import answer_open

        kept = answer_open(here.platform, here.runs, rollout, approved=approved, by=here.user, note=note)
        if as_json:
            print_json(approval_payload(kept))
        else:
            console.print(kept.message, markup=False, soft_wrap=True)


def _wish(rollout: str, word: str, note: str, as_json: bool) -> None:
    with session(as_json) as here:
        from fermion.domain.rollout.rollouts import WishKind
        from fermion.usecases.serving.wishes import wish

        kind: WishKind = WishKind(word)
        found = wish(here.platform, rollout, kind, by=here.user, note=note)
        if as_json:
            print_json({**rollout_payload(found), "wish": word})
        else:
            console.print(f"{found.id} was asked to {word}.", markup=False)


def replay(rollout: Rollout, as_json: Json = False) -> None:
    """Judge the stored looks again; the exit code is 0 when every verdict is the same."""
    with session(as_json) as here:
        from fermion.domain.rollout.replay import replay as judge_again
        from fermion.usecases.serving.wishes import rollout_of

        found = rollout_of(here.platform, rollout)
        with here.platform.store.read() as tx:
            looks = tx.rollouts.looks(found.id)
        differs = judge_again(found.plan, looks)
        if as_json:
            print_json(
                {
                    "rollout": found.id,
                    "looks": len(looks),
                    "same": not differs,
                    "differences": [str(d) for d in differs],
                }
            )
        else:
            console.print(f"{len(looks)} looks judged again: {'the same' if not differs else ''}", markup=False)
            for each in differs:
                console.print(str(each), markup=False, soft_wrap=True)
    if differs:
        raise typer.Exit(Exit.FAILED)
