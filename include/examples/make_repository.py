"""Makes what an example needs in the state folder: a real git repository of its code, and a copy of its dataset.

    python include/examples/make_repository.py run/examples

gives ``run/examples/<name>.git`` for every folder here with a ``code/``, and ``run/examples/datasets/<name>/`` for every one
with a ``data/``. Doing it again changes nothing unless the files changed; equal code gives the same commit on every machine.
"""

# ruff: noqa: T201  (a program that prints what it made)
from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

BRANCH = "main"
GIT_TIMEOUT_S = 60
_AUTHOR = "Fermion Examples"
_EMAIL = "examples@fermion.invalid"
_DATE = "2026-01-01T00:00:00+00:00"
_IGNORED = ("__pycache__", ".ipynb_checkpoints")


def make_repository(source: Path, target: Path) -> str:
    """A bare repository at ``target`` whose branch ``main`` holds the files of ``source``; its commit (40 hex digits).

    Made whole or not at all. A repository that is there already gets one more commit if the files differ, else nothing.
    Author and date are fixed, so that equal files with an equal past give an equal commit. Links are not followed.

    Raises:
        FileNotFoundError: ``source`` holds no file.
        subprocess.CalledProcessError: git failed; its message is in ``stderr``.
    """
    files = list(_files(source))
    if not files:
        raise FileNotFoundError(f"{source} holds no file to make a repository of")
    if not (target / "HEAD").is_file():
        return _make_new(source, files, target)
    tree = _write_tree(source, files, target)
    head = _git(target, "rev-parse", "--verify", "--quiet", f"refs/heads/{BRANCH}", may_fail=True)
    if head and _git(target, "rev-parse", f"{head}^{{tree}}") == tree:
        return head
    return _commit(target, tree, head)


def copy_dataset(source: Path, target: Path) -> int:
    """Bring ``target`` to the same files as ``source``, each replaced as a whole; how many were written."""
    written = 0
    for file in _files(source):
        copy = target / file.relative_to(source)
        if copy.is_file() and copy.read_bytes() == file.read_bytes():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        part = copy.with_name(f".{copy.name}.{os.getpid()}.part")
        shutil.copyfile(file, part)
        part.replace(copy)
        written += 1
    return written


def prepare(examples: Path, target: Path) -> dict[str, str]:
    """Repositories and datasets of all examples under ``target``; example name to commit."""
    for data in sorted(examples.glob("*/data")):
        copy_dataset(data, target / "datasets" / data.parent.name)
    return {
        code.parent.name: make_repository(code, target / f"{code.parent.name}.git")
        for code in sorted(examples.glob("*/code"))
    }


def _make_new(source: Path, files: list[Path], target: Path) -> str:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        made.mkdir()
        _git(
            made,
            "init",
            "--quiet",
            "--bare",
            "--template=",
            f"--initial-branch={BRANCH}",
            "--object-format=sha1",
            str(made),
        )
        # Partial clones, and fetches of a commit by its id.
        _git(made, "config", "uploadpack.allowFilter", "true")
        _git(made, "config", "uploadpack.allowAnySHA1InWant", "true")
        commit = _commit(made, _write_tree(source, files, made), None)
        try:
            made.rename(target)
        except OSError:
            if (target / "HEAD").is_file():  # somebody else was faster
                return make_repository(source, target)
            raise
    return commit


def _write_tree(source: Path, files: list[Path], repository: Path) -> str:
    """The tree of the files, by an index of our own, so that nobody's settings or ignore files matter."""
    with tempfile.TemporaryDirectory() as scratch:
        index = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        for file in files:
            blob = _git(repository, "hash-object", "-w", "--no-filters", "--", str(file.absolute()))
            mode = "100755" if file.stat().st_mode & 0o100 else "100644"
            name = file.relative_to(source).as_posix()
            _git(repository, "update-index", "--add", "--cacheinfo", f"{mode},{blob},{name}", environment=index)
        return _git(repository, "write-tree", environment=index)


def _commit(repository: Path, tree: str, parent: str | None) -> str:
    """Commit a tree and move the branch there, unless it has moved meanwhile."""
    who = {
        f"GIT_{role}_{key}": value
        for role in ("AUTHOR", "COMMITTER")
        for key, value in (("NAME", _AUTHOR), ("EMAIL", _EMAIL), ("DATE", _DATE))
    }
    parents = ("-p", parent) if parent else ()
    words = "Change the example" if parent else "Add the example"
    commit = _git(repository, "commit-tree", tree, *parents, "-m", words, environment=who)
    _git(repository, "update-ref", f"refs/heads/{BRANCH}", commit, parent or "0" * 40)
    return commit


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and not set(_IGNORED) & set(path.relative_to(folder).parts):
            yield path


def _git(
    repository: Path, *arguments: str, environment: Mapping[str, str] | None = None, may_fail: bool = False
) -> str:
    """What git prints, without anybody's configuration."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", f"--git-dir={repository}", *arguments],
        env={
            **found,
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "LC_ALL": "C",
            **(environment or {}),
        },
        capture_output=True,
        text=True,
        timeout=GIT_TIMEOUT_S,
        check=not may_fail,
    )
    return done.stdout.strip()


def main() -> int:
    if len(sys.argv) != 2:
        print(f"usage: {sys.argv[0]} TARGET_FOLDER", file=sys.stderr)
        return 2
    for name, commit in prepare(Path(__file__).parent, Path(sys.argv[1])).items():
        print(f"{name} {commit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
