"""One command's view of the platform: opened when first needed, errors turned into words and exit codes."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

from fermion.cli.output import fail
from fermion.errors import FermionError, OutsideUnavailable
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
    def how_to_start(self) -> str:
        """How the platform is started where that is in the caller's hands, as a sentence; else empty."""
        return "`make up` or `fermion up` starts the platform." if self.settings.is_started_by_up else ""

    def what_to_do(self, error: FermionError) -> str:
        """What the error itself cannot know: who starts the program that it misses."""
        return self.how_to_start if isinstance(error, OutsideUnavailable) and error.what in ("store", "airflow") else ""

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
    here = Session()
    try:
        yield here
    except FermionError as error:
        fail(error, as_json=as_json, what_to_do=here.what_to_do(error))
