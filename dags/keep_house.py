"""Once a day: forget what its retention has ended."""

from datetime import datetime, timedelta

from airflow.sdk import DAG

from fermion_airflow.operators.upkeep import KeepHouse

DOC = """
### Keep house

Forgets what is older than `retention` in `config/fermion.yaml` allows: events, decisions and metric points, folders of
ended jobs, reports; and of Airflow its ended runs, their logs and the rest of its metadata. Published models, leases and
the ledger are never touched.
"""

with DAG(
    dag_id="keep_house",
    schedule="17 3 * * *",
    start_date=datetime(2026, 1, 1),  # noqa: DTZ001 Airflow reads it as UTC
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    doc_md=DOC,
    tags=["fermion", "upkeep"],
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
) as dag:
    KeepHouse(task_id="keep_house", execution_timeout=timedelta(hours=1))
