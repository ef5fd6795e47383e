"""Every 30 seconds: see what is, and mend what differs from what is written."""

from datetime import timedelta

from airflow.sdk import DAG

from fermion_airflow.operators.upkeep import SyncPlatform

DOC = """
### Sync the platform

Reads the clusters' nodes and images, writes the form's choices, looks after every open job and compares the ledger with
what really runs. A cluster that does not answer keeps its last state, with its age.
"""

with DAG(
    dag_id="sync_platform",
    schedule=timedelta(seconds=30),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    doc_md=DOC,
    tags=["fermion", "upkeep"],
    default_args={"retries": 1, "retry_delay": timedelta(seconds=5)},
) as dag:
    SyncPlatform(task_id="sync", execution_timeout=timedelta(minutes=2))
