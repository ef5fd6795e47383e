"""Airflow's environment, before any test imports it."""

from __future__ import annotations

import airflow_home

__all__ = ["airflow_home"]
