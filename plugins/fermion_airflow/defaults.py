"""Defaults that several DAGs' tasks share."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

PATIENT: Final[Mapping[str, Any]] = {
    # Together more than two minutes: something outside may be gone for a while. What cannot pass fails at once.
    "retries": 5,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(seconds=60),
}
"""``default_args`` of tasks that do the platform's work."""
