"""The tasks of the DAGs that keep the platform's picture true."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from fermion_airflow.assets import DATASETS
from fermion_airflow.operators.training import PlatformOperator

if TYPE_CHECKING:
    from fermion.usecases.context import Context as Platform


MENDS_WITHIN = timedelta(seconds=15)
"""So long a sync stays with services that lost model servers: longer than most of these take to start, shorter than the
time until the next sync."""


class SyncPlatform(PlatformOperator):
    """One whole round: nodes, choices, open jobs, leases against what really runs; and new dataset versions are announced."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(outlets=[DATASETS], **kwargs)

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        from fermion.usecases.sync import sync_platform

        for difference in sync_platform(platform, patience=MENDS_WITHIN):
            self.log.warning("%s %s: %s", difference.kind, difference.subject, difference.message)
        self._announce(platform, context)

    def _announce(self, platform: Platform, context: Mapping[str, Any]) -> None:
        from fermion.usecases.datasets import Announcer, announce_datasets

        announcer = Announcer(dag_id=self.dag_id, run_id=context["run_id"], task_id=self.task_id)
        versions = announce_datasets(platform, announcer)
        if not versions:
            # An outlet that stays declared would announce an event at every success: this round has nothing to say.
            self.outlets = []
            return
        announcement = context["outlet_events"][DATASETS]
        announcement.extra = {"versions": {version.dataset: version.checksum for version in versions}}
        for version in versions:
            self.log.info("Dataset %s has a new version: %s.", version.dataset, version.checksum)
            announcement.add_partitions(f"{version.dataset}@{version.checksum}")


class KeepHouse(PlatformOperator):
    """Forget what its retention has ended: of the platform, and of the workflow engine."""

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        from fermion.usecases.retain import retain

        for forgotten in retain(platform):
            self.log.info("%s", forgotten)
