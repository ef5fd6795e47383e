"""An example of an event: train the digits model whenever its dataset has a new version, once per version."""

from datetime import timedelta

from airflow.sdk import DAG, PartitionedAssetTimetable

from fermion_airflow.assets import DATASETS
from fermion_airflow.forms import digits_request
from fermion_airflow.operators.retraining import Retrain

DOC = """
### Train the digits model on new data

`sync_platform` announces each new version of a dataset as one partition of the asset `fermion_datasets`; each partition
is one run of this DAG, and each version of *digits* one run of `train_model`. Paused until somebody wants it.
"""

with DAG(
    dag_id="retrain_on_dataset",
    schedule=PartitionedAssetTimetable(assets=DATASETS),
    catchup=False,
    max_active_runs=4,
    is_paused_upon_creation=True,
    doc_md=DOC,
    tags=["fermion", "example"],
    default_args={"retries": 2, "retry_delay": timedelta(seconds=30)},
) as dag:
    Retrain(
        task_id="retrain",
        request=digits_request(name="digits on new data"),
        key="digits-{{ (dag_run.partition_key or run_id)[-16:] }}",
        only_dataset="digits",
    )
