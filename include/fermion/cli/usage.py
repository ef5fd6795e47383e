"""What was typed wrongly (an option that there is not, a value out of range) is answered as JSON too where that was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from fermion.cli.output import print_json


class Commands(TyperGroup):
    """The command with its subcommands, none of which has to know of this."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Read the words before the subcommand."""
        as_json = "--json" in args
        with _answered(as_json):
            made = super().make_context(info_name, args, parent, **extra)
        made.obj = as_json
        return made

    def invoke(self, ctx: Any) -> Any:
        """Read the subcommand's words, and run it."""
        with _answered(ctx.obj):
            return super().invoke(ctx)


@contextmanager
def _answered(as_json: bool) -> Iterator[None]:
    try:
        yield
    except typer.TyperException as wrong:
        if not as_json:
            raise
        print_json({"error": "usage", "message": wrong.format_message()})
        raise typer.Exit(wrong.exit_code) from wrong
