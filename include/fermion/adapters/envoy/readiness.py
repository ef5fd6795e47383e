"""Whether the router is up: what ``fermion up`` waits for and ``fermion ps`` shows."""

from __future__ import annotations

from pathlib import Path

from fermion.adapters.envoy.admin import Admin
from fermion.adapters.envoy.layout import Layout


def problems(folder: Path) -> list[str]:
    """What is wrong with the router of that folder, one sentence each; empty when it carries requests."""
    return [] if Admin(Layout(folder).socket).is_live() else ["the router does not answer on its admin socket yet"]
