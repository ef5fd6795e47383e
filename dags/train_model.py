"""Train a model: check, queue, stage, train, save, release, report. What each task does stands in its operator."""

from airflow.sdk import DAG

from fermion_airflow.defaults import PATIENT
from fermion_airflow.forms import train_form
from fermion_airflow.operators.training import (
    CheckQuota,
    CloneRepository,
    Enqueue,
    MountDataset,
    PullImage,
    ReleaseGpus,
    SaveModel,
    Train,
    WaitForGpus,
    WriteReport,
)

DOC = """
### Train a model

`check_quota` verifies the whole request and answers all problems at once. Then image, data and code are fetched side by
side **while no GPU is held**; `wait_for_gpus` prepares the training suspended and the grant starts it in the same step.
`train` only watches. `release_gpus` always runs, and decides the run's state; `write_report` tells the story.

The same run starts from this form, from `POST /api/v2/dags/train_model/dagRuns` with the form's fields as `conf`, and from
`fermion train --spec job.yaml --wait`.
"""

with DAG(
    dag_id="train_model",
    schedule=None,
    catchup=False,
    is_paused_upon_creation=False,
    max_active_runs=500,
    max_active_tasks=500,
    params=train_form(),
    doc_md=DOC,
    tags=["fermion", "training"],
    default_args={**PATIENT, "weight_rule": "upstream"},
) as dag:
    check_quota = CheckQuota(task_id="check_quota")
    enqueue = Enqueue(task_id="enqueue").as_setup()
    staging = [
        PullImage(task_id="pull_image"),
        MountDataset(task_id="mount_dataset"),
        CloneRepository(task_id="clone_repository"),
    ]
    wait_for_gpus = WaitForGpus(task_id="wait_for_gpus")
    train = Train(task_id="train")
    save_model = SaveModel(task_id="save_model")
    release_gpus = ReleaseGpus(task_id="release_gpus").as_teardown(setups=enqueue, on_failure_fail_dagrun=True)
    write_report = WriteReport(task_id="write_report").as_teardown()

    check_quota >> enqueue >> staging >> wait_for_gpus >> train >> save_model >> release_gpus >> write_report
