"""What a process prints: the log with its head and a rolling tail, and the lines of progress among it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import time
from collections.abc import Callable, Iterator

PIPE_BYTES = 1024 * 1024
MAX_PROGRESS_LINE = 16 * 1024

_MIB = 1024 * 1024


def head_bytes(limit: int) -> int:
    """How much of a log's beginning is kept whatever follows."""
    return limit // 2


def dropped_line(count: int, limit: int) -> bytes:
    """The line that stands in a log where bytes were dropped."""
    return f"\n[fermion: {count} bytes dropped here; a log of this workload is kept to {limit} bytes]\n".encode()


class LogFile:
    """Keeps the head of a stream and a rolling tail, at most ``limit`` bytes while it grows.

    The head lies in the file itself, the tail in two segments ``<file>.<offset in the stream>`` that take turns.
    ``finish`` joins them into one readable file. A disk that is full costs the bytes that did not fit, nothing else.
    A log that was not finished may be continued: its writer was killed and has a successor.
    """

    def __init__(self, path: str, limit: int, *, continued: bool = False) -> None:
        self.path = path
        self.limit = limit
        self.total = 0
        self.is_at_line_start = True
        self._head = head_bytes(limit)
        self._segment = max(1, limit // 4)
        self._segments: list[tuple[int, int]] = []  # (offset in the stream, descriptor), oldest first
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if continued:
            self._continue()
            return
        for name in _segment_names(path):
            os.unlink(name)
        os.ftruncate(self._file, 0)

    def _continue(self) -> None:
        self.total = os.fstat(self._file).st_size
        for name in _segment_names(self.path):
            descriptor = os.open(name, os.O_RDWR | os.O_CLOEXEC)
            start = int(name.rpartition(".")[2])
            self._segments.append((start, descriptor))
            self.total = start + os.fstat(descriptor).st_size

    def write(self, data: bytes) -> None:
        """Append."""
        view = memoryview(data)
        while view:
            target, at, room = self._place()
            part = view[:room]
            with contextlib.suppress(OSError):
                os.pwrite(target, part, at)
            self.total += len(part)
            view = view[len(part) :]
        if data:
            self.is_at_line_start = data.endswith(b"\n")

    def _place(self) -> tuple[int, int, int]:
        """Where the next bytes go: descriptor, offset in it, room there."""
        if self.total < self._head:
            return self._file, self.total, self._head - self.total
        if not self._segments or self.total - self._segments[-1][0] >= self._segment:
            self._rotate()
        start, descriptor = self._segments[-1]
        return descriptor, self.total - start, self._segment - (self.total - start)

    def _rotate(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._segments.append((self.total, os.open(f"{self.path}.{self.total:018d}", flags, 0o644)))
        if len(self._segments) > 2:
            start, descriptor = self._segments.pop(0)
            os.close(descriptor)
            os.unlink(f"{self.path}.{start:018d}")

    def finish(self) -> None:
        """Join head, a line about what was dropped, and tail into one file."""
        if self._segments:
            with contextlib.suppress(OSError):
                self._join()
        os.close(self._file)

    def _join(self) -> None:
        at = self._head
        dropped = self._segments[0][0] - self._head
        if dropped:
            at += os.pwrite(self._file, dropped_line(dropped, self.limit), at)
        for _, descriptor in self._segments:
            position = 0
            while piece := os.pread(descriptor, _MIB, position):
                position += len(piece)
                at += os.pwrite(self._file, piece, at)
        # Only now: until the joined file is whole, readers go by the segments and clip the file at its head.
        for start, descriptor in self._segments:
            os.close(descriptor)
            os.unlink(f"{self.path}.{start:018d}")


def _segment_names(path: str) -> list[str]:
    folder, base = os.path.split(path)
    names = os.listdir(folder)
    return sorted(os.path.join(folder, n) for n in names if n.startswith(base + ".") and n[len(base) + 1 :].isdigit())


class ProgressFile:
    """Keeps the lines of standard output that begin with ``{``, at most ``limit`` bytes and never a flood.

    Each tier of fill has a rate (lines a second) and a burst; a line that comes too fast is held back and replaced by
    the next one, so the newest always arrives. The file slows down as it fills, so it lasts as long as the training.
    """

    TIERS = ((0.5, 50.0, 500.0), (0.9, 1.0, 1.0), (1.0, 1 / 60, 1.0))

    def __init__(self, path: str, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._open: bytearray | None = None  # a line whose end has not come yet; None: not a progress line
        self._at_start = True
        self._held: bytes | None = None
        self._allowance = self.TIERS[0][2]
        self._checked = clock()
        self.written = 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def feed(self, data: bytes) -> None:
        """Take what was printed; whole progress lines in it are kept."""
        for line in self._lines(data):
            if self._may_write(len(line)):
                self._held = None
                self._append(line)
            else:
                self._held = line

    def flush(self) -> None:
        """Write the line held back, if its time has come."""
        if self._held is not None and self._may_write(len(self._held)):
            line, self._held = self._held, None
            self._append(line)

    def finish(self) -> None:
        """Write the newest line whatever the rate, and close; a last line without its newline counts as whole."""
        last = bytes(self._open) if self._open else self._held
        if last and self.written + len(last) < self._limit:
            self._append(last)
        os.close(self._file)

    def _lines(self, data: bytes) -> Iterator[bytes]:
        start = 0
        if not self._at_start:
            end = data.find(b"\n")
            self._grow(data if end < 0 else data[:end])
            if end < 0:
                return
            if self._open:
                yield bytes(self._open)
            self._open, self._at_start, start = None, True, end + 1
        while start < len(data):
            if data[start] == 0x7B:
                end = data.find(b"\n", start)
                if end < 0:
                    self._open = bytearray()
                    self._grow(data[start:])
                    break
                if end - start <= MAX_PROGRESS_LINE:
                    yield data[start:end]
                start = end + 1
            else:
                found = data.find(b"\n{", start)
                if found < 0:
                    break
                start = found + 1
        self._at_start = data.endswith(b"\n") if data else self._at_start

    def _grow(self, piece: bytes) -> None:
        if self._open is not None:
            fits = len(self._open) + len(piece) <= MAX_PROGRESS_LINE
            self._open = self._open + piece if fits else None

    def _may_write(self, size: int) -> bool:
        if self.written + size + 1 > self._limit - MAX_PROGRESS_LINE:
            return False  # what is left is for the last line
        rate, burst = next((r, b) for share, r, b in self.TIERS if self.written <= share * self._limit)
        now = self._clock()
        self._allowance = min(burst, self._allowance + (now - self._checked) * rate)
        self._checked = now
        if self._allowance < 1.0:
            return False
        self._allowance -= 1.0
        return True

    def _append(self, line: bytes) -> None:
        with contextlib.suppress(OSError):
            self.written += os.write(self._file, line + b"\n")


class Output:
    """What one process after the other prints: all into the log, progress from standard output only."""

    def __init__(self, log: LogFile, progress: ProgressFile | None = None) -> None:
        self.log = log
        self.progress = progress
        self.readers: list[int] = []
        self._read_out = -1

    def open_pipes(self) -> tuple[int, int]:
        """New pipes for a process: what is to be its standard output and standard error."""
        self._read_out, write_out = _pipe()
        read_err, write_err = _pipe()
        self.readers = [self._read_out, read_err]
        return write_out, write_err

    def read(self, descriptor: int) -> bool:
        """Take what is there; False at the end of that pipe."""
        try:
            data = os.read(descriptor, PIPE_BYTES)
        except BlockingIOError:
            return True
        if not data:
            self.readers.remove(descriptor)
            os.close(descriptor)
            return False
        self.log.write(data)
        if self.progress is not None and descriptor == self._read_out:
            self.progress.feed(data)
        return True

    def read_ready(self) -> None:
        """Take what is there now."""
        for descriptor in select.select(self.readers, [], [], 0)[0] if self.readers else []:
            self.read(descriptor)

    def close_pipes(self) -> None:
        """Take what is left in the pipes after everybody has gone, and close them."""
        self._drain(5.0)
        for descriptor in self.readers:
            os.close(descriptor)  # somebody outside holds its other end
        self.readers = []

    def _drain(self, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while self.readers and time.monotonic() < deadline:
            ready, _, _ = select.select(self.readers, [], [], 0.1)
            if not ready:
                return  # somebody outside holds a pipe open and says nothing
            for descriptor in ready:
                self.read(descriptor)

    def finish(self) -> None:
        """Close log and progress."""
        self.close_pipes()
        self.log.finish()
        if self.progress is not None:
            self.progress.finish()


def _pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with contextlib.suppress(OSError):
        fcntl.fcntl(writer, 1031, PIPE_BYTES)  # F_SETPIPE_SZ
    return reader, writer
