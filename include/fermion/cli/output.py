"""How the command answers: a table for people, JSON for programs, an exit code for both."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from enum import IntEnum
from typing import NoReturn

from rich.cells import cell_len
from rich.console import Console, ConsoleDimensions
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

UNWRAPPED = ConsoleDimensions(10_000, 25)

GAP = 2
WHOLE = 8  # cells up to this width keep their spaces together
FOLDED = 12  # what may break anywhere keeps this width


class Paper(Console):
    """Wraps at the width of a terminal; what goes into a file or a pipe is not wrapped."""

    @property
    def size(self) -> ConsoleDimensions:
        """The terminal's; elsewhere wider than any line."""
        return super().size if self.is_terminal else UNWRAPPED

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size


console = Paper(highlight=False)
errors = Paper(stderr=True, highlight=False)


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0
    FAILED = 1  # what was asked about ended badly (a failed job, a check that does not hold)
    REFUSED = 2  # the request or the configuration has problems; all of them were printed
    UNAVAILABLE = 3  # the platform or something outside does not answer; try again later
    NOT_FOUND = 4
    CONFLICT = 5
    NOT_PERMITTED = 6
    GOES_ON = 7  # the time for watching is over and the job goes on
    INTERRUPTED = 130  # Ctrl-C, as every shell has it


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


def fail(error: FermionError, *, as_json: bool, what_to_do: str = "") -> NoReturn:
    """Print the error where it belongs, and what to do that it does not say, and leave with its code."""
    message = f"{error.message.rstrip('.')}. {what_to_do}" if what_to_do else error.message
    if as_json:
        payload: dict[str, object] = {"error": error.code, "message": message}
        if isinstance(error, RequestRefused):
            payload["problems"] = [problem.to_payload() for problem in error.problems]
        print_json(payload)
    else:
        errors.print(message, style="red", markup=False, soft_wrap=True)
    sys.exit(exit_code(error))


def print_json(payload: object) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(payload, indent=2, default=str) + "\n")


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, folds: Collection[str] = ()
) -> Table:
    """A plain table; hostile text in it stays text. Words break only in the columns that ``folds`` names."""
    from rich.markup import escape

    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    least = [_least([name, *(row[place] for row in cells)], name in folds) for place, name in enumerate(columns)]
    natural = [max(cell_len(name), *(cell_len(row[place]) for row in cells), 0) for place, name in enumerate(columns)]
    made = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    made.show_header = any(columns)
    for name, width in zip(columns, _widths(natural, least, console.width - GAP * (len(columns) - 1)), strict=True):
        made.add_column(name, width=width, overflow="fold")
    for row in cells:
        made.add_row(*map(escape, row))
    return made


def _least(column: Sequence[str], may_fold: bool) -> int:
    """The width at which no word of the column breaks, and nothing short is taken apart."""
    kept = [cell if cell_len(cell) <= WHOLE else max(cell.split(), key=cell_len, default="") for cell in column]
    longest = max(map(cell_len, kept))
    return min(longest, FOLDED) if may_fold else longest


def _widths(natural: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """A width for each column: what it takes where there is room, else the widest gives way first."""
    widths = list(natural)
    while sum(widths) > room:
        above = [place for place, width in enumerate(widths) if width > least[place]]
        if not above:
            break
        widths[max(above, key=lambda place: widths[place])] -= 1
    return widths


def short(checksum: str) -> str:
    """The first twelve digits of a checksum, for a table."""
    return checksum.rpartition(":")[2][:12]


def seconds(value: float | None) -> str:
    """``12.3 s`` or ``4 min 05 s``; a dash for None."""
    if value is None:
        return "–"
    if value < 120:
        return f"{value:.1f} s"
    return f"{int(value // 60)} min {int(value % 60):02d} s"


def filled(items: Iterable[str], *, gap: int = GAP, beside: int = 0) -> str:
    """The items side by side in as few lines as the terminal allows; none is taken apart. ``beside``: cells that are not free."""
    room = console.width - beside
    lines: list[str] = []
    for item in items:
        longer = f"{lines[-1]}{' ' * gap}{item}" if lines else item
        if lines and cell_len(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(item)
    return "\n".join(lines)


def clock(at: datetime | None) -> str:
    """The time of day in UTC, with the date when it was another day; a dash for None."""
    if at is None:
        return "–"
    return at.strftime("%H:%M:%S" if at.date() == datetime.now(UTC).date() else "%Y-%m-%d %H:%M")
