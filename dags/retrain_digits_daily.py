"""An example of a schedule: train the digits model once a day, after everybody else. Backfills train missed days."""

from datetime import datetime, timedelta

from airflow.sdk import DAG

from fermion_airflow.forms import digits_request
from fermion_airflow.operators.retraining import Retrain

DOC = """
### Train the digits model daily

Each day is one run of `train_model` under the id `digits-<day>`, at low priority: it waits for GPUs that nobody else
asks for, and gives them back when somebody does. A repeat of a day finds its training and takes its outcome.

Train the days that were missed: `fermion airflow backfill create --dag-id retrain_digits_daily --from-date … --to-date …`,
or the *Backfill* button. Paused until somebody wants it.
"""

with DAG(
    dag_id="retrain_digits_daily",
    schedule="@daily",
    start_date=datetime(2026, 1, 1),  # noqa: DTZ001 Airflow reads it as UTC
    catchup=False,
    max_active_runs=4,
    is_paused_upon_creation=True,
    doc_md=DOC,
    tags=["fermion", "example"],
    default_args={"retries": 2, "retry_delay": timedelta(seconds=30)},
) as dag:
    Retrain(
        task_id="retrain",
        request=digits_request(name="digits daily", priority=-100, preemptible=True, queue_timeout="12h"),
        key="digits-{{ (logical_date or dag_run.run_after) | ds }}",
    )
