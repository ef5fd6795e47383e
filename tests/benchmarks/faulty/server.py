"""A model server that answers at once, until a file says that it shall not: HTTP/1.1 on ``PORT``, the standard library only.

The file is ``FAULT`` in its environment. ``errors`` in it: every answer is a 500. ``slow``: every answer comes 0.4 s later.
What is wrong with an answer stands in its header ``fault``.
"""

import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULT = os.environ.get("FAULT", os.devnull)
SLOW_S = 0.4


def fault() -> str:
    """What is wrong now; nothing when there is no such file."""
    try:
        with open(FAULT) as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


class Handler(BaseHTTPRequestHandler):
    """Answers everything."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self._answer()

    def _answer(self) -> None:
        wrong = fault()
        if wrong == "slow":
            time.sleep(SLOW_S)
        self.send_response(500 if wrong == "errors" else 200)
        self.send_header("fault", wrong)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *words: object) -> None:
        """A line a request would be measured too."""


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
