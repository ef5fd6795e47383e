"""Commands that show what there is: pools, leases, models, datasets; and whether all is well."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fermion.cli.output import Exit, clock, console, print_json, table
from fermion.cli.payloads import dataset_payload, lease_payload, pool_payload
from fermion.cli.session import Session, session
from fermion.errors import NotFound

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]


datasets = typer.Typer(no_args_is_help=False)


def register(app: typer.Typer) -> None:
    """Mount the commands."""
    for command in (pools, ledger, models, doctor):
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
        console.print(
            table(
                "Held now",
                ("lease", "pool", "gpus", "since (UTC)"),
                [(x.id, x.pool, x.gpus, clock(x.granted_at)) for x in live],
            )
        )
        console.print(
            table(
                "Ledger",
                ("at (UTC)", "gpus", "holder", "pool", "what"),
                [(clock(e.at), f"{e.gpus:+d}", e.holder, e.pool, e.cause or e.kind) for e in entries],
            )
        )


def models(
    name: Annotated[str | None, typer.Argument(help="A model: its versions.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte again and compare checksums.")] = False,
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
            rows = [
                (v.path, v.checksum[:19], v.size_bytes, clock(v.created_at), ", ".join(f"{k} {x:.4g}" for k, x in v.metrics.items()), "; ".join(broken.get(v.path, [])))
                for v in versions
            ]  # fmt: skip
            console.print(
                table(
                    "Models",
                    ("version", "checksum", "bytes", "published (UTC)", "metrics", "problems" if verify else ""),
                    rows,
                )
            )
        if any(broken.values()):
            raise typer.Exit(Exit.FAILED)


@datasets.callback(invoke_without_command=True)
def list_datasets(command: typer.Context, as_json: Json = False) -> None:
    """List the datasets and their versions; or register one."""
    if command.invoked_subcommand is not None:
        return
    with session(as_json) as here:
        from fermion.usecases.datasets import known_datasets

        known = known_datasets(here.platform)
        with here.platform.store.read() as tx:
            versions = {name: tx.catalog.dataset_versions(name) for name in sorted(known)}
        if as_json:
            print_json(
                [
                    {"name": name, "uri": known[name], "versions": [dataset_payload(version) for version in found]}
                    for name, found in versions.items()
                ]
            )
            return
        rows = [
            (name, known[name], found[0].checksum[:19] if found else "not read yet", len(found))
            for name, found in versions.items()
        ]
        console.print(table("Datasets", ("name", "uri", "newest version", "versions"), rows))


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
        version = register_dataset(here.platform, name, uri, actor=here.user)
        if as_json:
            print_json({"name": name, "uri": uri, **dataset_payload(version)})
            return
        told = f"{name} is {version.checksum}, {len(version.files)} files, {version.size_bytes:,} bytes at {uri}."
        console.print(f"{told} The next sync announces it if it is new.", markup=False, soft_wrap=True)


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

    found = examine(here.platform, here.runs)
    if as_json:
        print_json(
            {
                "ok": found.ok,
                "open_leases": found.open_leases,
                "leaked_gpu_seconds": round(found.leaked_gpu_seconds, 3),
                "orphans": list(found.orphans),
                "checks": [
                    {"name": c.name, "ok": c.ok, "detail": c.detail, "what_to_do": c.to_do} for c in found.checks
                ],
            }
        )
    else:
        for check in found.checks:
            mark = "[green]✓[/]" if check.ok else "[red]✗[/]"
            console.print(f"{mark} {check.name}: ", end="")
            console.print(f"{check.detail} {check.to_do}".strip(), markup=False, soft_wrap=True)
    if not found.ok:
        raise typer.Exit(Exit.FAILED)
