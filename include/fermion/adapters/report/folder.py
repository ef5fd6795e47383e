"""Reports in a local folder: ``<job>.html`` for people, ``<job>.json`` for programs."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fermion.adapters.files.placing import write_durably
from fermion.adapters.report.render import render_html
from fermion.domain.report import Report
from fermion.errors import OutsideBroken, OutsideUnavailable

_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class FolderReports:
    """Keeps ``ports.Reports`` in one folder; made when the first report is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, report: Report) -> tuple[str, str]:
        """See ``ports.Reports``; the locations are paths."""
        html, payload = write(report, self._folder)
        return str(html), str(payload)

    def read(self, job_id: str) -> Report | None:
        """See ``ports.Reports``."""
        if _JOB_ID.fullmatch(job_id) is None:
            return None
        path = self._folder / f"{job_id}.json"
        try:
            return Report.from_payload(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutsideUnavailable(f"report {path} cannot be read: {error.strerror}.", what="reports") from error
        except (ValueError, AttributeError) as error:
            message = f"report {path} cannot be understood: {error}. Delete it and write it again."
            raise OutsideBroken(message, what="reports") from error

    def page(self, job_id: str) -> str | None:
        """See ``ports.Reports``."""
        if _JOB_ID.fullmatch(job_id) is None:
            return None
        path = self._folder / f"{job_id}.html"
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutsideUnavailable(f"report {path} cannot be read: {error.strerror}.", what="reports") from error

    def forget(self, job_id: str) -> None:
        """See ``ports.Reports``; the JSON goes first, so that nobody finds half of it."""
        if _JOB_ID.fullmatch(job_id) is None:
            return
        try:
            for ending in ("json", "html"):
                (self._folder / f"{job_id}.{ending}").unlink(missing_ok=True)
        except OSError as error:
            raise OutsideUnavailable(
                f"report of {job_id} cannot be deleted: {error.strerror}.", what="reports"
            ) from error


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """The page and the JSON as files of ``folder``, each replaced atomically, the JSON last: where it is, both are.

    Raises:
        OutsideUnavailable: the folder cannot be written; what was there before is still there.
    """
    if _JOB_ID.fullmatch(report.job.id) is None:
        raise ValueError(f"{report.job.id!r} is not a job's id and cannot name a file")
    html, payload = folder / f"{report.job.id}.html", folder / f"{report.job.id}.json"
    page = render_html(report)
    data = json.dumps(report.to_payload(), indent=1, allow_nan=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(html, page.encode())
        write_durably(payload, data.encode())
    except OSError as error:
        raise OutsideUnavailable(f"report {payload} cannot be written: {error.strerror}.", what="reports") from error
    return html, payload
