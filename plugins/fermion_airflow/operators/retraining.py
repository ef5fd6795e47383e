"""Start a training from another DAG, once per key, and take its outcome as one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.providers.standard.triggers.external_task import DagStateTrigger
from airflow.sdk.exceptions import AirflowSkipException

from fermion_airflow.assets import dataset_of

POLL_S = 5


class Retrain(TriggerDagRunOperator):
    """One run of ``train_model`` under the id that ``key`` gives; holds no worker while it trains.

    ``request`` is what the form of ``train_model`` asks for. A repeat with the same key (a retry, a backfill of the same
    day, the same dataset version announced twice) finds that run and waits for it; to train again, clear that run.
    ``only_dataset`` skips every run that a version of another dataset started.
    """

    def __init__(
        self, *, request: Mapping[str, object], key: str, only_dataset: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(
            trigger_dag_id="train_model",
            trigger_run_id=key,
            conf=dict(request),
            logical_date=None,
            wait_for_completion=True,
            deferrable=True,
            poke_interval=POLL_S,
            allowed_states=["success"],
            failed_states=["failed"],
            **kwargs,
        )
        self.only_dataset = only_dataset

    def execute(self, context: Any) -> None:
        """Start the training, or join the one that runs under the key already."""
        self._skip_other_datasets(context)
        run_id = str(self.trigger_run_id)
        if context["ti"].get_dr_count(dag_id=self.trigger_dag_id, run_ids=[run_id]):
            self.log.info("Run %s of %s exists already: its outcome is taken.", run_id, self.trigger_dag_id)
            self.defer(
                trigger=DagStateTrigger(
                    dag_id=self.trigger_dag_id,
                    states=[*self.allowed_states, *self.failed_states],
                    run_ids=[run_id],
                    poll_interval=POLL_S,
                ),
                method_name="execute_complete",
            )
        super().execute(context)

    def _skip_other_datasets(self, context: Any) -> None:
        if self.only_dataset is None:
            return
        partition = context["dag_run"].partition_key
        dataset = dataset_of(partition)[0] if partition else self.only_dataset
        if dataset != self.only_dataset:
            raise AirflowSkipException(f"This version is of dataset {dataset!r}, not of {self.only_dataset!r}.")
