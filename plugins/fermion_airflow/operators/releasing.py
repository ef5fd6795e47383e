"""The task of ``release_model``: new model versions are given to the services that follow their model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from fermion_airflow.operators.training import PlatformOperator

if TYPE_CHECKING:
    from fermion.usecases.context import Context as Platform


class ReleaseModel(PlatformOperator):
    """One deployment for each version that its run was started by, and each service that follows the model.

    It does not wait for them: a rollout may take hours, and the next version must not wait for it here. A run that was
    started by hand releases whatever was published and not deployed. Repeated, it starts nothing twice.
    """

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        from fermion.errors import OutsideBroken
        from fermion.usecases.serving.follow import release_versions

        if platform.runs is None:
            raise OutsideBroken("deployments cannot be started: no address of the workflow engine is configured.")
        announced = announced_in(context["dag_run"])
        found = release_versions(platform, platform.runs, announced)
        for each in found:
            if each.revision is not None:
                self.log.info("%s goes to service %s as %s.", each.path, each.service, each.revision)
        refused = [f"{each.path} does not go to {each.service}: {each.refused}" for each in found if each.refused]
        if refused:
            raise AirflowFailException("\n".join(refused))
        if not found:
            told = "nothing new" if announced is None else ", ".join(sorted(announced))
            raise AirflowSkipException(f"No service has to be given a version ({told}).")


def announced_in(run: Any) -> set[str] | None:
    """The paths that a run was started for: its partition, and those of every event that was merged into it.

    None for a run that was started by hand.
    """
    events = getattr(run, "consumed_asset_events", None) or ()
    paths = {each.partition_key or (each.extra or {}).get("path") for each in events} | {run.partition_key}
    return {str(path) for path in paths if path} or None
