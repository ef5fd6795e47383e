"""Airflow's environment, before any test imports it; and the platforms in memory that the tests of use cases live in."""

from __future__ import annotations

import sys
from pathlib import Path

import airflow_home

sys.path.append(str(Path(__file__).resolve().parents[1] / "unit" / "usecases"))  # world.py, serving_world.py

__all__ = ["airflow_home"]
