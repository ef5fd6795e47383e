"""Fixtures for all tests. This folder is on the import path: ``from builders import make_job``."""

from __future__ import annotations

from postgres import postgres_server

__all__ = ["postgres_server"]
