"""Links from tasks to what their job left: log, report, model. Made in the API server whenever somebody looks at a task.

They need nothing from the task itself, so a task that lives in the triggerer only (``train``) has them too.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from airflow.sdk import BaseOperatorLink
from airflow.sdk.configuration import conf

from fermion_airflow.hooks.fermion import FermionHook
from fermion_airflow.operators.training import ReleaseGpus, SaveModel, Train, WaitForGpus, WriteReport

if TYPE_CHECKING:
    from fermion.domain.jobs import Job
    from fermion.usecases.context import Context as Platform

log = logging.getLogger(__name__)


class _JobLink(BaseOperatorLink):
    """A page about the job that a task's run carries; no link while there is nothing to show."""

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The page's address on this server, or an empty string."""
        from fermion.errors import FermionError, NotFound
        from fermion.usecases.queries import job_of_run

        try:
            platform = FermionHook().platform()
            path = self.path(platform, job_of_run(platform, ti_key.dag_id, ti_key.run_id))
        except NotFound:
            return ""
        except FermionError as error:
            log.warning("no link for %s: %s", ti_key, error)
            return ""
        return f"{_prefix()}/fermion/{path}" if path else ""

    def path(self, platform: Platform, job: Job) -> str | None:
        """Below ``/fermion/``, or None when there is no such page yet."""
        raise NotImplementedError


class LogLink(_JobLink):
    """The training's output."""

    name = "Training log"
    operators = [WaitForGpus, Train, ReleaseGpus]  # noqa: RUF012 the base's own way

    def path(self, platform: Platform, job: Job) -> str | None:
        """There once it was granted GPUs."""
        return f"logs/{job.id}" if job.started_at is not None else None


class ReportLink(_JobLink):
    """The report of the ended job."""

    name = "Report"
    operators = [Train, SaveModel, ReleaseGpus, WriteReport]  # noqa: RUF012

    def path(self, platform: Platform, job: Job) -> str | None:
        """There once it was written."""
        return f"reports/{job.id}" if job.is_final and platform.reports.page(job.id) is not None else None


class ModelLink(_JobLink):
    """The published model version."""

    name = "Model"
    operators = [Train, SaveModel, WriteReport]  # noqa: RUF012

    def path(self, platform: Platform, job: Job) -> str | None:
        """There once it was published."""
        return f"models/{quote(job.output_model_path)}" if job.output_model_path else None


LINKS = (LogLink(), ReportLink(), ModelLink())


def _prefix() -> str:
    """The path under which the server is reached, without the slash at its end; usually empty."""
    return urlsplit(str(conf.get("api", "base_url", fallback=""))).path.rstrip("/")
