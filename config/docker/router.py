"""The router's program: prepares its files, and runs Envoy until it ends or is asked to.

What Envoy prints goes to the container's log and to a file in the state folder: why it refuses a change is said there and
nowhere else, and whoever made the change reads it there.
"""

import logging
import os
import signal
import subprocess
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

from fermion.settings import load
from fermion.wiring import router_command

HOST = "0.0.0.0"
"""Of the network that it shares with the model servers. Which of its ports can be reached from outside, compose says."""

LOG_LIMIT = 5 * 1024 * 1024
"""Bytes after which the file is begun anew; the one before it stays beside it."""


def run(command: list[str], log: Path) -> int:
    """The exit code of the command, once it has ended."""
    log.parent.mkdir(parents=True, exist_ok=True)
    words = logging.getLogger("router")
    words.addHandler(logging.StreamHandler())
    words.addHandler(RotatingFileHandler(log, maxBytes=LOG_LIMIT, backupCount=1))
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: program.terminate())
    for line in program.stdout or ():
        words.warning("%s", line.rstrip("\n"))
    code = program.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    settings = load()
    file = settings.state / "logs" / "router.log"
    port = int(os.environ["FERMION_ROUTER_PORT"])
    sys.exit(run(router_command(settings, host=HOST, port=port, log=file), file))
