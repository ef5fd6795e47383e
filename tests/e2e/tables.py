"""What the kill matrix and the fault table share: rows run one after the other on one live platform, a table, a verdict."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from e2e.live import Live
from e2e.outages import NotAllowed


@dataclass
class Outcome:
    """One row of a table. ``leaked`` are GPUs held with nothing running after one sync; ``orphans`` live processes.

    ``skipped`` is why the row was not run; empty when it was. A skipped row is not ``ok``: nothing was shown.
    """

    row: str
    status: str = ""
    reason: str = ""
    leaked: int = 0
    orphans: int = 0
    seconds: float = 0.0
    ok: bool = False
    skipped: str = ""
    detail: str = ""

    @property
    def verdict(self) -> str:
        """The word that begins its line."""
        return "ok" if self.ok else "skip" if self.skipped else "FAIL"

    def skip(self, refused: NotAllowed) -> None:
        """Not run, with the reason; on CI that is a failure."""
        if os.environ.get("CI"):
            self.detail = f"not run, which CI may not do: {refused}"
        else:
            self.skipped = self.detail = str(refused)


Found = TypeVar("Found", bound=Outcome)


def attempt(live: Live, outcome: Found, work: Callable[[Found], None], clear: Callable[[], None]) -> Found:
    """The outcome of a row's work; an exception of any kind is one that is not ok, and what it left behind is cleared."""
    began = time.monotonic()
    try:
        live.settle()
        work(outcome)
    except NotAllowed as refused:
        outcome.skip(refused)
    except Exception as error:
        outcome.detail = f"{type(error).__name__}: {error}"
        traceback.print_exc(limit=-4, chain=False, file=sys.stderr)
        live.give_back()  # something that hangs would keep the rest from ending
        _clear(clear)
    finally:
        live.give_back()
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def _clear(clear: Callable[[], None]) -> None:
    """Nothing of a row that fell short stands in the way of the next one; what does not end is that one's to report."""
    try:
        clear()
    except Exception as error:
        print(f"not cleared: {error}", file=sys.stderr)  # noqa: T201


class Named(Protocol):
    """A row, as far as choosing one goes."""

    @property
    def name(self) -> str: ...

    @property
    def smoke(self) -> bool: ...


AnyRow = TypeVar("AnyRow", bound=Named)


def run_table(
    rows: Sequence[AnyRow],
    run: Callable[[Live, AnyRow], Found],
    line: Callable[[Found], str],
    *,
    about: str | None,
    result: Path,
    slots: int = 2,
) -> int:
    """Run the chosen rows on a platform of their own, print and write the table; the exit code."""
    options = _options(rows, about)
    chosen = [
        row for row in rows if (not options.only or row.name in options.only) and (not options.smoke or row.smoke)
    ]
    folder = Path(tempfile.mkdtemp(prefix=f"fermion-{result.stem}-"))
    folder.chmod(0o755)  # an unprivileged database server has to reach its folder
    live = Live(folder, slots=slots)
    outcomes: list[Found] = []
    try:
        live.up()
        for row in chosen:
            outcomes.append(run(live, row))
            print(line(outcomes[-1]), flush=True)  # noqa: T201
    finally:
        live.down()
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
        write(outcomes, result)
    print(closing_line(outcomes), flush=True)  # noqa: T201
    return exit_code(outcomes)


def _options(rows: Sequence[AnyRow], about: str | None) -> argparse.Namespace:
    asked = argparse.ArgumentParser(description=about)
    asked.add_argument("--smoke", action="store_true")
    asked.add_argument("--only", action="append", default=[], choices=[row.name for row in rows], metavar="NAME")
    asked.add_argument("--keep", action="store_true", help="keep the installation's folder")
    return asked.parse_args()


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 when no row fell short; a skipped one did not."""
    return 1 if any(outcome.verdict == "FAIL" for outcome in outcomes) else 0


def write(outcomes: Sequence[Outcome], file: Path) -> None:
    """The table for programs."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n", encoding="utf-8")


def closing_line(outcomes: Sequence[Outcome]) -> str:
    """How many rows of each kind."""
    count = Counter(outcome.verdict for outcome in outcomes)
    skipped = f", {count['skip']} skipped" if count["skip"] else ""
    return f"{count['ok']} passed, {count['FAIL']} failed{skipped}"
