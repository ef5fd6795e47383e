"""Per-job folders that outlive workloads: ``jobs/<job>/checkpoints`` and ``jobs/<job>/attempt-N/{output, train.log}``."""

from __future__ import annotations

from pathlib import Path

from fermion.adapters.process.layout import Layout, checked_name, discard, visible
from fermion.errors import DriverCannot, NotFound

_UNFINISHED = (".tmp", ".part", ".partial", ".incomplete")


class ProcessSpace:
    """The ``Space`` port in folders of this machine."""

    def __init__(self, root: Path) -> None:
        self._layout = Layout(root)

    def output(self, job_id: str, attempt: int) -> str:
        """Where that attempt writes its model; made if absent."""
        return _made(self._layout.attempt(job_id, attempt) / "output")

    def checkpoints(self, job_id: str) -> str:
        """Where all attempts of that job keep checkpoints; made if absent."""
        return _made(self._layout.job(job_id) / "checkpoints")

    def log(self, job_id: str, attempt: int) -> str:
        """Where that attempt's log lies; its folder is made if absent."""
        folder = self._layout.attempt(job_id, attempt)
        _made(folder)
        return str(folder / "train.log")

    def fetch_output(self, location: str) -> Path:
        """The output folder itself: it is on this machine already.

        Raises:
            DriverCannot: the location is not one of this driver's.
            NotFound: nothing is there any more.
        """
        path = Path(location).resolve()
        if not path.is_relative_to(self._layout.jobs.resolve()):
            raise DriverCannot(f"{location} is not an output location of {self._layout.jobs}", what="location")
        if not path.is_dir():
            raise NotFound(f"{location} is gone; the job's folder was forgotten or removed by hand", what="location")
        return path

    def has_checkpoint(self, job_id: str) -> bool:
        """Whether that job left a finished, non-empty file to resume from."""
        folder = self._layout.job(job_id) / "checkpoints"
        return any(_is_checkpoint(path) for path in folder.rglob("*"))

    def forget(self, job_id: str) -> None:
        """Delete everything of that job but what was published. Absent is fine."""
        checked_name(job_id)
        for name in visible(self._layout.removed):
            if name.rpartition("-a")[0] == job_id:
                (self._layout.removed / name).unlink(missing_ok=True)
        discard(self._layout.job(job_id))


def _made(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def _is_checkpoint(path: Path) -> bool:
    """Hidden files and half-written ones by their usual names do not count."""
    name = path.name
    return not name.startswith(".") and not name.endswith(_UNFINISHED) and path.is_file() and path.stat().st_size > 0
