"""Several who do one thing at once on one database."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fermion.adapters.sql import open_store
from fermion.ports import Store


def race(url: str, step: Callable[[Store, int], bool], *, racers: int = 8) -> list[bool]:
    """The outcomes of that many, each on a store of its own."""
    stores = [open_store(url) for _ in range(racers)]
    try:
        with ThreadPoolExecutor(racers) as pool:
            return list(pool.map(step, stores, range(racers)))
    finally:
        for store in stores:
            store.close()
