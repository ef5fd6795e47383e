"""Runs one training or replica away from whoever started it: ``python -I -S runner.py <folder>``.

Needs the standard library only, and loads all of its package before it detaches, because it must go on while the
platform is upgraded under it. What it does is told by the package's own docstring.
"""

from __future__ import annotations

import importlib
import os
import sys


def main() -> int:
    """Detach a runner for the folder that the command line names."""
    package = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, os.path.dirname(package))
    detaching = importlib.import_module(f"{os.path.basename(package)}.detaching")
    del sys.path[0]
    return int(detaching.start(os.path.abspath(sys.argv[1])))


if __name__ == "__main__":
    raise SystemExit(main())
