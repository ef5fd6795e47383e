"""Fixtures for all tests. This folder is on the import path: ``from builders import make_job``."""

from __future__ import annotations

import os

from hypothesis import settings

from postgres import postgres_server

__all__ = ["postgres_server"]

# The same examples in every run, so that a red run says something about the change. HYPOTHESIS=explore looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("explore" if os.environ.get("HYPOTHESIS") == "explore" else "same")
