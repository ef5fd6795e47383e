"""The sleeper with a child that leaves its process group and its session, as a badly written data loader does."""

from __future__ import annotations

import os
import runpy
import time


def leave_a_child() -> None:
    """A grandchild in a session of its own, with nothing of ours open, that outlives us if it may."""
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork() == 0:
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        time.sleep(600)
    os._exit(0)


leave_a_child()
runpy.run_path("sleep.py", run_name="__main__")
