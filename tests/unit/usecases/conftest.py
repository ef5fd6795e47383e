"""A platform in memory for every test of a use case."""

from __future__ import annotations

from pathlib import Path

import pytest
from world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Four declared slots on one node."""
    return World(tmp_path)
