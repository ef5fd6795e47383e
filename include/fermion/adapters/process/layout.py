"""Where things lie under a location root. Paths only; who makes and deletes them is told by the modules that use it."""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from fermion.adapters.files.placing import size_of
from fermion.domain.retention import Freed
from fermion.errors import DriverCannot

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,126}[a-z0-9])?")
_HIDDEN = "."  # folders that begin with it are on their way in or out and hold nothing that counts
_ABANDONED_S = 6 * 3600.0  # longer than any pull may take


def checked_name(name: str) -> str:
    """The name, if it is fit to be a folder's.

    Raises:
        DriverCannot: it could lead out of the location root or is no DNS name.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise DriverCannot(
            f"{name[:80]!r} cannot name a folder: use 1 to 128 of a-z, 0-9, '-' and '.', beginning and ending with a "
            "letter or digit",
            what="name",
        )
    return name


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders of one location root."""

    root: Path

    @property
    def workloads(self) -> Path:
        """One folder per workload that is prepared, runs or has ended and was not removed."""
        return self.root / "workloads"

    @property
    def replicas(self) -> Path:
        """One folder per replica, in the location root that only replicas use."""
        return self.root / "replicas"

    @property
    def serving(self) -> Path:
        """The location root of this driver's replicas, with an id of its own."""
        return self.root / "serving"

    @property
    def removed(self) -> Path:
        """One small file per removed workload or replica: where its log and progress lie."""
        return self.root / "removed"

    @property
    def jobs(self) -> Path:
        """One folder per job; outlives its workloads."""
        return self.root / "jobs"

    @property
    def environments(self) -> Path:
        """One folder per materialised environment, named by its digest."""
        return self.root / "cache" / "environments"

    def workload(self, name: str) -> Path:
        """The folder of a workload."""
        return self.workloads / checked_name(name)

    def job(self, job_id: str) -> Path:
        """The folder of a job."""
        return self.jobs / checked_name(job_id)

    def attempt(self, job_id: str, attempt: int) -> Path:
        """The folder of one attempt of a job."""
        return self.job(job_id) / f"attempt-{attempt}"

    def identity(self) -> str:
        """What marks processes as belonging to this location root; made at the first call, the same ever after."""
        path = self.root / "id"
        if not path.exists():
            self.root.mkdir(parents=True, exist_ok=True)
            draft = self.root / f".id-{uuid.uuid4().hex}"
            draft.write_text(uuid.uuid4().hex, encoding="ascii")
            try:
                os.link(draft, path)
            except FileExistsError:
                pass  # another process was first; its id counts
            finally:
                draft.unlink()
        return path.read_text(encoding="ascii").strip()


def visible(folder: Path) -> list[str]:
    """Names in a folder that count, sorted; an absent folder has none."""
    try:
        return sorted(entry for entry in os.listdir(folder) if not entry.startswith(_HIDDEN))
    except FileNotFoundError:
        return []


def discard(folder: Path) -> None:
    """Delete a folder so that nobody sees it half gone: it leaves its name first. Absent is fine."""
    grave = folder.with_name(f"{_HIDDEN}gone-{uuid.uuid4().hex}")
    try:
        os.rename(folder, grave)
    except FileNotFoundError:
        return
    shutil.rmtree(grave, ignore_errors=True)


def sweep(folder: Path) -> Freed:
    """Delete what killed callers left half made or half deleted hours ago."""
    freed = Freed()
    for entry in folder.glob(f"{_HIDDEN}*") if folder.is_dir() else ():
        try:
            age_s = time.time() - entry.stat().st_mtime
        except FileNotFoundError:
            continue
        if entry.is_dir() and age_s > _ABANDONED_S:
            freed += Freed(items=1, size_bytes=size_of(entry))
            shutil.rmtree(entry, ignore_errors=True)
    return freed


def progress_path(log: str) -> str:
    """Where the progress lines of the workload with that log lie: beside it."""
    return str(Path(log).with_suffix(".progress.jsonl"))
