"""A tiny model server for the router's tests: HTTP/1.1 and WebSocket on one loopback port, the standard library only.

    python router_replica.py NAME      prints its port, serves until it is killed

It answers every request with JSON: its name, the path, the cookies. The query orders something else: ``status=500``,
``sleep=0.5``, ``close=1`` (end the connection without an answer), ``break=1`` (in the middle of one). ``/health`` answers what
``Replica.healthy`` says; ``status`` and ``sleep_s`` are what it does where the query orders nothing.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys
import threading
from urllib.parse import parse_qs, urlsplit

WEBSOCKET_KEY = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Replica:
    """One server. ``served`` counts requests that were answered; ``started`` those that came."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self.healthy = True
        self.status = 200
        self.sleep_s = 0.0
        self.started = 0
        self.served = 0
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> Replica:
        """Serve from a thread of its own."""
        ready = threading.Event()
        threading.Thread(target=self._run, args=(ready,), daemon=True).start()
        assert ready.wait(10)
        return self

    def stop(self) -> None:
        """Refuse connections and drop those there are, as a killed process does."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)

    def resume(self) -> None:
        """Serve again on the same port."""
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)

    def serve_forever(self) -> None:
        """Serve from this thread and print the port."""
        ready = threading.Event()
        threading.Thread(target=self._say_port, args=(ready,), daemon=True).start()
        self._run(ready)

    def _say_port(self, ready: threading.Event) -> None:
        ready.wait()
        sys.stdout.write(f"{self.port}\n")
        sys.stdout.flush()

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._open())
        ready.set()
        self._loop.run_forever()

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort() if task.cancelled() else writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        target = first.split(" ")[1]
        if headers.get("upgrade", "").lower() == "websocket":
            await _echo(reader, writer, headers["sec-websocket-key"])
            return False
        if target == "/health":
            _answer(writer, 200 if self.healthy else 503, b"health")
            return True
        self.started += 1
        asked = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
        await asyncio.sleep(float(asked.get("sleep", self.sleep_s)))
        if "close" in asked:
            return False
        seen = {"name": self.name, "path": target, "cookie": headers.get("cookie"), "bytes": len(body)}
        text = json.dumps(seen).encode()
        if "break" in asked:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n" + text)
            await writer.drain()
            await asyncio.sleep(0.05)
            return False
        _answer(writer, int(asked.get("status", self.status)), text)
        await writer.drain()
        self.served += 1
        return True


def _answer(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
    """Send every short text frame back, unmasked."""
    accept = base64.b64encode(hashlib.sha1(key.encode() + WEBSOCKET_KEY).digest()).decode()
    writer.write(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        f"sec-websocket-accept: {accept}\r\n\r\n".encode()
    )
    while True:
        _, length = await reader.readexactly(2)
        mask = await reader.readexactly(4)
        payload = await reader.readexactly(length & 127)
        text = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
        writer.write(bytes((0x81, len(text))) + text)
        await writer.drain()


if __name__ == "__main__":
    Replica(sys.argv[1]).serve_forever()
