"""One question to a replica, asked without ever waiting: over HTTP, gRPC, TCP or by a command.

The runner's loop waits for a question's socket together with everything else, steps it when it is ready, and gives it up
at its deadline. Nothing here blocks, sleeps or starts a thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .endpoints import HOST
from .executing import execute, reason_of
from .grpc_health import HealthCheck

_MOST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether the probe succeeded, in words for people. ``nobody_listens``: the server has not opened the port yet."""

    ok: bool
    words: str
    nobody_listens: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """The replica's present process: where it listens, and how a command is executed beside it."""

    ports: Mapping[str, int]
    cwd: str
    env: Mapping[str, str]
    join: Callable[[], None]


class Question(Protocol):
    """A question on its way. ``reader`` and ``writer`` are what it waits for, None: nothing but a child's end."""

    reader: int | None
    writer: int | None

    def step(self) -> Answer | None:
        """Go on, because what it waits for is ready; the answer once it is there."""
        ...

    def reaped(self, ended: Mapping[int, int]) -> Answer | None:
        """Children have ended; the answer if one of them was it."""
        ...

    def close(self) -> None:
        """Give it up, or tidy up after its answer."""
        ...


def ask(probe: Mapping[str, Any], asked: Asked) -> Question | Answer:
    """Begin to ask; at once an answer where it is known at once. ``probe`` is the order's."""
    if probe["kind"] == "exec":
        return _execute(probe["command"], asked)
    port = asked.ports[probe["port"]]
    talk = {"http": _Http, "grpc": _Grpc, "tcp": _Tcp}[probe["kind"]](port, probe["path"])
    return talk.begin() or talk


class _Tcp:
    """The port takes a connection; the others go on from there."""

    def __init__(self, port: int, path: str) -> None:
        self.port = port
        self.path = path
        self.reader: int | None = None
        self.writer: int | None = None
        self.outgoing = b""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    def begin(self) -> Answer | None:
        """Connect; the loopback mostly answers that at once."""
        code = self._socket.connect_ex((HOST, self.port))
        if code not in (0, errno.EINPROGRESS):
            self.close()
            return self._cannot_connect(code)
        self.writer = self._socket.fileno()
        return None

    def step(self) -> Answer | None:
        """Connected, sent or received."""
        if self.writer is not None:
            code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code or self._socket.getsockname() == self._socket.getpeername():  # a port may connect to itself
                return self._cannot_connect(code or errno.ECONNREFUSED)
            self.writer = None
            return self.connected()
        try:
            data = self._socket.recv(_MOST_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            return Answer(ok=False, words=f"{self.name()}: {error.strerror}")
        answer = self.received(data) if data else self.ended()
        return answer or self._send()

    def connected(self) -> Answer | None:
        """What to do now that it is connected."""
        return Answer(ok=True, words=f"{self.name()} takes connections")

    def received(self, data: bytes) -> Answer | None:
        """Take what the server sent."""
        raise NotImplementedError

    def ended(self) -> Answer:
        """The server has closed the connection."""
        raise NotImplementedError

    def name(self) -> str:
        """What is asked, for people."""
        return f"port {self.port}"

    def reaped(self, ended: Mapping[int, int]) -> Answer | None:
        """No child of this question."""
        return None

    def close(self) -> None:
        """Drop the connection."""
        self._socket.close()

    def await_answer(self) -> Answer | None:
        """Send what is to be sent, and wait for what comes back."""
        self.reader = self._socket.fileno()
        return self._send()

    def _send(self) -> Answer | None:
        if self.outgoing:
            try:
                sent = self._socket.send(self.outgoing)
            except OSError as error:
                return Answer(ok=False, words=f"{self.name()}: {error.strerror}")
            self.outgoing = self.outgoing[sent:]  # a few hundred bytes: they always fit
        return None

    def _cannot_connect(self, code: int) -> Answer:
        refused = code == errno.ECONNREFUSED
        words = f"{self.name()}: nothing listens there" if refused else f"{self.name()}: {os.strerror(code)}"
        return Answer(ok=False, words=words, nobody_listens=refused)


class _Http(_Tcp):
    """GET answers 200 to 399."""

    def __init__(self, port: int, path: str) -> None:
        super().__init__(port, path)
        self._data = b""

    def name(self) -> str:
        return f"GET {self.path} on port {self.port}"

    def connected(self) -> Answer | None:
        head = f"GET {self.path} HTTP/1.1\r\nHost: {HOST}:{self.port}\r\nUser-Agent: fermion-probe\r\nAccept: */*\r\n"
        self.outgoing = f"{head}Connection: close\r\n\r\n".encode()
        return self.await_answer()

    def received(self, data: bytes) -> Answer | None:
        # Read to the end where it is near, because a server that is cut short may complain in its log.
        self._data += data
        return self._verdict() if len(self._data) >= _MOST_BYTES or _is_whole(self._data) else None

    def ended(self) -> Answer:
        return self._verdict()

    def _verdict(self) -> Answer:
        words = self._data.partition(b"\r\n")[0].split(b" ", 2)
        if not self._data.startswith(b"HTTP/1.") or len(words) < 2 or not words[1].isdigit():
            said = self._data[:40].decode(errors="replace")
            return Answer(ok=False, words=f"{self.name()}: no HTTP answer ({said!r})")
        status = int(words[1])
        return Answer(ok=200 <= status < 400, words=f"{self.name()} answered {status}")


def _is_whole(data: bytes) -> bool:
    """Whether an HTTP answer has come to its end, as far as its head says where that is."""
    head, gap, body = data.partition(b"\r\n\r\n")
    if not gap:
        return False
    fields = dict(line.lower().partition(b":")[::2] for line in head.split(b"\r\n")[1:])
    length = fields.get(b"content-length", b"").strip()
    if length.isdigit():
        return len(body) >= int(length)
    if fields.get(b"transfer-encoding", b"").strip() == b"chunked":
        return body.endswith(b"0\r\n\r\n")
    return head.split(b" ", 2)[1:2] in ([b"204"], [b"304"])


class _Grpc(_Tcp):
    """``grpc.health.v1.Health/Check`` answers SERVING; a path other than ``/`` names the service that is meant."""

    def __init__(self, port: int, path: str) -> None:
        super().__init__(port, path)
        self._check = HealthCheck(f"{HOST}:{port}", path.strip("/"))

    def name(self) -> str:
        return f"gRPC health check on port {self.port}"

    def connected(self) -> Answer | None:
        self._take_outgoing()
        return self.await_answer()

    def received(self, data: bytes) -> Answer | None:
        answer = self._check.feed(data)
        self._take_outgoing()
        return self._answer(*answer) if answer else None

    def ended(self) -> Answer:
        return self._answer(*self._check.end())

    def _answer(self, ok: bool, words: str) -> Answer:
        return Answer(ok=ok, words=f"{self.name()} {words}")

    def _take_outgoing(self) -> None:
        self.outgoing, self._check.outgoing = self.outgoing + self._check.outgoing, b""


class _Exec:
    """A command exits with 0."""

    reader: int | None = None
    writer: int | None = None

    def __init__(self, pid: int, name: str) -> None:
        self._pid = pid
        self._name = name
        self._is_over = False

    def step(self) -> Answer | None:
        """It waits for no descriptor."""
        return None

    def reaped(self, ended: Mapping[int, int]) -> Answer | None:
        """Its exit code is the answer."""
        if self._pid not in ended:
            return None
        self._is_over = True
        code = os.waitstatus_to_exitcode(ended[self._pid])
        how = f"exited with {code}" if code >= 0 else f"was ended by signal {-code}"
        return Answer(ok=code == 0, words=f"{self._name} {how}")

    def close(self) -> None:
        """Kill it with its process group; what left the group ends with the server."""
        if not self._is_over:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, signal.SIGKILL)


def _execute(command: list[str], asked: Asked) -> Question | Answer:
    nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        pid = execute(command, cwd=asked.cwd, env=asked.env, stdout=nothing, stderr=nothing, join=asked.join)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return Answer(ok=False, words=f"could not execute {command[0]!r}: {reason_of(error)}")
    finally:
        os.close(nothing)
    return _Exec(pid, " ".join(command)[:100])
