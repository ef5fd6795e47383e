"""A small git server for tests: a bridge from HTTP on loopback to ``git http-backend``, with optional Basic auth.

It serves the bare repositories below a folder, and can be told to be slow, to redirect or to fail.
"""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


class GitServer:
    """Serves ``root`` at ``url`` while it is entered. ``account`` is (user, token) when it wants credentials."""

    def __init__(self, root: Path, *, account: tuple[str, str] | None = None) -> None:
        self.root = root
        self.account = account
        self.requests: list[str] = []
        self.authorizations: list[str] = []
        self.behave: Callable[[BaseHTTPRequestHandler], bool] = lambda request: False
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True

    @property
    def host(self) -> str:
        """``127.0.0.1:port``."""
        return f"127.0.0.1:{self._http.server_address[1]}"

    @property
    def url(self) -> str:
        """The URL of the served folder, without a slash at the end."""
        return f"http://{self.host}"

    def __enter__(self) -> GitServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


def _handler(server: GitServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(b"".join(_body(self)))

        def _answer(self, body: bytes) -> None:
            server.requests.append(f"{self.command} {self.path}")
            server.authorizations.append(self.headers.get("Authorization", ""))
            if server.behave(self):
                return
            if server.account is not None and self.headers.get("Authorization") != _basic(*server.account):
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="git"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            ran = subprocess.run(
                ["git", "http-backend"], input=body, capture_output=True, env=_environment(self, server), timeout=60
            )
            head, _, content = ran.stdout.partition(b"\r\n\r\n")
            self._send(head.decode(), content)

        def _send(self, head: str, content: bytes) -> None:
            headers = [line.split(": ", 1) for line in head.split("\r\n") if ": " in line]
            status = next((int(value.split(" ")[0]) for name, value in headers if name == "Status"), 200)
            self.send_response(status)
            for name, value in headers:
                if name not in ("Status", "Content-Length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(content)

    return Handler


def _basic(user: str, token: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{token}".encode()).decode()


def _body(request: BaseHTTPRequestHandler) -> Iterator[bytes]:
    if request.headers.get("Transfer-Encoding", "").lower() == "chunked":
        while size := int(request.rfile.readline().split(b";")[0], 16):
            yield request.rfile.read(size)
            request.rfile.readline()
        request.rfile.readline()
    else:
        yield request.rfile.read(int(request.headers.get("Content-Length", 0)))


def _environment(request: BaseHTTPRequestHandler, server: GitServer) -> dict[str, str]:
    parts = urlsplit(request.path)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | {
        "GIT_PROJECT_ROOT": str(server.root),
        "GIT_HTTP_EXPORT_ALL": "1",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        "REQUEST_METHOD": request.command,
        "PATH_INFO": parts.path,
        "QUERY_STRING": parts.query,
        "CONTENT_TYPE": request.headers.get("Content-Type", ""),
        "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_USER": server.account[0] if server.account else "",
    }
