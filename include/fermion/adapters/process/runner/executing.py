"""Executes a command as a child that cannot outlive its runner: a process group of its own, no core dump, inside its limits."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence

from .files import write_text
from .processes import die_with


def execute(
    argv: Sequence[str],
    *,
    cwd: str,
    env: Mapping[str, str],
    stdout: int,
    stderr: int,
    join: Callable[[], None],
) -> int:
    """Execute the command; its process number. ``join`` is called in the child and puts it where its limits are kept.

    Raises:
        OSError, ValueError, subprocess.SubprocessError: it could not be executed.
    """
    runner = os.getpid()

    def become() -> None:
        die_with(runner)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        with contextlib.suppress(OSError):
            write_text("/proc/self/oom_score_adj", "500")  # it goes before the platform
        join()

    child = subprocess.Popen(
        argv,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        process_group=0,
        preexec_fn=become,
    )
    child.returncode = 0  # reaped by the runner, not by the Popen object
    return child.pid


def reason_of(error: Exception) -> str:
    """Why something could not be executed, in words, with the file that it was about where the system names one."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.strerror} ({error.filename})" if error.filename else error.strerror


def device_environment(env: Mapping[str, str], devices: list[str], *, declared: bool) -> dict[str, str]:
    """The environment with its devices; declared slots come without any CUDA id."""
    result = dict(env)
    result["FERMION_DEVICES"] = ",".join(devices)
    if declared:
        result["FERMION_DEVICES_DECLARED"] = "1"
    else:
        result["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return result
