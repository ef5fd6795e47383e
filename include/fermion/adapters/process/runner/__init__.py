"""Runs one training or one replica away from whoever started it. Started by ``runner.py``, read by the driver.

A runner detaches (double fork, own session), waits suspended for its go, executes the command in a process group of its
own, keeps its log and use, enforces its limits, obeys a stop and leaves an exit record; a replica's also asks the probes and
starts the server again when it ends. A guard above it ends what a killed runner leaves behind. It decides nothing about
leases: it obeys files in its folder, which docs/process-driver.md describes.

Standard library only, and only imports within this package: a runner outlives the platform that started it.
"""

from __future__ import annotations

from .files import (
    ERRORS,
    EXIT,
    GO,
    GO_LOCK,
    HEARTBEAT,
    ORDER,
    PROBES,
    RUNNER,
    RUNNER_LOCK,
    STARTED,
    STOP,
    USAGE,
    locked,
    read_json,
    sync_folder,
    write_json,
)
from .groups import Cgroup
from .keeper import FOLDER_GONE_S, GO_SIGNAL, RECHECK_S, STOP_SIGNAL
from .output import MAX_PROGRESS_LINE, LogFile, ProgressFile, dropped_line, head_bytes
from .processes import boot_id, is_alive, kill, pid_namespace, read_process

__all__ = [
    "ERRORS",
    "EXIT",
    "FOLDER_GONE_S",
    "GO",
    "GO_LOCK",
    "GO_SIGNAL",
    "HEARTBEAT",
    "MAX_PROGRESS_LINE",
    "ORDER",
    "PROBES",
    "RECHECK_S",
    "RUNNER",
    "RUNNER_LOCK",
    "STARTED",
    "STOP",
    "STOP_SIGNAL",
    "USAGE",
    "Cgroup",
    "LogFile",
    "ProgressFile",
    "boot_id",
    "dropped_line",
    "head_bytes",
    "is_alive",
    "kill",
    "locked",
    "pid_namespace",
    "read_json",
    "read_process",
    "sync_folder",
    "write_json",
]
