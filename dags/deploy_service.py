"""Deploy a model as a service: check, queue, start, canary, promote, retire, release, tell. What each does is in its operator."""

from airflow.sdk import DAG

from fermion_airflow.defaults import PATIENT
from fermion_airflow.forms import deploy_form
from fermion_airflow.operators.serving import (
    Approve,
    Canary,
    CheckRequest,
    DeployRevision,
    Enqueue,
    Promote,
    ReleaseGpus,
    RetireOld,
    WaitFor,
    WaitForGpus,
    WatchApproval,
    WriteVerdict,
)

DOC = """
### Deploy a model

`check_request` verifies the whole request and answers all problems at once. Image, model and code are fetched **while no
GPU is held**; each replica then waits in the line of its pool as a training does. A first revision serves as soon as its
replicas are ready. Any other is tried by **canary**: a share of the requests (drawn, by a header or a cookie, or copies of
them), looks at what they gave, and a verdict with
numbers. A bad one goes back by itself, weights first. `release_gpus` always runs and leaves nothing of a revision that does
not serve.

The same run starts from this form, from `POST /api/v2/dags/deploy_service/dagRuns` with the form's fields as `conf`, and
from `fermion deploy --spec service.yaml --wait`.
"""

with DAG(
    dag_id="deploy_service",
    schedule=None,
    catchup=False,
    is_paused_upon_creation=False,
    max_active_runs=200,
    max_active_tasks=200,
    params=deploy_form(),
    doc_md=DOC,
    tags=["fermion", "serving"],
    default_args={**PATIENT, "weight_rule": "upstream"},
) as dag:
    check_request = CheckRequest(task_id="check_request")
    enqueue = Enqueue(task_id="enqueue").as_setup()
    wait_for_gpus = WaitForGpus(task_id="wait_for_gpus")
    deploy_revision = DeployRevision(task_id="deploy_revision")
    wait_ready = WaitFor(task_id="wait_ready", stage="ready")
    canary = Canary(task_id="canary")
    approve = Approve.partial(task_id="approve").expand(step=check_request.output)
    approval = [approve, WatchApproval(task_id="watch_approval")]
    promote = Promote(task_id="promote", trigger_rule="none_failed")
    retire_old = RetireOld(task_id="retire_old")
    release_gpus = ReleaseGpus(task_id="release_gpus").as_teardown(setups=enqueue, on_failure_fail_dagrun=True)
    write_verdict = WriteVerdict(task_id="write_verdict").as_teardown()

    check_request >> enqueue >> wait_for_gpus >> deploy_revision >> wait_ready >> canary >> approval >> promote
    promote >> retire_old >> release_gpus >> write_verdict
