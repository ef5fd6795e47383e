"""The tasks of the DAGs that keep the platform's picture true."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fermion_airflow.operators.training import PlatformOperator

if TYPE_CHECKING:
    from fermion.usecases.context import Context as Platform


class SyncPlatform(PlatformOperator):
    """One whole round: nodes, choices, open jobs, leases against what really runs."""

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        from fermion.usecases.sync import sync_platform

        for difference in sync_platform(platform):
            self.log.warning("%s %s: %s", difference.kind, difference.subject, difference.message)
