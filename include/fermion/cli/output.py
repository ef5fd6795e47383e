"""How the command answers: a table for people, JSON for programs, an exit code for both."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import IntEnum
from typing import NoReturn

from rich.console import Console
from rich.table import Table

from fermion.errors import (
    Conflict,
    FermionError,
    NotFound,
    NotPermitted,
    OutsideUnavailable,
    RequestRefused,
    SettingsInvalid,
)

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0
    FAILED = 1  # what was asked about ended badly (a failed job, a check that does not hold)
    REFUSED = 2  # the request or the configuration has problems; all of them were printed
    UNAVAILABLE = 3  # the platform or something outside does not answer; try again later
    NOT_FOUND = 4
    CONFLICT = 5
    NOT_PERMITTED = 6


def exit_code(error: FermionError) -> Exit:
    """The exit code that an error means."""
    table: tuple[tuple[type[FermionError], Exit], ...] = (
        (RequestRefused, Exit.REFUSED),
        (SettingsInvalid, Exit.REFUSED),
        (NotFound, Exit.NOT_FOUND),
        (Conflict, Exit.CONFLICT),
        (NotPermitted, Exit.NOT_PERMITTED),
        (OutsideUnavailable, Exit.UNAVAILABLE),
    )
    return next((code for kind, code in table if isinstance(error, kind)), Exit.FAILED)


def fail(error: FermionError, *, as_json: bool) -> NoReturn:
    """Print the error where it belongs and leave with its code."""
    if as_json:
        payload: dict[str, object] = {"error": error.code, "message": error.message}
        if isinstance(error, RequestRefused):
            payload["problems"] = [problem.to_payload() for problem in error.problems]
        print_json(payload)
    else:
        errors.print(error.message, style="red", markup=False, soft_wrap=True)
    sys.exit(exit_code(error))


def print_json(payload: object) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(payload, indent=2, default=str) + "\n")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table; hostile text in it stays text."""
    from rich.markup import escape

    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        made.add_column(column, no_wrap=place == 0, overflow="fold")
    for row in rows:
        made.add_row(*(escape("" if cell is None else str(cell)) for cell in row))
    return made


def seconds(value: float | None) -> str:
    """``12.3 s`` or ``4 min 05 s``; a dash for None."""
    if value is None:
        return "–"
    if value < 120:
        return f"{value:.1f} s"
    return f"{int(value // 60)} min {int(value % 60):02d} s"


def clock(at: datetime | None) -> str:
    """The time of day in UTC, with the date when it was another day; a dash for None."""
    if at is None:
        return "–"
    return at.strftime("%H:%M:%S" if at.date() == datetime.now(UTC).date() else "%Y-%m-%d %H:%M")
