"""The ``fermion`` command: mounts what the other files of this folder declare."""

from __future__ import annotations

import typer

from fermion.cli import demo, installation, inventory, jobs, services
from fermion.cli.usage import Commands

app = typer.Typer(
    name="fermion",
    cls=Commands,
    help="Train and serve models on GPUs; the workflows are Airflow DAGs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (demo, installation, jobs, inventory, services):
    module.register(app)


def main() -> None:
    """The console script."""
    app()
