"""One command's view of the platform: opened when first needed, errors turned into words and exit codes."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

from fermion.cli.output import fail
from fermion.errors import FermionError
from fermion.ports import Runs
from fermion.settings import Settings, load
from fermion.usecases.context import Context


class Session:
    """Settings, platform and engine, each built at its first use."""

    @cached_property
    def settings(self) -> Settings:
        """The installation's settings."""
        return load()

    @cached_property
    def platform(self) -> Context:
        """The use cases' context."""
        from fermion.wiring import build

        return build(self.settings)

    @cached_property
    def runs(self) -> Runs:
        """The workflow engine."""
        from fermion.wiring import open_runs

        return open_runs(self.settings)

    @property
    def user(self) -> str:
        """Who asks: the account of this machine."""
        try:
            return getpass.getuser()
        except (KeyError, OSError):
            return "unknown"


@contextmanager
def session(as_json: bool) -> Iterator[Session]:
    """A session; a Fermion error ends the command with its message (or JSON) and exit code."""
    try:
        yield Session()
    except FermionError as error:
        fail(error, as_json=as_json)
