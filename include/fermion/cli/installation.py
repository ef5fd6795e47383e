"""Commands that start, stop and show the embedded installation: ``up``, ``down``, ``clean``, ``ps``; and its Airflow's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from fermion.cli.output import Exit, console, errors, fail, print_json, table
from fermion.domain.counting import counted
from fermion.domain.serving.replicas import is_replica
from fermion.errors import FermionError

if TYPE_CHECKING:
    from fermion.wiring import LocalPlatform

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]
Port = Annotated[
    int | None,
    typer.Option(
        "--port", envvar="FERMION_PORT", min=1, max=65535, help="The pages' port; default 8080 or the next free one."
    ),
]


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    for command in (up, down, clean, ps):
        app.command()(command)
    passed_on = {"allow_extra_args": True, "allow_interspersed_args": False, "ignore_unknown_options": True}
    app.command(context_settings=passed_on, add_help_option=False, options_metavar="ARGUMENTS…")(airflow)


def up(port: Port = None, as_json: Json = False) -> None:
    """Start the platform on this machine and return once it is healthy. Does nothing when it is."""
    with _local(as_json) as local:
        result = local.up(port=port, say=lambda text: None if as_json else errors.print(f"  {text}", markup=False))
    notes = [*result.notes, *_examples()]
    if as_json:
        print_json(
            {
                "url": result.url,
                "user": result.user,
                "password_file": str(result.password_file),
                "started": result.started,
                "seconds": round(result.seconds, 2),
                "notes": notes,
                "import_errors": dict(result.import_errors),
            }
        )
        return
    for note in notes:
        console.print(note, markup=False, soft_wrap=True)
    for file, error in result.import_errors.items():
        errors.print(f"dags/{file} cannot be imported: {error}", style="yellow", markup=False, soft_wrap=True)
    how = f"up in {result.seconds:.1f} s" if result.started else "up already"
    console.print(f"Fermion is {how}: {result.url}", markup=False, soft_wrap=True)
    console.print(f"Sign in as {result.user}; the password is in {result.password_file}", markup=False, soft_wrap=True)


def down(as_json: Json = False) -> None:
    """Stop every process of the platform, running trainings included. Does nothing when there is none."""
    with _local(as_json) as local:
        result = local.down(say=lambda text: None if as_json else errors.print(f"  {text}", markup=False))
    if as_json:
        print_json(
            {
                "was_up": result.was_up,
                "workloads": result.workloads,
                "replicas": result.replicas,
                "leftovers": result.leftovers,
            }
        )
        return
    if result.workloads:
        ended = counted(result.workloads, "running training")
        how = "`fermion restart --resume JOB` starts a job again from its last checkpoint."
        console.print(f"Ended {ended}; {how}", soft_wrap=True)
    if result.replicas:
        ended = counted(result.replicas, "replica")
        console.print(f"Ended {ended} of services; they come back with `fermion up`.", soft_wrap=True)
    if result.leftovers:
        console.print(f"Ended {counted(result.leftovers, 'left-over process', 'left-over processes')}.")
    console.print("Fermion is down." if result.was_up or result.leftovers else "Fermion was down already.")


def clean(as_json: Json = False) -> None:
    """Stop everything and delete the state folder: databases, models, logs, passwords."""
    with _local(as_json) as local:
        deleted = local.clean(say=lambda text: None if as_json else errors.print(f"  {text}", markup=False))
    if as_json:
        print_json({"deleted": deleted})
    else:
        console.print("Forgot everything." if deleted else "There was nothing to forget.")


def ps(as_json: Json = False) -> None:
    """Show the platform's programs; the exit code is 0 when all is well."""
    with _local(as_json) as local:
        status = local.status()
    if as_json:
        print_json(
            {
                "ok": bool(status.programs) and not status.problems,
                "url": status.url,
                "programs": [{"name": one.name, "state": one.state, "pid": one.pid} for one in status.programs],
                "workloads": list(status.workloads),
                "problems": list(status.problems),
            }
        )
    elif status.programs:
        rows = [(one.name, one.state, one.pid or "–") for one in status.programs]
        console.print(f"Fermion is at {status.url}", markup=False, soft_wrap=True)
        console.print(table("", ("program", "state", "pid"), rows))
        replicas = sum(map(is_replica, status.workloads))
        running = counted(len(status.workloads) - replicas, "training")
        console.print(f"{running} running, {counted(replicas, 'replica')} of services")
    else:
        console.print("Fermion is down; `fermion up` starts it.")
    if not as_json:
        for problem in status.problems:
            console.print(f"! {problem}", style="yellow", markup=False, soft_wrap=True)
    if status.problems or not status.programs:
        raise typer.Exit(Exit.FAILED)


def airflow(command: typer.Context) -> None:
    """Run Airflow's own command on this installation, as `fermion airflow dags list`."""
    with _local(as_json=False) as local:
        words, environment = local.airflow(command.args)
    os.execve(words[0], list(words), dict(environment))


def _examples() -> list[str]:
    """Make the examples; a platform without them is up all the same, so what went wrong is a note."""
    from fermion.cli.examples import make_examples
    from fermion.settings import load

    try:
        make_examples(load())
    except FermionError as error:
        return [f"The examples are not there: {error.message}"]
    return []


@contextmanager
def _local(as_json: bool) -> Iterator[LocalPlatform]:
    from fermion.wiring import local_platform

    try:
        yield local_platform(os.environ)
    except FermionError as error:
        fail(error, as_json=as_json)
