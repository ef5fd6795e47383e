"""The benchmarks of serving: ``python -m tests.benchmarks.serving [--only NAME …] [--short]``.

Prints one JSON object a line (``docs/benchmarks.md`` says what each number is); exits with 1 when one does not hold.
"""

from __future__ import annotations

from tests.benchmarks.runner import run

NAMES = ("router_overhead", "split_error", "fault_to_safe", "decision", "deploy_overhead")

if __name__ == "__main__":
    raise SystemExit(run(__doc__, NAMES))
