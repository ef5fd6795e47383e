"""A cluster in memory. Keeps ``ports.Driver`` with nodes, images, datasets, code, workloads and space."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fermion.adapters.memory.outages import Line
from fermion.adapters.memory.replicas import MemoryReplicas
from fermion.adapters.memory.router import MemoryRouter
from fermion.adapters.memory.workloads import MemoryWorkloads
from fermion.domain.artifacts import DatasetVersion, FileEntry, Image, ModelVersion, tree_checksum
from fermion.domain.jobs import Pins
from fermion.domain.pools import Node
from fermion.domain.problems import Problem
from fermion.domain.retention import Freed
from fermion.errors import DriverCannot, NotFound, OutsideBroken, RequestRefused
from fermion.ports import Clock, Driver

Files = Mapping[str, bytes]


class MemoryNodes:
    """Nodes as set by ``put``; ``cut`` the driver's line and they do not answer."""

    def __init__(self, clock: Clock, line: Line, nodes: Sequence[Node] = ()) -> None:
        self._clock, self._line = clock, line
        self._nodes = tuple(nodes)

    def list_nodes(self) -> Sequence[Node]:
        """All nodes now."""
        self._line.answer()
        return [replace(node, observed_at=self._clock.now()) for node in self._nodes]

    def put(self, *nodes: Node) -> None:
        """A lever: from now on the cluster has exactly these."""
        self._nodes = nodes


class MemoryImages:
    """Images as put; a location is the digest."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._images: dict[str, Image] = {}

    def known(self) -> Sequence[Image]:
        """By id."""
        self._line.answer()
        return [self._images[name] for name in sorted(self._images)]

    def pull(self, image_id: str, digest: str) -> str:
        """The location of exactly that content."""
        self._line.answer()
        image = self._images.get(image_id)
        if image is None or image.digest != digest:
            now = "gone" if image is None else f"{image.digest} now"
            raise OutsideBroken(
                f"image {image_id!r} was pinned as {digest} and is {now}; submit the job again", what="image"
            )
        return f"memory://images/{digest}"

    def tidy(self, needed: Collection[Pins]) -> Freed:
        """A location is a name: nothing is kept that could be deleted."""
        self._line.answer()
        return Freed()

    def put(self, image: Image) -> None:
        """A lever: insert or replace by id."""
        self._images[image.id] = image


class MemoryDatasetSource:
    """Datasets as put under their URI. Keeps ``ports.DatasetSource``."""

    def __init__(self, line: Line | None = None) -> None:
        self._line = line or Line("the dataset source")
        self._trees: dict[str, Files] = {}

    def scan(self, dataset: str, uri: str, *, now: datetime) -> DatasetVersion:
        """The content now; a URI where nothing was put is outside what is allowed."""
        self._line.answer()
        if uri not in self._trees:
            raise _refused("datasets", "dataset_not_found", f"nothing is at {uri!r}.", "Name a registered dataset.")
        files = _entries(self._trees[uri])
        return DatasetVersion(dataset=dataset, uri=uri, checksum=tree_checksum(files), files=files, created_at=now)

    def put(self, uri: str, files: Files) -> None:
        """A lever: from now on this is there."""
        self._trees[uri] = dict(files)


class MemoryDatasets:
    """Staging from a ``MemoryDatasetSource``; a location names the checksum. ``cap`` is how many versions ``tidy`` leaves."""

    cap: int | None = None

    def __init__(self, clock: Clock, line: Line, source: MemoryDatasetSource) -> None:
        self._clock, self._line, self._source = clock, line, source
        self._staged: set[str] = set()

    def stage(self, version: DatasetVersion) -> str:
        """What was staged once stays, whatever becomes of the source."""
        self._line.answer()
        if version.checksum not in self._staged:
            found = self._source.scan(version.dataset, version.uri, now=self._clock.now())
            if found.checksum != version.checksum:
                names = ", ".join(sorted({file.path for file in set(found.files) ^ set(version.files)}))
                raise OutsideBroken(
                    f"dataset {version.dataset!r} is not {version.checksum} any more: {names}", what="dataset"
                )
            self._staged.add(version.checksum)
        return f"memory://datasets/{version.checksum}"

    def never_fits(self, version: DatasetVersion) -> Sequence[Problem]:
        """Everything fits into memory."""
        return ()

    def tidy(self, needed: Collection[Pins]) -> Freed:
        """Over the cap everything leaves that is not needed."""
        self._line.answer()
        unneeded = self._staged - {checksum for pins in needed for checksum in pins.datasets.values()}
        if self.cap is None or len(self._staged) <= self.cap:
            return Freed()
        self._staged -= unneeded
        return Freed(items=len(unneeded))


class MemoryCode:
    """Repositories of commits made by ``commit``."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._refs: dict[str, dict[str, str]] = {}
        self._commits: dict[tuple[str, str], Files] = {}

    def resolve(self, repository: str, ref: str) -> str:
        """The commit that a branch, tag or commit means now."""
        self._line.answer()
        if repository not in self._refs:
            raise _refused("repository", "repository_not_found", f"no repository {repository!r}.", "Check the URL.")
        commit = ref if (repository, ref) in self._commits else self._refs[repository].get(ref)
        if commit is None:
            raise _refused("ref", "ref_not_found", f"{repository!r} has no {ref!r}.", "Name a branch, tag or commit.")
        return commit

    def checkout(self, repository: str, commit: str) -> str:
        """The location of that commit's files."""
        self.resolve(repository, commit)
        return f"memory://code/{commit}"

    def has_file(self, repository: str, commit: str, path: str) -> bool:
        """Whether the commit holds it."""
        self._line.answer()
        return path in self._commits.get((repository, commit), {})

    def tidy(self, needed: Collection[Pins]) -> Freed:
        """A location is a name: nothing is kept that could be deleted."""
        self._line.answer()
        return Freed()

    def commit(self, repository: str, files: Files, *, ref: str = "main") -> str:
        """A lever: a new commit on ``ref``; its name is derived from its content."""
        commit = hashlib.sha1(repr((repository, sorted(files.items()))).encode(), usedforsecurity=False).hexdigest()
        self._commits[repository, commit] = dict(files)
        self._refs.setdefault(repository, {})[ref] = commit
        return commit


class MemorySpace:
    """Per-job places as names; ``write`` puts files there, ``fetch_output`` lays them into a temporary folder."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._places: dict[str, dict[str, bytes]] = {}
        self._fetched = tempfile.TemporaryDirectory(prefix="fermion-memory-")

    def output(self, job_id: str, attempt: int) -> str:
        """Where that attempt writes its model."""
        return self._made(f"memory://jobs/{job_id}/attempt-{attempt}/output")

    def checkpoints(self, job_id: str) -> str:
        """Where all attempts of that job keep checkpoints."""
        return self._made(f"memory://jobs/{job_id}/checkpoints")

    def log(self, job_id: str, attempt: int) -> str:
        """Where that attempt's log lies."""
        self._line.answer()
        return f"memory://jobs/{job_id}/attempt-{attempt}/train.log"

    def fetch_output(self, location: str) -> Path:
        """A folder with the files of an output location.

        Raises:
            DriverCannot: the location is not one of this driver's.
            NotFound: nothing is there any more.
        """
        self._line.answer()
        if not location.startswith("memory://jobs/"):
            raise DriverCannot(f"{location} is not an output location of this cluster", what="location")
        if location not in self._places:
            raise NotFound(f"{location} is gone; the job was forgotten", what="location")
        folder = Path(tempfile.mkdtemp(dir=self._fetched.name))
        for name, content in self._places[location].items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder

    def has_checkpoint(self, job_id: str) -> bool:
        """Whether a file that is not empty was written there."""
        self._line.answer()
        return any(self._places.get(f"memory://jobs/{job_id}/checkpoints", {}).values())

    def forget(self, job_id: str) -> None:
        """Absent is fine."""
        self._line.answer()
        for location in [place for place in self._places if place.startswith(f"memory://jobs/{job_id}/")]:
            del self._places[location]

    def write(self, location: str, files: Files) -> None:
        """A lever: the training writes these files there."""
        self._places.setdefault(location, {}).update(files)

    def _made(self, location: str) -> str:
        self._line.answer()
        self._places.setdefault(location, {})
        return location


class MemoryModelCache:
    """A location is the checksum; ``spoil`` makes a version's files differ. Keeps ``ports.ModelCache``."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._spoilt: set[str] = set()
        self.cap: int | None = None
        self.staged: dict[str, None] = {}

    def stage(self, version: ModelVersion) -> str:
        """The location of that version's files."""
        self._line.answer()
        if version.checksum in self._spoilt:
            raise OutsideBroken(f"model {version.path} is not {version.checksum} any more", what=version.path)
        self.staged.pop(version.checksum, None)
        self.staged[version.checksum] = None
        return f"memory://models/{version.checksum}"

    def tidy(self, needed: Collection[str], *, dry_run: bool = False) -> Freed:
        """Down to ``cap`` versions; which is asked for longest ago leaves first."""
        self._line.answer()
        over = 0 if self.cap is None else max(0, len(self.staged) - self.cap)
        leaving = [checksum for checksum in self.staged if checksum not in needed][:over]
        for checksum in () if dry_run else leaving:
            del self.staged[checksum]
        return Freed(items=len(leaving))

    def spoil(self, checksum: str) -> None:
        """A lever: somebody changed its files."""
        self._spoilt.add(checksum)

    def restore(self, checksum: str) -> None:
        """A lever: they are as they were."""
        self._spoilt.discard(checksum)


class MemoryDriver:
    """One cluster. ``line.cut()`` makes all of it unreachable; what runs there goes on."""

    kind = "memory"

    def __init__(self, clock: Clock, *, nodes: Sequence[Node] = (), source: MemoryDatasetSource | None = None) -> None:
        self.line = Line("the cluster")
        self.nodes = MemoryNodes(clock, self.line, nodes)
        self.images = MemoryImages(self.line)
        self.datasets = MemoryDatasets(clock, self.line, source or MemoryDatasetSource())
        self.code = MemoryCode(self.line)
        self.workloads = MemoryWorkloads(clock, self.line)
        self.space = MemorySpace(self.line)
        self.models = MemoryModelCache(self.line)
        self.replicas = MemoryReplicas(clock, self.line)
        self.router = MemoryRouter(clock, self.line)


if TYPE_CHECKING:

    def _keeps_the_port(driver: MemoryDriver) -> Driver:
        return driver


def _entries(files: Files) -> tuple[FileEntry, ...]:
    return tuple(
        FileEntry(path=path, size=len(files[path]), sha256=hashlib.sha256(files[path]).hexdigest())
        for path in sorted(files)
    )


def _refused(field: str, code: str, message: str, fix: str) -> RequestRefused:
    return RequestRefused([Problem(field=field, code=code, message=message, fix=fix)])
