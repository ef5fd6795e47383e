"""Commands that show what there is: pools, leases, models, datasets; and whether all is well."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fermion.cli.output import Exit, clock, console, print_json, short, table
from fermion.cli.payloads import dataset_payload, lease_payload, pool_payload
from fermion.cli.session import Session, session
from fermion.domain.artifacts import ModelVersion
from fermion.domain.counting import counted
from fermion.errors import NotFound

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]
Wide = Annotated[bool, typer.Option("--wide", help="Whole checksums, and what else takes room.")]

datasets = typer.Typer(no_args_is_help=False)


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    for command in (pools, ledger, models, doctor, retain):
        app.command()(command)
    app.add_typer(datasets, name="datasets")


def pools(as_json: Json = False) -> None:
    """Show the GPU pools and what is held of them."""
    with session(as_json) as here:
        from fermion.usecases.queries import pool_states

        states = pool_states(here.platform)
        if as_json:
            print_json([pool_payload(state) for state in states])
            return
        rows = [
            (
                state.pool.id,
                f"{state.pool.model} ({state.pool.method})",
                len(state.pool.nodes),
                *(state.figures[name].value for name in ("capacity", "allocated", "free", "waiting")),
                clock(state.figures["capacity"].observed_at),
            )
            for state in states
        ]
        console.print(
            table("GPU pools", ("id", "model (method)", "nodes", "gpus", "held", "free", "waiting", "seen (UTC)"), rows)
        )


def ledger(
    limit: Annotated[int, typer.Option(help="How many entries, newest last.", min=1, max=100000)] = 40,
    as_json: Json = False,
) -> None:
    """Show who holds GPUs, and the last entries of the ledger."""
    with session(as_json) as here:
        with here.platform.store.read() as tx:
            live = tx.leases.live()
            entries = tx.leases.ledger()[-limit:]
        if as_json:
            print_json(
                {
                    "live": [lease_payload(lease) for lease in live],
                    "entries": [
                        {"at": e.at.isoformat(), "lease": e.lease_id, "pool": e.pool, "holder": e.holder, "kind": e.kind, "gpus": e.gpus, "cause": e.cause}
                        for e in entries
                    ],
                }
            )  # fmt: skip
            return
        held = [(x.id, x.gpus, x.pool, clock(x.granted_at)) for x in live]
        if held:
            console.print(table("Held now", ("lease", "gpus", "pool", "since (UTC)"), held), "")
        else:
            console.print("Nothing is held now.")
        rows = [
            (clock(e.at), e.kind, f"{e.gpus:+d}", e.cause or "–", e.holder.removeprefix("job/"), e.pool)
            for e in entries
        ]
        if rows:
            console.print(table("Ledger", ("at (UTC)", "what", "gpus", "cause", "holder", "pool"), rows))


def models(
    name: Annotated[str | None, typer.Argument(help="A model: its versions.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte again and compare checksums.")] = False,
    wide: Wide = False,
    as_json: Json = False,
) -> None:
    """List the models of the repository, or one model's versions."""
    with session(as_json) as here:
        repository = here.platform.models
        wanted = [name] if name else list(repository.models())
        versions = [version for model in wanted for version in repository.versions(model)]
        if name and not versions:
            raise NotFound(f"there is no model {name!r}; `fermion models` lists them.", what="model")
        broken = {version.path: list(repository.verify(version)) for version in versions} if verify else {}
        if as_json:
            print_json(
                [
                    {
                        "path": v.path, "checksum": v.checksum, "size_bytes": v.size_bytes, "created_at": v.created_at.isoformat(),
                        "metrics": dict(v.metrics), "lineage": dict(v.lineage), "uri": v.uri,
                        **({"problems": broken[v.path]} if verify else {}),
                    }
                    for v in versions
                ]
            )  # fmt: skip
        else:
            columns = ["version", "checksum", "bytes", "published (UTC)", "metrics"]
            rows = [[v.path, v.checksum if wide else short(v.checksum), v.size_bytes, clock(v.created_at), _metrics(v)] for v in versions]  # fmt: skip
            if verify:
                columns.append("verified")
                rows = [[*row, "; ".join(broken[v.path]) or "yes"] for row, v in zip(rows, versions, strict=True)]
            if wide:
                columns.append("uri")
                rows = [[*row, v.uri] for row, v in zip(rows, versions, strict=True)]
            console.print(table("Models", columns, rows, folds=("checksum", "uri") if wide else ()))
        if any(broken.values()):
            raise typer.Exit(Exit.FAILED)


def _metrics(version: ModelVersion) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in version.metrics.items())


@datasets.callback(invoke_without_command=True)
def list_datasets(command: typer.Context, wide: Wide = False, as_json: Json = False) -> None:
    """List the datasets and their versions; or register one."""
    if command.invoked_subcommand is not None:
        return
    with session(as_json) as here:
        from fermion.usecases.datasets import known_datasets

        known = known_datasets(here.platform)
        configured = here.platform.rules.datasets
        source = {name: "configured" if name in configured else "registered" for name in known}
        with here.platform.store.read() as tx:
            versions = {name: tx.catalog.dataset_versions(name) for name in sorted(known)}
        if as_json:
            print_json(
                [
                    {"name": name, "from": source[name], "uri": known[name], "versions": [dataset_payload(version) for version in found]}
                    for name, found in versions.items()
                ]
            )  # fmt: skip
            return
        rows = [
            (name, source[name], (found[0].checksum if wide else short(found[0].checksum)) if found else "not read yet", len(found), known[name])
            for name, found in versions.items()
        ]  # fmt: skip
        folds = ("uri", "newest") if wide else ("uri",)
        console.print(table("Datasets", ("name", "from", "newest", "versions", "uri"), rows, folds=folds))


@datasets.command("register")
def datasets_register(
    name: Annotated[str, typer.Argument(help="What requests call it, as digits.")],
    source: Annotated[str, typer.Argument(help="A folder, or s3://bucket/prefix; within data.roots.")],
    as_json: Json = False,
) -> None:
    """Register what lies there now as a dataset, or as its next version: every file's checksum is read."""
    with session(as_json) as here:
        from fermion.usecases.datasets import register_dataset

        uri = source if "://" in source else Path(source).absolute().as_uri()
        made = register_dataset(here.platform, name, uri, actor=here.user)
        version = made.version
        if as_json:
            print_json({"name": name, "uri": uri, "is_new": made.is_new, **dataset_payload(version)})
            return
        size = f"{counted(len(version.files), 'file')}, {counted(version.size_bytes, 'byte')}"
        new = "Its content is new; the next sync announces it." if made.is_new else "Its content was known already."
        console.print(f"{name} is {version.checksum}, {size} at {uri}. {new}", markup=False, soft_wrap=True)


@datasets.command("forget")
def datasets_forget(name: Annotated[str, typer.Argument(help="A registered dataset.")], as_json: Json = False) -> None:
    """Let no further job ask for a registered dataset. Its files and what jobs have pinned stay."""
    with session(as_json) as here:
        from fermion.usecases.datasets import forget_dataset

        forget_dataset(here.platform, name, actor=here.user)
        if as_json:
            print_json({"name": name})
        else:
            console.print(f"{name} is forgotten; its files stay.", markup=False)


def doctor(as_json: Json = False) -> None:
    """Examine the installation and say what to do about what is not well."""
    with session(as_json) as here:
        _doctor(here, as_json)


def _doctor(here: Session, as_json: bool) -> None:
    from fermion.usecases.doctor import examine

    found = examine(here.platform, here.runs, how_to_start=here.how_to_start)
    if as_json:
        print_json(
            {
                "ok": found.ok,
                "open_leases": found.open_leases,
                "leaked_gpu_seconds": None if found.leaked_gpu_seconds is None else round(found.leaked_gpu_seconds, 3),
                "orphans": None if found.orphans is None else list(found.orphans),
                "checks": [
                    {"name": c.name, "ok": c.ok, "detail": c.detail, "what_to_do": c.to_do} for c in found.checks
                ],
            }
        )
    else:
        for check in found.checks:
            mark = "[green]✓[/]" if check.ok else "[red]✗[/]"
            console.print(f"{mark} {check.name}: ", end="")
            told = f"{check.detail.rstrip('.')}. {check.to_do}" if check.to_do else check.detail
            console.print(told, markup=False, soft_wrap=True)
    if not found.ok:
        raise typer.Exit(Exit.FAILED)


def retain(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Delete nothing; say what the staged models would give up.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Forget now what its retention has ended, and bring the caches below their caps, as keep_house does daily."""
    with session(as_json) as here:
        from fermion.usecases.retain import retain as forget

        told = forget(here.platform, dry_run=dry_run)
        if as_json:
            print_json({"dry_run": dry_run, "forgotten": list(told)})
            return
        for line in told or ["nothing"]:
            console.print(f"{'would go: ' if dry_run else ''}{line}", markup=False, soft_wrap=True)
