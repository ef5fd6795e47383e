"""Names of locks as the numbers that Postgres takes."""

from __future__ import annotations

from hashlib import blake2b


def lock_key(name: str) -> int:
    """A signed 64-bit number, the same in every process. The prefix keeps other programs' locks apart."""
    return int.from_bytes(blake2b(f"fermion:{name}".encode(), digest_size=8).digest(), "big", signed=True)
