"""The benchmarks of training: ``python -m tests.benchmarks.training [--only NAME …] [--short] [--long]``.

Prints one JSON object a line (``docs/benchmarks.md`` says what each number is); exits with 1 when one does not hold.
"""

from __future__ import annotations

from tests.benchmarks.runner import run

NAMES = ("admission", "hold_overhead", "pipeline_overhead", "slots_busy", "model_save")

if __name__ == "__main__":
    raise SystemExit(run(__doc__, NAMES, long="slots_busy in its full length (over ten minutes)"))
