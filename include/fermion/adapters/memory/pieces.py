"""Pieces of a log that is kept in memory."""

from __future__ import annotations

from fermion.domain.workloads import Chunk


def piece_of(everything: bytes, offset: int, limit: int) -> Chunk:
    """At most ``limit`` bytes from ``offset`` on; a character is never cut."""
    end = min(offset + limit, len(everything))
    while offset < end < len(everything) and everything[end] & 0xC0 == 0x80:
        end -= 1
    return piece_up_to(everything, offset, end)


def piece_up_to(everything: bytes, offset: int, end: int) -> Chunk:
    """From ``offset`` to ``end``, and whether nothing is behind it."""
    piece = everything[offset:end]
    end = offset + len(piece)
    return Chunk(piece.decode(errors="replace"), end, end >= len(everything))
