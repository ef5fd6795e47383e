"""One installation for each test."""

from __future__ import annotations

from pathlib import Path

import pytest
from installations import Installation


@pytest.fixture
def installed(tmp_path: Path) -> Installation:
    return Installation(tmp_path)
