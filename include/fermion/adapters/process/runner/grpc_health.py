"""The minimum of HTTP/2 (RFC 9113) and gRPC that asks ``grpc.health.v1.Health/Check`` once. Bytes in, bytes out; no socket.

It sends its one request and reads frames until the answer's message or its refusal. Header blocks of the server are not
decoded (that needs Huffman codes and a table), so a refusal is known as one but not by its status.
"""

from __future__ import annotations

SERVING = 1

_STATUSES = {0: "UNKNOWN", SERVING: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_ACK, _END_STREAM, _END_HEADERS, _PADDED = 0x1, 0x1, 0x4, 0x8
_STREAM = 1
_MOST_BYTES = 1024 * 1024


class HealthCheck:
    """One call. ``service`` empty: the whole server. ``outgoing`` is what is to be sent next."""

    def __init__(self, authority: str, service: str = "") -> None:
        self.outgoing = _request(authority, service)
        self._unread = b""
        self._message = b""

    def feed(self, data: bytes) -> tuple[bool, str] | None:
        """Take what the server sent: whether it serves, in words why not; None: it has not said yet."""
        self._unread += data
        if len(self._unread) > _MOST_BYTES:
            return False, "sent more than a health check's answer"
        while len(self._unread) >= 9:
            size = int.from_bytes(self._unread[:3], "big")
            if len(self._unread) < 9 + size:
                return None
            kind, flags = self._unread[3], self._unread[4]
            stream = int.from_bytes(self._unread[5:9], "big") & 0x7FFFFFFF
            payload, self._unread = self._unread[9 : 9 + size], self._unread[9 + size :]
            verdict = (
                self._on_stream(kind, flags, payload)
                if stream == _STREAM
                else self._on_connection(kind, flags, payload)
            )
            if verdict is not None:
                return verdict
        return None

    def end(self) -> tuple[bool, str]:
        """The server has closed the connection without an answer."""
        return False, "closed the connection; does it speak gRPC?"

    def _on_connection(self, kind: int, flags: int, payload: bytes) -> tuple[bool, str] | None:
        if kind == _SETTINGS and not flags & _ACK:
            self.outgoing += _frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            self.outgoing += _frame(_PING, _ACK, 0, payload)
        elif kind == _GOAWAY:
            return False, f"refused the connection (GOAWAY, code {int.from_bytes(payload[4:8], 'big')})"
        elif kind > 9 or kind in (_DATA, _HEADERS):
            return False, "does not speak HTTP/2"
        return None

    def _on_stream(self, kind: int, flags: int, payload: bytes) -> tuple[bool, str] | None:
        if kind == _DATA:
            self._message += payload[1 : len(payload) - payload[0]] if flags & _PADDED and payload else payload
            verdict = _verdict(self._message)
            if verdict is not None:
                return verdict
        if kind == _RST_STREAM:
            return False, f"reset the call (code {int.from_bytes(payload[:4], 'big')})"
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            return False, "answered without a status; does it serve grpc.health.v1.Health?"
        return None


def _verdict(message: bytes) -> tuple[bool, str] | None:
    """What a length-prefixed HealthCheckResponse says; None while some of it is missing."""
    size = int.from_bytes(message[1:5], "big")
    if len(message) < 5 or len(message) < 5 + size:
        return None
    if message[0]:
        return False, "answered compressed, which was not asked for"
    body = message[5 : 5 + size]
    status = body[1] if len(body) >= 2 and body[0] == 0x08 else 0  # field 1, a varint; an absent field is 0
    return status == SERVING, f"answered {_STATUSES.get(status, status)}"


def _request(authority: str, service: str) -> bytes:
    name = service.encode()
    check = b"\x0a" + _varint(len(name)) + name if name else b""
    headers = b"".join(
        _literal(name, value)
        for name, value in (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/grpc.health.v1.Health/Check"),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "fermion-probe"),
        )
    )
    message = b"\0" + len(check).to_bytes(4, "big") + check
    return (
        _PREFACE
        + _frame(_SETTINGS, 0, 0, b"")
        + _frame(_HEADERS, _END_HEADERS, _STREAM, headers)
        + _frame(_DATA, _END_STREAM, _STREAM, message)
    )


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _literal(name: str, value: str) -> bytes:
    """A header field without indexing and without Huffman codes (RFC 7541, section 6.2.2)."""
    return b"\0" + _string(name.encode()) + _string(value.encode())


def _string(text: bytes) -> bytes:
    """A length with a prefix of 7 bits, then the bytes."""
    if len(text) < 127:
        return bytes((len(text),)) + text
    return b"\x7f" + _varint(len(text) - 127) + text


def _varint(number: int) -> bytes:
    """Base 128, lowest first: both protobuf's and HPACK's."""
    parts = bytearray()
    while number >= 128:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)
