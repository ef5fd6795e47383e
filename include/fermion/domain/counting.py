"""A number with its noun, as a sentence needs it."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """``1 GPU`` or ``2 GPUs``; ``plural`` where an s does not do."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
