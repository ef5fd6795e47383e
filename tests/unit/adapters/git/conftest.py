"""Real repositories and a real git server on loopback."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

_BRIDGE = Path(__file__).parents[3] / "components" / "git_http_backend.py"


class Repository:
    """A working copy and the bare repository that its commits are pushed to."""

    def __init__(self, work: Path, bare: Path) -> None:
        self.work = work
        self.bare = bare
        work.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main")
        subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(bare)], check=True)
        self.config(bare, "uploadpack.allowFilter", "true")
        self.config(bare, "uploadpack.allowAnySHA1InWant", "true")

    def git(self, *arguments: str) -> str:
        who = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "protocol.file.allow=always"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        environment["GIT_CONFIG_GLOBAL"] = os.devnull
        ran = subprocess.run(
            ["git", *who, *arguments], cwd=self.work, env=environment, capture_output=True, text=True, check=True
        )
        return ran.stdout.strip()

    def config(self, bare: Path, key: str, value: str) -> None:
        subprocess.run(["git", "-C", str(bare), "config", key, value], check=True)

    def commit(self, files: dict[str, str | bytes], *, branch: str = "main", message: str = "a change") -> str:
        """Commit the files and push the branch; the commit's name."""
        for path, content in files.items():
            at = self.work / path
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_bytes(content.encode() if isinstance(content, str) else content)
        self.git("add", "--all", "--force")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        self.push(branch)
        return self.git("rev-parse", "HEAD")

    def push(self, branch: str = "main") -> None:
        """Push HEAD as that branch, and all tags."""
        self.git("push", "--quiet", "--force", "--tags", str(self.bare), f"HEAD:refs/heads/{branch}")


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """The folder of bare repositories that are served."""
    folder = tmp_path / "served"
    folder.mkdir()
    return folder


@pytest.fixture
def repository(tmp_path: Path, served: Path) -> Repository:
    return Repository(tmp_path / "work", served / "digits.git")


@pytest.fixture
def server(served: Path) -> Iterator[Any]:
    spec = spec_from_file_location("git_http_backend", _BRIDGE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.GitServer(served) as server:
        yield server
