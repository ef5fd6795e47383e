"""The examples' git repositories and datasets, made in the state folder from ``include/examples``."""

from __future__ import annotations

import shutil
import subprocess
import sys

from fermion.errors import OutsideUnavailable
from fermion.settings import Settings

MADE_WITHIN_S = 120


def make_examples(settings: Settings) -> None:
    """Make what is not there yet; again it changes nothing unless the files changed.

    Raises:
        OutsideUnavailable: git is missing or failed.
    """
    if shutil.which("git") is None:
        raise OutsideUnavailable(
            "there is no `git` on the PATH, which fetches training code; install it (Debian: apt-get install git)",
            what="git",
        )
    maker = settings.root / "include/examples/make_repository.py"
    command = [sys.executable, str(maker), str(settings.examples_dir)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MADE_WITHIN_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise OutsideUnavailable(
            f"the examples' repositories were not made within {MADE_WITHIN_S} s", what="git"
        ) from error
    if done.returncode != 0:
        raise OutsideUnavailable(
            f"the examples' repositories could not be made: {done.stderr.strip()[-500:]}", what="git"
        )
