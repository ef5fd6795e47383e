"""The tasks of ``deploy_service``: each applies one verb to the revision that its run carries, or waits for one thing."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

from fermion_airflow.hooks.fermion import FermionHook
from fermion_airflow.operators.training import ENDED, PlatformOperator

if TYPE_CHECKING:
    from fermion.domain.rollout.rollouts import Rollout
    from fermion.usecases.context import Context as Platform
    from fermion.usecases.serving.queries import Deployment

ATTEMPTS_AT_ONCE = timedelta(seconds=3)
"""How long a wait polls before it defers: a deferral costs a second or two, most of these waits are shorter."""

POLL_S = 0.1

CLOSED_WITHIN = timedelta(seconds=60)
CLOSING_POLL_S = 0.5


class DeploymentOperator(PlatformOperator):
    """A task about the deployment of its run."""

    def deployment_of(self, platform: Platform, context: Mapping[str, Any]) -> Deployment:
        """The deployment that this run carries.

        Raises:
            NotFound: the run has none (its request was refused).
        """
        from fermion.usecases.serving.queries import deployment_of_run

        return deployment_of_run(platform, self.dag_id, context["run_id"])


class CheckRequest(DeploymentOperator):
    """Verify the whole request and record the revision; all problems at once. Its result: the steps that ask a person."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(do_xcom_push=True, **kwargs)

    def work(self, platform: Platform, context: Mapping[str, Any]) -> list[int]:
        from fermion.errors import RequestRefused
        from fermion.usecases.refusal import tell_refusal
        from fermion.usecases.serving.submit import submit

        run = context["dag_run"]
        actor = getattr(run, "triggering_user_name", None) or "airflow"
        try:
            made = submit(
                platform, dict(run.conf or context["params"]), dag_id=self.dag_id, run_id=run.run_id, actor=actor
            )
        except RequestRefused as refused:
            for problem in refused.problems:
                self.log.error("%s", problem)
            tell_refusal(platform, refused, dag_id=self.dag_id, run_id=context["run_id"], task_id=self.task_id)
            raise
        self.log.info("This run carries revision %s (%s).", made.id, made.model_path)
        return list(made.spec.plan.asking_steps)


class Enqueue(DeploymentOperator):
    """The setup of the run: from here on it is let go of, whatever becomes of it. Fast, and it never waits."""

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        found = self.deployment_of(platform, context)
        self.log.info("Revision %s of service %s is on its way.", found.revision.id, found.service.name)


class WaitFor(DeploymentOperator):
    """Wait for one stage: a moment here, longer in the triggerer. Fails when the deployment is over without it."""

    def __init__(self, *, stage: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stage = stage

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        found = self.wait(platform, context)
        if found.is_over and not found.has_served:
            raise AirflowFailException(found.failure)
        self.log.info("Revision %s: %s", found.revision.id, found.revision.explanation.message)

    def wait(self, platform: Platform, context: Mapping[str, Any]) -> Deployment:
        """The deployment, as soon as it has reached the stage. Tends all services meanwhile, as the triggerer does."""
        from fermion.usecases.serving.queries import has_reached
        from fermion.usecases.serving.tend import ServiceTender

        tender, deadline = ServiceTender(platform), monotonic() + ATTEMPTS_AT_ONCE.total_seconds()
        while True:
            found = self.deployment_of(platform, context)
            if has_reached(found, self.stage):
                return found
            if monotonic() > deadline:
                from fermion_airflow.triggers.services import DeploymentTrigger

                self.log.info("Waiting until it is %s.", self.stage)
                self.defer(trigger=DeploymentTrigger(stage=self.stage), method_name="execute")
            tender.round()
            sleep(POLL_S)


class WaitForGpus(WaitFor):
    """Fetch image, model and code while no GPU is held; then wait until the first replica has its GPUs."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(stage="granted", **kwargs)

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        from fermion.usecases.serving.stage import stage

        found = self.deployment_of(platform, context)
        stage(platform, found.service.id, found.revision.number)
        super().work(platform, context)


class DeployRevision(DeploymentOperator):
    """Let the router know the revision; it gets no requests yet."""

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        from fermion.usecases.serving.tend import ServiceTender

        ServiceTender(platform).round()
        found = self.deployment_of(platform, context)
        if found.is_over:
            raise AirflowFailException(found.failure)
        counters = platform.driver_of(found.revision.spec.pool).router.counters([found.revision.id])
        self.log.info(
            "The router knows %s: %s requests so far.",
            found.revision.id,
            sum(each.requests for each in counters.values()),
        )


class Canary(WaitFor):
    """Watch the rollout from the triggerer until it has ended, or a person must approve what comes next."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(stage="judged", **kwargs)

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        found = self.wait(platform, context)
        if found.rollout is None and not found.is_over:
            self.log.info("Nothing served before, so there was nothing to compare with.")
            return
        if found.rollout is not None:
            self.log.info("Rollout %s: %s", found.rollout.id, found.rollout.explanation.message)
        if (found.is_over and not found.has_served) or (
            found.rollout is not None and found.rollout.phase in ("rolled_back", "aborted")
        ):
            why = found.rollout.explanation.message if found.rollout else found.failure
            raise AirflowFailException(f"{found.revision.id} was not promoted: {why}")


class Approve(ApprovalOperator):
    """Ask a person before one step of the plan is left; skipped where that never comes to be asked.

    Airflow keeps one text for an instance of a task, so each step that asks has its own (``check_request`` says which).

    While a question is open none of this code runs and nothing is held, neither a worker nor a trigger: ``watch_approval``
    looks on beside it, and closes the question when nobody needs the answer any more.
    """

    stage = "asked"

    def __init__(self, *, step: int, **kwargs: Any) -> None:
        note = Param("", type=["string", "null"], title="Note", description="Why; kept with your name.", source="task")
        kwargs["params"] = {"note": note}  # and none of the DAG's, which Airflow adds
        super().__init__(subject="May the rollout go on?", do_xcom_push=False, **kwargs)
        self.step = step

    def execute(self, context: Any, event: Mapping[str, Any] | None = None) -> None:
        """Take the answer that came, if one did; then ask, wait until there is something to ask, or end."""
        from fermion.errors import FermionError

        try:
            self._go_on(FermionHook().platform(), context, event or {})
        except FermionError as error:
            raise (AirflowException if error.retryable else AirflowFailException)(error.message) from error

    def execute_complete(self, context: Any, event: dict[str, Any]) -> None:
        """Called with the answer, or when its time was over without one."""
        self.execute(context, event)

    def _go_on(self, platform: Platform, context: Any, event: Mapping[str, Any]) -> None:
        from fermion.usecases.serving.approvals import answers, question
        from fermion.usecases.serving.queries import deployment_of_run, has_reached

        found = deployment_of_run(platform, self.dag_id, context["run_id"])
        if event.get("chosen_options") and found.rollout is not None:
            self._take(platform, found.rollout, event)
            found = deployment_of_run(platform, self.dag_id, context["run_id"])
        asked = question(platform, found)
        if asked is not None and found.rollout is not None and found.rollout.step == self.step:
            self.subject, self.body, self.response_timeout = asked.subject, asked.body, asked.patience
            self._note(platform, context, asked.body)
            super().execute(context)
        if not has_reached(found, self.stage, step=self.step):
            from fermion_airflow.triggers.services import DeploymentTrigger

            self.defer(trigger=DeploymentTrigger(stage=self.stage, step=self.step), method_name="execute")
        given = [] if found.rollout is None else answers(platform, found.rollout)
        if self.step not in {each.inputs.get("step") for each in given}:
            raise AirflowSkipException("Nobody was asked, or nobody's answer was needed any more.")

    def _take(self, platform: Platform, rollout: Rollout, event: Mapping[str, Any]) -> None:
        """Store the answer, unless it was taken where it was given; what follows from it is decided where all is decided."""
        from fermion.usecases.serving.approvals import TAKEN, answer, was_taken

        if was_taken(platform, rollout, (event.get("params_input") or {}).get(TAKEN)):
            return
        user = event.get("responded_by_user") or {}
        by = str(user.get("name") or user.get("id") or "unknown")
        note = str((event.get("params_input") or {}).get("note") or "")
        approved = self.APPROVE in event["chosen_options"]
        at = event["responded_at"]
        self.log.info("%s", answer(platform, rollout.id, approved=approved, by=by, at=at, note=note).message)

    def _note(self, platform: Platform, context: Any, text: str) -> None:
        """The question as a note on the task: Airflow keeps the text of its first one when the same step is asked for again."""
        from fermion.domain.tasks import instance_name
        from fermion.errors import FermionError

        if platform.runs is None:
            return
        try:
            task = instance_name(self.task_id, context["task_instance"].map_index)
            platform.runs.note(self.dag_id, context["run_id"], task, text)
        except FermionError as error:
            self.log.warning("The question could not be noted on the run: %s", error.message)


class WatchApproval(WaitFor):
    """Beside the questions: looks go on, and a failing one rolls back. Ends when nobody will be asked any more."""

    def __init__(self, *, approve_task: str = "approve", **kwargs: Any) -> None:
        super().__init__(stage="answered", **kwargs)
        self.approve_task = approve_task

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        found = self.wait(platform, context)
        self._close_questions(platform, context["run_id"])
        went_back = found.rollout is not None and found.rollout.phase in ("rolling_back", "rolled_back", "aborted")
        if went_back or (found.is_over and not found.has_served):
            why = found.rollout.explanation.message if found.rollout else found.failure
            raise AirflowFailException(f"{found.revision.id} was not promoted: {why}")

    def _close_questions(self, platform: Platform, run_id: str) -> None:
        """Nobody need answer any more. A task that is just about to ask is waited for: nobody would close it later.

        Raises:
            AirflowException: it is still about to ask; the next try closes it.
        """
        from fermion.domain.tasks import instance_of

        if platform.runs is None:
            return
        deadline = monotonic() + CLOSED_WITHIN.total_seconds()
        while True:
            tasks = platform.runs.state(self.dag_id, run_id).tasks
            asking = {name: tasks[name] for name in tasks if instance_of(name)[0] == self.approve_task}
            for name in [name for name, state in asking.items() if state == "awaiting_input"]:
                platform.runs.skip_task(self.dag_id, run_id, name)
                self.log.info("The question of %s was closed: nobody need answer it any more.", name)
                del asking[name]
            left = {name: state for name, state in asking.items() if state not in ENDED}
            if not left:
                return
            if monotonic() > deadline:
                told = ", ".join(f"{name} is {state}" for name, state in sorted(left.items()))
                raise AirflowException(f"{told}; a question must be closed once it is asked.")
            sleep(CLOSING_POLL_S)


class Promote(WaitFor):
    """Wait until the revision serves all requests, read back from the router."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(stage="promoted", **kwargs)


class RetireOld(WaitFor):
    """Wait until the revision before it gets no requests any more; it stays warm as long as the request says."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(stage="retired", **kwargs)


class ReleaseGpus(DeploymentOperator):
    """The teardown: a revision that did not come to serve holds nothing. Fails the run unless it serves."""

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        from fermion.errors import NotFound
        from fermion.usecases.serving.release import release

        try:
            found = self.deployment_of(platform, context)
        except NotFound as missing:
            raise AirflowFailException(missing.message) from missing
        revision = release(platform, found.service.id, found.revision.number, why="Its run has ended.")
        self.log.info("Revision %s is %s: %s", revision.id, revision.phase, revision.explanation.message)
        if revision.phase in ("failed", "retired") and revision.failed:
            raise AirflowFailException(f"{revision.id} {revision.phase}: {revision.explanation.message}")
        # A first revision has no rollout; if it served, another one has taken its place since.
        served = (
            revision.explanation.reason == "replaced" if found.rollout is None else found.rollout.phase == "promoted"
        )
        if revision.phase == "retired" and not served:
            raise AirflowFailException(f"{revision.id} did not come to serve: {revision.explanation.message}")


class WriteVerdict(DeploymentOperator):
    """The last teardown: what was decided, from which looks. A run without a deployment has nothing to tell."""

    def work(self, platform: Platform, context: Mapping[str, Any]) -> None:
        from fermion.errors import NotFound
        from fermion.usecases.serving.verdict import write_verdict

        try:
            found = self.deployment_of(platform, context)
        except NotFound as missing:
            raise AirflowSkipException(f"Nothing to tell: {missing.message}") from missing
        self.log.info("%s", write_verdict(platform, found))
