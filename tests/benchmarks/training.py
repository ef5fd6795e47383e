"""The benchmarks of training: ``python -m tests.benchmarks.training [--only NAME …] [--short] [--long]``.

Prints one JSON object a line (``docs/benchmarks.md`` says what each number is); exits with 1 when one does not hold.
"""

from __future__ import annotations

import argparse
import importlib

NAMES = ("admission", "hold_overhead", "pipeline_overhead", "slots_busy", "model_save")


def main() -> int:
    """Run the chosen ones, one after the other, on the same machine."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    asked.add_argument("--short", action="store_true", help="small sizes, to see that it runs; bars are not judged")
    asked.add_argument("--long", action="store_true", help="slots_busy in its full length (over ten minutes)")
    given = asked.parse_args()
    missed = 0
    for name in given.only:
        for line in importlib.import_module(f"tests.benchmarks.{name}").main(given):
            line.show()
            missed += line.holds is False
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
