"""Runs the chosen benchmarks of one kind and prints their lines; each is a module of this folder with a ``main``."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence


def run(about: str | None, names: Sequence[str], *, long: str | None = None) -> int:
    """Run the chosen ones, one after the other, on the same machine; 1 when one does not hold.

    ``long`` says what ``--long`` is for, where there is one.
    """
    asked = argparse.ArgumentParser(description=about)
    asked.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    asked.add_argument("--short", action="store_true", help="small sizes, to see that it runs; bars are not judged")
    if long is not None:
        asked.add_argument("--long", action="store_true", help=long)
    given = asked.parse_args()
    missed = 0
    for name in given.only:
        for line in importlib.import_module(f"tests.benchmarks.{name}").main(given):
            line.show()
            missed += line.holds is False
    return 1 if missed else 0
