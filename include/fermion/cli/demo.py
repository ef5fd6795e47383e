"""``fermion demo``: bring the platform up, train a real small model, serve it, release two more, read every claim back."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.panel import Panel
from rich.table import Table

from fermion.cli.examples import make_examples
from fermion.cli.installation import Port
from fermion.cli.jobs import read_spec
from fermion.cli.output import Exit, console, filled, print_json, seconds, short
from fermion.cli.session import Session, session
from fermion.cli.watching import STAGES, wait_for_end
from fermion.domain.accounting import account, ledger_gaps, total
from fermion.domain.jobs import Job
from fermion.domain.leases import HolderKind
from fermion.settings import load
from fermion.usecases.launch import DAG_ID, launch

TRAINING_WITHIN = timedelta(minutes=5)
RUN_WITHIN_S = 60.0
FRAME = 19  # cells of the summary's frame and of the widest name in it
UNFINISHED = {"ok": False, "failed_claims": "the demo did not come to its end"}


@dataclass(slots=True)
class Summary:
    """What the demo claims, each read back from the system; ``failed`` names the claims that do not hold."""

    claims: dict[str, object] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def claim(self, name: str, value: object, *, holds: bool = True) -> None:
        """Note a value; one that does not hold makes the demo fail."""
        self.claims[name] = value
        if not holds:
            self.failed.append(name)


def register(app: typer.Typer) -> None:
    """Mount the command."""
    app.command()(demo)


def demo(
    serve: Annotated[
        bool, typer.Option("--serve", help="Go on: serve the model, release a better and a deliberately bad version.")
    ] = False,
    rollback_only: Annotated[
        bool, typer.Option("--rollback-only", help="Only the last act: a bad version, and how it goes back.")
    ] = False,
    port: Port = None,
    as_json: Annotated[bool, typer.Option("--json", help="Answer with the summary as JSON only.")] = False,
) -> None:
    """Start the platform and train a small model; with --serve also serve it, and see a good and a bad version released."""
    began = time.monotonic()
    with session(as_json) as here:
        say: Callable[[str], None] = (
            (lambda text: None) if as_json else (lambda text: console.print(text, markup=False, soft_wrap=True))
        )
        _forget_claims()
        address = _start(say, port)
        write_summary(here.settings.demo_file, UNFINISHED)
        make_examples(here.settings)
        job, summary = (None, Summary()) if rollback_only else _train(here, say, quiet=as_json)
        if (serve or rollback_only) and not summary.failed:
            _serve(here, say, summary, rollback_only=rollback_only, quiet=as_json)
        summary.claim("ui", address["url"])
        summary.claim("login", address["user"])
        summary.claim("password_file", address["password_file"])
        summary.claim("seconds", round(time.monotonic() - began, 1))
        summary.claims = {"ok": not summary.failed, **summary.claims, "failed_claims": ", ".join(summary.failed)}
        write_summary(here.settings.demo_file, summary.claims)
        if as_json:
            print_json(summary.claims)
        else:
            show(job, summary)
    if summary.failed:
        raise typer.Exit(Exit.FAILED)


def _forget_claims() -> None:
    """No earlier demo's claims speak for this one. Settings of its own: where the database is, is known only after the start."""
    file = load().demo_file
    if file.exists():
        write_summary(file, UNFINISHED)


def _train(here: Session, say: Callable[[str], None], *, quiet: bool) -> tuple[Job, Summary]:
    spec = here.settings.root / "include/examples/digits/job.yaml"
    say("Submitting include/examples/digits/job.yaml …")
    made = _launch_when_ready(here, here.settings.expand_spec(read_spec(spec)))
    job = wait_for_end(here.platform, made.id, timeout_s=TRAINING_WITHIN.total_seconds(), quiet=quiet)
    return job, read_back(here, job)


def _serve(here: Session, say: Callable[[str], None], summary: Summary, *, rollback_only: bool, quiet: bool) -> None:
    """The acts of serving; what they claim was read back, or seen by the demo's own clients."""
    from fermion.cli.serving_demo import play

    story = play(here, say, rollback_only=rollback_only, quiet=quiet)
    if not rollback_only:
        summary.claim("promoted", story.promoted, holds=story.promoted)
    summary.claim("rolled_back", story.rolled_back, holds=story.rolled_back)
    summary.claim("fault_to_safe_s", story.fault_to_safe_s and round(story.fault_to_safe_s, 2))
    summary.claim("serving_replicas", story.serving_replicas, holds=story.serving_replicas > 0)
    summary.claim("requests", story.requests, holds=story.requests > 0)
    summary.claim("failed_requests", story.failed_requests, holds=story.failed_requests == 0)
    summary.claim("bad_version_errors", story.bad_version_errors, holds=story.bad_version_errors > 0)
    summary.claim("verdict", story.verdict)


def _start(say: Callable[[str], None], port: int | None) -> dict[str, str]:
    from fermion.wiring import local_platform

    up = local_platform(os.environ).up(port=port, say=lambda text: say(f"  {text}"))
    for note in up.notes:
        say(note)
    for file, error in up.import_errors.items():
        say(f"dags/{file} cannot be imported: {error}")
    say(f"Fermion is up: {up.url}")
    return {"url": up.url, "user": up.user, "password_file": str(up.password_file)}


def _launch_when_ready(here: Session, raw: dict[str, object]) -> Job:
    """Right after the start the engine may not know the DAG yet; that much is waited for, nothing else is tried twice."""
    deadline = time.monotonic() + RUN_WITHIN_S
    while here.runs.state(DAG_ID, "-").state != "absent" and time.monotonic() < deadline:
        time.sleep(0.5)
    return launch(here.platform, here.runs, raw, actor=here.user)


def read_back(here: Session, job: Job) -> Summary:
    """Every claim, read from the store, the model repository, the engine and the disk; nothing from this command's memory."""
    summary = Summary()
    summary.claim("job", job.id)
    summary.claim("status", str(job.status), holds=job.status == "completed")
    if job.is_failed:
        summary.claim("why", job.explanation.message)
    _read_run(here, job, summary)
    _read_model(here, job, summary)
    _read_times(here, job, summary)
    _read_leases(here, job, summary)
    page = here.settings.reports_dir / f"{job.id}.html"
    summary.claim("report", str(page), holds=page.is_file() and page.stat().st_size > 0)
    return summary


def _read_run(here: Session, job: Job, summary: Summary) -> None:
    deadline = time.monotonic() + RUN_WITHIN_S
    state = "absent"
    while job.run is not None and time.monotonic() < deadline:
        state = here.runs.state(*job.run).state
        if state in {"success", "failed"}:
            break
        time.sleep(0.25)
    summary.claim("run_state", state, holds=state == "success")


def _read_model(here: Session, job: Job, summary: Summary) -> None:
    number = job.model_version
    version = None if number is None else here.platform.models.get(job.spec.output_model, number)
    if version is None:
        summary.claim("model", None, holds=False)
        return
    problems = here.platform.models.verify(version)
    summary.claim("model", version.path)
    summary.claim("checksum", version.checksum, holds=not problems)
    summary.claim("model_bytes", version.size_bytes)
    accuracy = version.metrics.get("accuracy")
    summary.claim("accuracy", accuracy, holds=accuracy is not None and accuracy > 0.9)


def _read_times(here: Session, job: Job, summary: Summary) -> None:
    with here.platform.store.read() as tx:
        spans = tx.records.spans(job.id)
    for span in spans:
        if span.ended_at is not None:
            summary.stages[span.stage] = (span.ended_at - span.started_at).total_seconds()
    for stage, took in summary.stages.items():
        summary.claim(f"stage_{stage}_s", round(took, 3))


def _read_leases(here: Session, job: Job, summary: Summary) -> None:
    now = here.platform.clock.now()
    with here.platform.store.read() as tx:
        leases = tx.leases.of_holder(HolderKind.JOB, job.id)
        gaps = ledger_gaps(tx.leases.ledger(), tx.leases.live(), now)
        pool = here.platform.pools(tx).get(job.spec.pool)
    held = total(account(lease, now) for lease in leases)
    summary.claim("gpus", job.spec.gpus)
    summary.claim("gpus_are", str(pool.method) if pool else None, holds=pool is not None)
    summary.claim("gpu_seconds_held", round(held.held, 2), holds=held.held > 0)
    summary.claim("gpu_seconds_used", round(held.used, 2))
    summary.claim("gpu_seconds_wasted", round(held.wasted_total, 2))
    summary.claim(
        "open_leases", sum(lease.is_live for lease in leases), holds=not any(lease.is_live for lease in leases)
    )
    summary.claim("leaked", len(gaps), holds=not gaps)


def write_summary(path: Path, claims: Mapping[str, object]) -> None:
    """Replace the summary's file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".json.part")
    part.write_text(json.dumps(dict(claims), indent=2) + "\n", encoding="utf-8")
    part.replace(path)


def show(job: Job | None, summary: Summary) -> None:
    """The summary for a person."""
    claims = summary.claims
    rows = Table.grid(padding=(0, 2))
    if job is not None:
        _show_training(rows, job, summary)
    if "rolled_back" in claims:
        _show_serving(rows, claims)
    rows.add_row("UI", f"{claims['ui']}   sign in as {claims['login']}, password in {claims['password_file']}")
    rows.add_row("took", seconds(float(str(claims["seconds"]))))
    if summary.failed:
        rows.add_row("NOT true", ", ".join(summary.failed))
    good = "Served, promoted, rolled back" if "rolled_back" in claims else "Trained, published, released"
    title = "[red]The demo failed[/]" if summary.failed else f"[green]{good}[/]"
    console.print(Panel(rows, title=f"{title}  {job.id if job else ''}", expand=False))


def in_order(stages: Mapping[str, float]) -> list[tuple[str, float]]:
    """The stages as a job goes through them; those that end side by side come in any order."""
    order = {stage: place for place, stage in enumerate(STAGES)}
    return sorted(stages.items(), key=lambda each: order.get(each[0], len(order)))


def _show_training(rows: Table, job: Job, summary: Summary) -> None:
    claims = summary.claims
    if job.is_failed:
        rows.add_row("why", job.explanation.message)
    else:
        accuracy = claims.get("accuracy")
        told = f"   accuracy {accuracy:.4f}" if isinstance(accuracy, float) else ""
        rows.add_row("model", f"{claims.get('model')}{told}")
        rows.add_row("checksum", short(str(claims.get("checksum"))))
    held, wasted = claims["gpu_seconds_held"], claims["gpu_seconds_wasted"]
    rows.add_row("GPU-seconds", f"{held} held, {wasted} wasted ({claims['gpus']} × {claims['gpus_are']})")
    times = (f"{stage} {seconds(took)}" for stage, took in in_order(summary.stages))
    rows.add_row("time", filled(times, gap=3, beside=FRAME))
    rows.add_row("report", str(claims["report"]))


def _show_serving(rows: Table, claims: Mapping[str, object]) -> None:
    failed = f"{claims['failed_requests']} of {claims['requests']} failed"
    if "promoted" in claims:
        rows.add_row("better version", f"{'promoted' if claims['promoted'] else 'NOT promoted'} by canary")
    safe = claims["fault_to_safe_s"]
    within = f", safe {safe} s after the first bad answer" if safe is not None else ""
    gone = "rolled back by itself" if claims["rolled_back"] else "NOT rolled back"
    rows.add_row("bad version", f"{gone}{within}; clients saw {claims['bad_version_errors']} of its errors")
    rows.add_row("verdict", str(claims["verdict"]))
    rows.add_row("requests", f"{failed}; {claims['serving_replicas']} replicas ready")
