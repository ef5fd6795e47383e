"""``keep.py COMMAND...``: starts the command again when it ends by itself, within the same container.

Airflow's scheduler ends when its database is away for some seconds, and trainings of the process driver live in its
container: they must not end with it. A command whose first start lasts less than 10 s ends the container, with its code.
"""

import signal
import subprocess
import sys
import time

STARTED_S = 10.0
PAUSE_S = 1.0
STOPPING = (signal.SIGTERM, signal.SIGINT)


def keep(command: list[str]) -> int:
    """The exit code of the command once this process was asked to end, or failed at its first start."""
    asked: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _frame: object) -> None:
        asked.append(number)
        for program in running:
            program.send_signal(signal.SIGTERM)

    for number in STOPPING:
        signal.signal(number, pass_on)
    began = time.monotonic()
    starts = 0
    code = 0
    while not asked:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        running[:] = [subprocess.Popen(command, preexec_fn=_take_signals)]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        code = running[0].wait()
        starts += 1
        if asked or (starts == 1 and time.monotonic() - began < STARTED_S):
            break
        sys.stderr.write(f"fermion: {command[0]} ended with code {code}; it is started again (time {starts})\n")
        sys.stderr.flush()
        time.sleep(PAUSE_S)
    return code if code >= 0 else 128 - code


def _take_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]))
