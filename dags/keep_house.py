"""Once a day: forget what its retention has ended."""

from datetime import timedelta

from airflow.sdk import DAG, CronTriggerTimetable

from fermion_airflow.operators.upkeep import KeepHouse

DOC = """
### Keep house

Forgets what is older than `retention` in `config/fermion.yaml` allows: events, decisions and metric points, folders of
ended jobs, reports; and of Airflow its ended runs, their logs and the rest of its metadata. Brings the caches of images,
datasets and code below `caches`, least recently used first, and clears what killed callers left; nothing leaves that an open
job has pinned. The log says what was freed. Published models, jobs, leases and the ledger are never touched.
"""

with DAG(
    dag_id="keep_house",
    # Not at once on a fresh installation: it has nothing to forget, and its owner is looking at something else.
    # False would make up for a time that passed within the last tenth of a day (_calc_first_run of Airflow's timetable).
    schedule=CronTriggerTimetable("17 3 * * *", timezone="UTC", run_immediately=timedelta(0)),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    doc_md=DOC,
    tags=["fermion", "upkeep"],
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
) as dag:
    KeepHouse(task_id="keep_house", execution_timeout=timedelta(hours=1))
