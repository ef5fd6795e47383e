"""Commands about training jobs."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fermion.cli.explaining import told
from fermion.cli.output import Exit, clock, console, errors, print_json, table
from fermion.cli.payloads import job_payload
from fermion.cli.session import Session, session
from fermion.domain.jobs import Job, Status
from fermion.domain.problems import Problem
from fermion.errors import RequestRefused

if TYPE_CHECKING:
    from fermion.usecases.logs import Piece

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]
JobId = Annotated[str, typer.Argument(help="A job's id, as job-20241110-001.", metavar="JOB")]

Wait = Annotated[bool, typer.Option("--wait", help="Show the job until it ends; the exit code is its outcome.")]
Timeout = Annotated[
    float | None, typer.Option(help="With --wait: give up watching after so many seconds.", min=0, metavar="SECONDS")
]

LOOK_AGAIN_S = 0.3


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    for command in (train, jobs, job, logs, stop, restart, explain, report):
        app.command()(command)


def read_spec(path: Path) -> dict[str, object]:
    """A job's spec from a YAML or JSON file; ``-`` is standard input.

    JSON is read as JSON: to YAML its ``NaN`` would be a word, and a long key no key.

    Raises:
        RequestRefused: no such file, no YAML, or not a mapping.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    name = "standard input" if str(path) == "-" else str(path)
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        found = _json_of(text) or YAML(typ="safe").load(text)
    except OSError as error:
        raise _no_spec("unreadable", f"{name}: {error.strerror}.", "Name a YAML or JSON file that is there.") from error
    except UnicodeError as error:
        raise _no_spec("unreadable", f"{name} is not text in UTF-8.", "Give a YAML or JSON file.") from error
    except YAMLError as error:
        mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
        what = error.problem if isinstance(error, MarkedYAMLError) and error.problem else "it cannot be read"
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise _no_spec("unreadable", f"{name}{where}: {what}.", "Correct its YAML.") from error
    if not isinstance(found, dict):
        raise _no_spec("not_a_mapping", f"{name} holds no fields.", "Write one `key: value` a line.")
    return {str(key): value for key, value in found.items()}


def _json_of(text: str) -> dict[object, object] | None:
    """The object that is written there as JSON, each key once; None where it is not."""

    def once(pairs: list[tuple[str, object]]) -> dict[object, object]:
        found: dict[object, object] = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key is there twice")  # YAML says where
        return found

    try:
        found = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _no_spec(code: str, message: str, fix: str) -> RequestRefused:
    return RequestRefused([Problem(field="spec", code=code, message=message, fix=fix)])


def train(
    spec: Annotated[Path, typer.Option(help="The job's spec (YAML or JSON); - is standard input.")],
    wait: Wait = False,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Start a training."""
    _needs_wait(wait, timeout)
    with session(as_json) as here:
        from fermion.usecases.launch import launch

        raw = here.settings.expand_spec(read_spec(spec))
        made = launch(here.platform, here.runs, raw, actor=here.user)
        _follow(here, made, wait=wait, timeout=timeout, as_json=as_json)


def _needs_wait(wait: bool, timeout: float | None) -> None:
    if timeout is not None and not wait:
        raise typer.BadParameter(
            "it ends the watching, and without --wait nothing is watched", param_hint="'--timeout'"
        )


def _follow(here: Session, made: Job, *, wait: bool, timeout: float | None, as_json: bool) -> None:
    if wait:
        made = _watch(here, made, timeout=timeout, as_json=as_json)
    if as_json:
        print_json(job_payload(made))
    elif not wait:
        console.print(
            f"[bold]{made.id}[/] is submitted. Watch it: fermion job {made.id}   its log: fermion logs -f {made.id}"
        )
    if wait and not made.is_final:
        _gave_up(made, timeout, as_json=as_json)
    if wait and made.status is not Status.COMPLETED:
        raise typer.Exit(Exit.FAILED)


def _watch(here: Session, made: Job, *, timeout: float | None, as_json: bool) -> Job:
    from fermion.cli.watching import wait_for_end

    try:
        return wait_for_end(here.platform, made.id, timeout_s=timeout, quiet=as_json)
    except KeyboardInterrupt:
        _say_it_goes_on("Stopped watching", made.id)
        raise typer.Exit(Exit.INTERRUPTED) from None


def _gave_up(job: Job, timeout: float | None, *, as_json: bool) -> NoReturn:
    if not as_json:
        _say_it_goes_on(f"Gave up watching after {timeout:g} s", job.id)
    raise typer.Exit(Exit.GOES_ON)


def _say_it_goes_on(what: str, job_id: str) -> None:
    """Nothing but the watching ended: how to look again, and how to end the job itself."""
    how = f"Watch it: fermion job {job_id}   its log: fermion logs -f {job_id}   end it: fermion stop {job_id}"
    errors.print(f"{what}; {job_id} goes on. {how}", markup=False, soft_wrap=True)


def jobs(
    status: Annotated[Status | None, typer.Option(help="Only jobs of this status.")] = None,
    limit: Annotated[int, typer.Option(help="How many, newest first.", min=1, max=10000)] = 30,
    wide: Annotated[bool, typer.Option("--wide", help="Also owner and team.")] = False,
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
        columns = ["id", "name", "state", "done", "gpus", "pool", "submitted (UTC)"]
        rows = [[each.id, each.spec.name, _state(each), f"{each.progress.percent:.0f} %", each.spec.gpus, each.spec.pool, clock(each.submitted_at)] for each in found]  # fmt: skip
        if wide:
            columns += ["owner", "team"]
            rows = [[*row, each.spec.owner, each.spec.team] for row, each in zip(rows, found, strict=True)]
        console.print(table("Training jobs", columns, rows, folds=("name",)))


def _state(job: Job) -> str:
    """The status, with where the job is within it: ``running (saving)``."""
    return str(job.status) if job.status == str(job.phase) else f"{job.status} ({job.phase})"


def job(job_id: JobId, as_json: Json = False) -> None:
    """Show one job."""
    with session(as_json) as here:
        from fermion.cli.watching import read_view, render

        view = read_view(here.platform, job_id)
        if as_json:
            print_json(job_payload(view.job, spans=view.spans))
        else:
            console.print(render(view))


def logs(
    job_id: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends, through further attempts.")
    ] = False,
    attempt: Annotated[int | None, typer.Option(help="Which attempt; the latest that ran by default.")] = None,
    as_json: Json = False,
) -> None:
    """Print a job's output."""
    with session(as_json) as here:
        from fermion.usecases.logs import log_of, why_missing

        wait = partial(time.sleep, LOOK_AGAIN_S) if follow else None
        pieces = log_of(here.platform, job_id, attempt=attempt, until_more=wait)
        if as_json:
            read = list(pieces)
            missing = None if read else why_missing(here.platform, job_id, attempt=attempt)
            print_json({**_log_payload(job_id, read), "missing": missing})
        else:
            _print_log(here, job_id, pieces, attempt)


def _log_payload(job_id: str, pieces: Sequence[Piece]) -> dict[str, object]:
    log = "".join(piece.text for piece in pieces)
    attempts = sorted({piece.attempt for piece in pieces})
    return {"job": job_id, "attempts": attempts, "log": log, "bytes": len(log.encode())}


def _print_log(here: Session, job_id: str, pieces: Iterator[Piece], attempt: int | None) -> None:
    """Nothing but the output goes to standard output; what there is to say about it does not."""
    from fermion.usecases.logs import why_missing
    from fermion.usecases.queries import job_by_id

    found = job_by_id(here.platform, job_id)
    if found.started_at is None:
        never = "never ran" if found.is_final else "has not run yet"
        errors.print(f"{job_id} {never}: {found.explanation.message}", markup=False, soft_wrap=True)
    last = None
    with contextlib.suppress(KeyboardInterrupt):
        for piece in pieces:
            if last not in (None, piece.attempt):
                errors.print(f"attempt {piece.attempt} of {job_id}:", markup=False)
            last = piece.attempt
            sys.stdout.write(piece.text)
            sys.stdout.flush()
    if last is None and found.started_at is not None:
        why = why_missing(here.platform, job_id, attempt=attempt) or f"{job_id} has printed nothing."
        errors.print(why, markup=False, soft_wrap=True)


def stop(
    job_id: JobId,
    wait: Annotated[bool, typer.Option("--wait", help="Show the job until it has ended.")] = False,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Ask a job to end. It keeps its checkpoint."""
    _needs_wait(wait, timeout)
    with session(as_json) as here:
        from fermion.usecases.stop import request_stop

        asked = request_stop(here.platform, job_id, actor=here.user)
        if not as_json and (asked.is_final or not wait):
            console.print(_stopped(asked), markup=False)
        if wait and not asked.is_final:
            asked = _watch(here, asked, timeout=timeout, as_json=as_json)
        if as_json:
            print_json(job_payload(asked))
        if wait and not asked.is_final:
            _gave_up(asked, timeout, as_json=as_json)


def _stopped(asked: Job) -> str:
    if asked.is_final:
        return f"{asked.id} has ended already: {asked.explanation.message}"
    return f"{asked.id} was asked to end; fermion job {asked.id} shows when it has."


def restart(
    job_id: JobId,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from its last checkpoint instead of from scratch.")
    ] = False,
    wait: Wait = False,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Start an ended job again, as a new job with the same pinned commit."""
    _needs_wait(wait, timeout)
    with session(as_json) as here:
        from fermion.usecases.launch import launch
        from fermion.usecases.stop import restart_request

        request = restart_request(here.platform, job_id, resume=resume)
        made = launch(here.platform, here.runs, request, actor=here.user, restart_of=job_id)
        _follow(here, made, wait=wait, timeout=timeout, as_json=as_json)


def explain(job_id: JobId, as_json: Json = False) -> None:
    """Say why a job is where it is, with the numbers."""
    with session(as_json) as here:
        from fermion.usecases.explain import explain as ask

        answer = ask(here.platform, job_id)
        if as_json:
            print_json(answer)
            return
        for line in told(answer):
            console.print(line)


def report(job_id: JobId, as_json: Json = False) -> None:
    """Say where a job's report lies; written now if it was not."""
    with session(as_json) as here:
        from fermion.usecases.report import compose_report, write_report

        if as_json:
            print_json(compose_report(here.platform, job_id).to_payload())
        else:
            console.print(write_report(here.platform, job_id), markup=False)
