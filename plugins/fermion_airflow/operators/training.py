"""The tasks of ``train_model``: each applies one verb to the job that its run carries."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from airflow.triggers.base import StartTriggerArgs

from fermion_airflow.assets import MODELS
from fermion_airflow.hooks.fermion import FermionHook

if TYPE_CHECKING:
    from fermion.domain.jobs import Job
    from fermion.usecases.context import Context as Platform

ATTEMPTS_AT_ONCE = timedelta(seconds=3)
"""How long ``wait_for_gpus`` polls before it defers: a deferral costs a second or two, most grants come sooner."""

ENDED = frozenset({"success", "failed", "upstream_failed", "skipped", "removed"})
"""States of a task that will not run again unless it is cleared."""


class PlatformOperator(BaseOperator):
    """A task that calls the platform. Subclasses say what to do in ``work``; errors become Airflow's here, once."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("do_xcom_push", False)
        super().__init__(**kwargs)

    def execute(self, context: Mapping[str, Any], event: object = None) -> Any:
        """Run ``work``, again after a deferral; an error that cannot pass by itself fails the task at once, any other is
        tried again."""
        from fermion.errors import FermionError

        try:
            return self.work(FermionHook().platform(), context)
        except FermionError as error:
            raise (AirflowException if error.retryable else AirflowFailException)(error.message) from error

    def work(self, platform: Platform, context: Mapping[str, Any]) -> Any:
        """The task's verb."""
        raise NotImplementedError


class JobOperator(PlatformOperator):
    """A task about the job of its run."""

    def job_of(self, platform: Platform, context: Mapping[str, Any]) -> Job:
        """The job that this run carries.

        Raises:
            NotFound: the run has none (its request was refused).
        """
        from fermion.usecases.queries import job_of_run

        return job_of_run(platform, self.dag_id, context["run_id"])

    def was_cleared(self, context: Mapping[str, Any]) -> bool:
        """Whether somebody cleared this task: clearing grants it further tries beyond its own."""
        ti = context["ti"]
        return bool(ti.max_tries > self.retries)

    @staticmethod
    def refuse_ended(job: Job) -> None:
        """Raise when the job has ended without a model (it was stopped before its run came to it)."""
        if job.is_failed:
            raise AirflowFailException(f"job {job.id}: {job.explanation.message}")


class CheckQuota(JobOperator):
    """Record the job and verify its whole request; all problems at once."""

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        from fermion.errors import RequestRefused

        try:
            self._check(platform, context)
        except RequestRefused as refused:
            from fermion.domain.problems import lines_of
            from fermion.usecases.refusal import tell_refusal

            for line in lines_of(refused.problems):
                self.log.error("%s", line)
            tell_refusal(platform, refused, dag_id=self.dag_id, run_id=context["run_id"], task_id=self.task_id)
            raise

    def _check(self, platform: Platform, context: Mapping[str, Any]) -> None:
        from fermion.usecases.again import train_again, was_staged
        from fermion.usecases.check import check
        from fermion.usecases.submit import submit

        run = context["dag_run"]
        actor = getattr(run, "triggering_user_name", None) or "airflow"
        asked = dict(run.conf or context["params"])
        job = submit(platform, asked, dag_id=self.dag_id, run_id=run.run_id, actor=actor)
        if job.is_final and (self.was_cleared(context) or was_staged(platform, job.id)):
            job = train_again(platform, job.id, actor=actor)
        self.log.info("This run carries job %s.", job.id)
        self.refuse_ended(check(platform, job.id))


class Enqueue(JobOperator):
    """Join the line. The setup of the run: fast, and it never waits.

    A run that was cleared from ``train`` on, after its job had ended, gets its next job here.
    """

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        from fermion.usecases.stage import enqueue

        job = self.job_of(platform, context)
        if job.is_final and self.was_cleared(context):
            if not self._will_train(context):
                self.log.info("Job %s has ended and `train` was not cleared: nothing joins the line.", job.id)
                return
            job = self._start_again(platform, job)
        self.refuse_ended(enqueue(platform, job.id))

    def _start_again(self, platform: Platform, ended: Job) -> Job:
        from fermion.usecases.again import train_again
        from fermion.usecases.check import check

        job = train_again(platform, ended.id)
        self.log.info("Job %s has ended; this run carries job %s now.", ended.id, job.id)
        return check(platform, job.id)

    def _will_train(self, context: Mapping[str, Any]) -> bool:
        """Whether ``train`` was cleared together with this task.

        Raises:
            AirflowFailException: it was, but not what publishes the model that it would make.
        """
        run_id = context["run_id"]
        wanted = ["train", "save_model"]
        states = context["ti"].get_task_states(dag_id=self.dag_id, task_ids=wanted, run_ids=[run_id]).get(run_id, {})
        will_train, will_save = (states.get(task_id) not in ENDED for task_id in wanted)
        if will_train and not will_save:
            raise AirflowFailException(
                "`train` was cleared without `save_model`: its model would be lost. Clear `train` with its downstream tasks."
            )
        return will_train


class PullImage(JobOperator):
    """Fetch the image while no GPU is held."""

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        from fermion.usecases.stage import pull_image

        self.log.info("The image lies at %s.", pull_image(platform, self.job_of(platform, context).id))


class MountDataset(JobOperator):
    """Stage the datasets, verified, while no GPU is held."""

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        from fermion.usecases.stage import mount_dataset

        for name, location in mount_dataset(platform, self.job_of(platform, context).id).items():
            self.log.info("Dataset %s lies at %s.", name, location)


class CloneRepository(JobOperator):
    """Check the pinned commit out while no GPU is held."""

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        from fermion.usecases.stage import clone_repository

        self.log.info("The code lies at %s.", clone_repository(platform, self.job_of(platform, context).id))


class WaitForGpus(JobOperator):
    """Prepare the workload suspended, then wait for its grant: a moment here, longer in the triggerer."""

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        from fermion.usecases.wait import wait_for_grant

        job = wait_for_grant(platform, self.job_of(platform, context).id, patience=ATTEMPTS_AT_ONCE)
        if job.is_waiting:
            from fermion_airflow.triggers.jobs import GrantTrigger

            self.log.info("Job %s waits: %s", job.id, job.explanation.message)
            self.defer(trigger=GrantTrigger(), method_name="execute")
        self.refuse_ended(job)
        self.log.info("Job %s holds its GPUs: %s", job.id, job.explanation.message)


class Train(BaseOperator):
    """Watch the training from the triggerer, from the first moment to the last; no worker is held.

    The task begins and, when all is well, ends in its trigger. Killing, clearing or losing it leaves the training alone: a new try finds it
    again, and ``release_gpus`` ends what must end.
    """

    start_from_trigger = True
    start_trigger_args = StartTriggerArgs(
        trigger_cls="fermion_airflow.triggers.jobs.TrainTrigger",
        trigger_kwargs={},
        next_method="execute_complete",
    )

    def execute_complete(self, context: Mapping[str, Any], event: Mapping[str, Any] | None = None) -> None:
        """Called only when the training failed: fails the task with the job's reason, and for good."""
        raise AirflowFailException(str((event or {}).get("error", "the training ended without saying how")))


class SaveModel(JobOperator):
    """Publish the model and announce it; no GPU is held any more."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(outlets=[MODELS], **kwargs)

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        from fermion.usecases.save import save_model

        job = self.job_of(platform, context)
        version = save_model(platform, job.id)
        self.log.info("Published %s, %s.", version.path, version.checksum)
        if job.is_final and self.was_cleared(context):
            self.outlets = []  # it was announced when it was published
            return
        announcement = context["outlet_events"][MODELS]
        announcement.extra = {"path": version.path, "checksum": version.checksum, "job": job.id}
        announcement.add_partitions(version.path)


class ReleaseGpus(JobOperator):
    """The teardown: the workload gone, the lease closed, the job ended. Fails the run unless every work task succeeded."""

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        from fermion.errors import NotFound
        from fermion.usecases.release import release

        try:
            job = self.job_of(platform, context)
        except NotFound as missing:
            raise AirflowFailException(missing.message) from missing
        job = release(platform, job.id)
        self.log.info("Job %s is %s: %s", job.id, job.status, job.explanation.message)
        if job.status != "completed":
            raise AirflowFailException(f"job {job.id} {job.status}: {job.explanation.message}")


class WriteReport(JobOperator):
    """The last teardown: the report of the run, whatever became of it. A run without a job has nothing to tell.

    ``release_gpus`` is skipped with its setup when the run is marked failed before that; then the job is let go of here.
    """

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        from fermion.errors import NotFound
        from fermion.usecases.report import write_report

        try:
            job = self.job_of(platform, context)
        except NotFound as missing:
            raise AirflowSkipException(f"Nothing to report: {missing.message}") from missing
        if not job.is_final:
            self._let_go(platform, job.id)
        self.log.info("The report lies at %s.", write_report(platform, job.id))

    def _let_go(self, platform: Platform, job_id: str) -> None:
        """End the job; where that fails, the report tells how it is now, and the sync goes on."""
        from fermion.errors import FermionError
        from fermion.usecases.release import release

        try:
            release(platform, job_id)
        except FermionError as error:
            self.log.warning("Job %s could not be let go of: %s", job_id, error.message)
