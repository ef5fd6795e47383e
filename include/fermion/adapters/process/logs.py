"""Reads what a runner kept of a process's output, while it grows and afterwards. Offsets are bytes of the printed stream.

They stay valid when the middle was dropped and when head and tail are joined at the end (``runner.output``).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from fermion.adapters.process.runner import MAX_PROGRESS_LINE, dropped_line, head_bytes
from fermion.domain.workloads import Chunk

_DROPPED = re.compile(rb"\n\[fermion: (\d+) bytes dropped here; [^\n]{1,120}\]\n")
_TRIES = 5  # a segment may be rotated away between listing and opening it


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes ``start`` to ``end`` of the stream lie in ``path`` from ``at`` on."""

    start: int
    end: int
    path: Path
    at: int


def read_log(path: Path, *, kept: int, offset: int, limit: int) -> Chunk:
    """A piece of the log from stream offset ``offset``; ``kept`` is the limit it was written under.

    An offset in the dropped middle answers the line that says so and goes on after it.
    """
    for _ in range(_TRIES):
        try:
            pieces = _pieces(path, kept)
            if not pieces and not path.exists():
                return Chunk("", offset, True, is_missing=True)
            return _read(pieces, kept=kept, offset=max(0, offset), limit=max(1, limit))
        except FileNotFoundError:
            continue
    return Chunk("", offset, True)


def _read(pieces: list[_Piece], *, kept: int, offset: int, limit: int) -> Chunk:
    for piece in pieces:
        if offset < piece.start:
            return Chunk(_text(dropped_line(piece.start - offset, kept)), piece.start, False)
        if offset < piece.end:
            data = _bytes(piece, offset, min(limit, piece.end - offset))
            whole = _without_split_character(data)
            return Chunk(_text(whole), offset + len(whole), offset + len(data) >= pieces[-1].end)
    return Chunk("", offset, True)


def _pieces(path: Path, kept: int) -> list[_Piece]:
    """Where the stream lies now, in order."""
    segments = sorted(path.parent.glob(f"{path.name}.{'[0-9]' * 18}"))
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return []
    head = head_bytes(kept)
    if segments:
        starts = [int(segment.name.rpartition(".")[2]) for segment in segments]
        sizes = [segment.stat().st_size for segment in segments]
        tail = [_Piece(b, b + n, segment, 0) for b, n, segment in zip(starts, sizes, segments, strict=True) if n]
        return [_Piece(0, min(size, head), path, 0), *tail]
    marker = _marker(path, head) if size > head else None
    if marker is None:
        return [_Piece(0, size, path, 0)] if size else []
    after = head + int(marker[1])
    at = head + len(marker[0])
    return [_Piece(0, head, path, 0), _Piece(after, after + size - at, path, at)]


def _marker(path: Path, head: int) -> re.Match[bytes] | None:
    with path.open("rb") as file:
        file.seek(head)
        return _DROPPED.match(file.read(256))


def _bytes(piece: _Piece, offset: int, count: int) -> bytes:
    with piece.path.open("rb") as file:
        file.seek(piece.at + offset - piece.start)
        return file.read(count)


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")


def _without_split_character(data: bytes) -> bytes:
    """The data without a last character whose end is not there yet; all of it when there is nothing else."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-back] if back < length and len(data) > back else data
    return data


def read_progress(path: Path, *, offset: int, limit: int) -> Chunk:
    """Whole lines from byte ``offset`` on; a last line without its end waits for the next read."""
    offset = max(0, offset)
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(max(limit, MAX_PROGRESS_LINE + 1))
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        return Chunk("", offset, True)
    end = data.rfind(b"\n") + 1
    following = offset + end
    return Chunk(_text(data[:end]), following, offset + len(data) >= size)
