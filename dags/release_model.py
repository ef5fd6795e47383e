"""Release a new model version: each service that follows the model is given it, by the service's own rollout plan."""

from airflow.sdk import DAG, PartitionedAssetTimetable

from fermion_airflow.assets import MODELS
from fermion_airflow.defaults import PATIENT
from fermion_airflow.operators.releasing import ReleaseModel

DOC = """
### Release a model version

`save_model` announces each published version as one partition of the asset `fermion_models`; each is one run of this DAG, which
starts one run of `deploy_service` for every service that follows the model (`follow: true` in its request). Started by hand, it
releases whatever was published and not deployed.
"""

with DAG(
    dag_id="release_model",
    schedule=PartitionedAssetTimetable(assets=MODELS),
    catchup=False,
    is_paused_upon_creation=False,
    max_active_runs=1,  # versions are given in order
    doc_md=DOC,
    tags=["fermion", "serving"],
    default_args=dict(PATIENT),
) as dag:
    ReleaseModel(task_id="release")
