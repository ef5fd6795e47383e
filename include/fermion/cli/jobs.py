"""Commands about training jobs."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from fermion.cli.output import Exit, clock, console, print_json, table
from fermion.cli.payloads import job_payload
from fermion.cli.session import Session, session
from fermion.domain.jobs import Job, Status
from fermion.domain.problems import Problem
from fermion.domain.workloads import workload_name
from fermion.errors import RequestRefused

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]
JobId = Annotated[str, typer.Argument(help="A job's id, as job-20241110-001.", metavar="JOB")]


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    for command in (train, jobs, job, logs, stop, restart, explain, report):
        app.command()(command)


def read_spec(path: Path) -> dict[str, object]:
    """A job's spec from a YAML or JSON file; ``-`` is standard input.

    Raises:
        RequestRefused: no such file, no YAML, or not a mapping.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        found = YAML(typ="safe").load(text)
    except (OSError, UnicodeError, YAMLError) as error:
        raise RequestRefused(
            [Problem(field="spec", code="unreadable", message=f"{path}: {error}", fix="Give a YAML file.")]
        ) from error
    if not isinstance(found, dict):
        raise RequestRefused(
            [
                Problem(
                    field="spec",
                    code="not_a_mapping",
                    message=f"{path} holds no fields.",
                    fix="Write one `key: value` a line.",
                )
            ]
        )
    return {str(key): value for key, value in found.items()}


def train(
    spec: Annotated[Path, typer.Option(help="The job's spec (YAML or JSON); - is standard input.")],
    wait: Annotated[
        bool, typer.Option("--wait", help="Show the job until it ends; the exit code is its outcome.")
    ] = False,
    timeout: Annotated[float | None, typer.Option(help="With --wait: give up watching after so many seconds.")] = None,
    as_json: Json = False,
) -> None:
    """Start a training."""
    with session(as_json) as here:
        from fermion.usecases.launch import launch

        raw = here.settings.expand_spec(read_spec(spec))
        made = launch(here.platform, here.runs, raw, actor=here.user)
        _follow(here, made, wait=wait, timeout=timeout, as_json=as_json)


def _follow(here: Session, made: Job, *, wait: bool, timeout: float | None, as_json: bool) -> None:
    if wait:
        from fermion.cli.watching import wait_for_end

        made = wait_for_end(here.platform, made.id, timeout_s=timeout, quiet=as_json)
    if as_json:
        print_json(job_payload(made))
    elif not wait:
        console.print(
            f"[bold]{made.id}[/] is submitted. Watch it: fermion job {made.id}   its log: fermion logs -f {made.id}"
        )
    if wait and made.status is not Status.COMPLETED:
        raise typer.Exit(Exit.FAILED if made.is_final else Exit.UNAVAILABLE)


def jobs(
    status: Annotated[Status | None, typer.Option(help="Only jobs of this status.")] = None,
    limit: Annotated[int, typer.Option(help="How many, newest first.", min=1, max=10000)] = 30,
    as_json: Json = False,
) -> None:
    """List training jobs, newest first."""
    with session(as_json) as here:
        from fermion.domain.jobs import phases_of

        with here.platform.store.read() as tx:
            found = tx.jobs.find(phases=phases_of(status) if status else None, limit=limit)
        if as_json:
            print_json([job_payload(each) for each in found])
            return
        rows = [
            (
                each.id,
                each.spec.name,
                _state(each),
                f"{each.progress.percent:.0f} %",
                each.spec.gpus,
                each.spec.pool,
                each.spec.owner,
                clock(each.submitted_at),
            )
            for each in found
        ]
        console.print(
            table(
                "Training jobs",
                ("id", "name", "state", "done", "gpus", "pool", "owner", "UTC"),
                rows,
            )
        )


def _state(job: Job) -> str:
    """The status, with where the job is within it: ``running (saving)``."""
    return str(job.status) if job.status == str(job.phase) else f"{job.status} ({job.phase})"


def job(job_id: JobId, as_json: Json = False) -> None:
    """Show one job."""
    with session(as_json) as here:
        from fermion.cli.watching import read_view, render

        view = read_view(here.platform, job_id)
        if as_json:
            print_json(job_payload(view.job))
        else:
            console.print(render(view))


def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    attempt: Annotated[int | None, typer.Option(help="Which attempt; the latest by default.")] = None,
    as_json: Json = False,
) -> None:
    """Print a job's output."""
    with session(as_json) as here:
        from fermion.usecases.queries import job_by_id

        found = job_by_id(here.platform, job_id)
        name = workload_name(job_id, attempt or found.attempt)
        workloads = here.platform.driver_of(found.spec.pool).workloads
        offset, text = 0, ""
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                chunk = workloads.log(name, offset=offset)
                offset = chunk.next_offset
                if as_json:
                    text += chunk.text
                else:
                    sys.stdout.write(chunk.text)
                    sys.stdout.flush()
                if not chunk.at_end:
                    continue
                if not follow or found.is_final:
                    break
                time.sleep(0.3)
                found = job_by_id(here.platform, job_id)
        if as_json:
            print_json({"job": job_id, "workload": name, "log": text, "bytes": offset})


def stop(job_id: JobId, as_json: Json = False) -> None:
    """Ask a job to end. It keeps its checkpoint."""
    with session(as_json) as here:
        from fermion.usecases.stop import request_stop

        asked = request_stop(here.platform, job_id, actor=here.user)
        if as_json:
            print_json(job_payload(asked))
        elif asked.is_final:
            console.print(f"{job_id} has ended already: {asked.explanation.message}", markup=False)
        else:
            console.print(f"{job_id} was asked to end.")


def restart(
    job_id: JobId,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from its last checkpoint instead of from scratch.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Show the new job until it ends.")] = False,
    as_json: Json = False,
) -> None:
    """Start an ended job again, as a new job with the same pinned commit."""
    with session(as_json) as here:
        from fermion.usecases.launch import launch
        from fermion.usecases.stop import restart_request

        request = restart_request(here.platform, job_id, resume=resume)
        made = launch(here.platform, here.runs, request, actor=here.user, restart_of=job_id)
        _follow(here, made, wait=wait, timeout=None, as_json=as_json)


def explain(job_id: JobId, as_json: Json = False) -> None:
    """Say why a job is where it is, with the numbers."""
    with session(as_json) as here:
        from fermion.usecases.explain import explain as ask

        answer = ask(here.platform, job_id)
        if as_json:
            print_json(answer)
            return
        console.print(str(answer["message"]), markup=False)
        expected = answer["expected_start"]
        if isinstance(expected, dict):
            told = f"{expected['p50']} (half of the time), {expected['p90']} (nine times of ten)"
            console.print(
                f"Expected start: {told if expected['p50'] else 'unknown, ' + str(expected['reason'])}", markup=False
            )
        numbers = answer["numbers"]
        if isinstance(numbers, dict) and numbers:
            console.print(table("", ("", ""), [(key, value) for key, value in numbers.items()]))


def report(job_id: JobId, as_json: Json = False) -> None:
    """Say where a job's report lies; written now if it was not."""
    with session(as_json) as here:
        from fermion.usecases.report import compose_report, write_report

        if as_json:
            print_json(compose_report(here.platform, job_id).to_payload())
        else:
            console.print(write_report(here.platform, job_id), markup=False)
