"""``docs/state.md`` says what a row of every table means."""

from __future__ import annotations

import re
from pathlib import Path

from fermion.adapters.sql.tables import VERSION_TABLE, metadata

PAGE = Path(__file__).parents[4] / "docs/state.md"


def test_the_page_names_exactly_the_tables() -> None:
    section = PAGE.read_text().split("## Tables")[1].split("\n## ")[0]
    first_cells = re.findall(r"^\| (`.+?) \|", section, re.MULTILINE)
    named = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    assert named == {*metadata.tables, VERSION_TABLE}
