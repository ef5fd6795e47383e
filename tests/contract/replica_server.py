"""A model server for tests: HTTP on ``PORT``, and it does what files in the folder ``PUPPET`` say.

``hold``: does not open its port. ``unready``, ``not_live``: that path answers 503. ``broken``: ends at once with code 1.
``crash``: ends with the code in it, once. ``say``: prints what is in it, once. ``deaf``: ignores TERM from then on.
"""

import http.server
import os
import signal
import threading
import time
from pathlib import Path

PUPPET = Path(os.environ["PUPPET"])


class Handler(http.server.BaseHTTPRequestHandler):
    """``/ready``, ``/live``, and everything else with the process number."""

    def do_GET(self) -> None:
        said = {"/ready": "unready", "/live": "not_live"}.get(self.path)
        body = str(os.getpid()).encode()
        self.send_response(503 if said and (PUPPET / said).exists() else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Its output belongs to the tests."""


def taken(name: str) -> str | None:
    """What the order says; it is given once."""
    try:
        (PUPPET / name).rename(PUPPET / f"{name}.taken")
    except FileNotFoundError:
        return None
    return (PUPPET / f"{name}.taken").read_text(encoding="utf-8")


def obey() -> None:
    """One round of orders."""
    if (PUPPET / "broken").exists():
        os._exit(1)
    if (code := taken("crash")) is not None:
        os._exit(int(code))
    if (text := taken("say")) is not None:
        os.write(1, text.encode() + b"\n")
    if (PUPPET / "deaf").exists() and not (PUPPET / "deaf.obeyed").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (PUPPET / "deaf.obeyed").touch()


while (PUPPET / "hold").exists():
    obey()
    time.sleep(0.01)
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
while True:
    obey()
    time.sleep(0.01)
