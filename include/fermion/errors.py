"""Every error that Fermion raises on purpose.

FermionError
├── RequestRefused        the request has problems; all of them are listed
├── NotFound              the named thing does not exist
├── Conflict              the thing exists already, with other content
├── InvalidTransition     a move that the state machine's table does not have (a bug, or a stale caller)
├── NotPermitted          the caller may not do this
├── SettingsInvalid       a configuration file is wrong; every problem with its line
├── DriverCannot          this driver cannot do what was asked, and says why
└── OutsideUnavailable    something outside (store, git server, object store, registry) does not answer
    └── OutsideBroken     it answers, and the answer is unusable (corrupt data, checksum mismatch)

Expected outcomes (no capacity, a lost race) are return values, not errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fermion.domain.problems import Problem, lines_of


class FermionError(Exception):
    """Base of all. ``code`` is stable for programs; ``retryable`` tells whether the same call may succeed later."""

    code: ClassVar[str] = "fermion_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, what: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.what = what


class RequestRefused(FermionError):
    """The request has problems; ``problems`` lists all of them."""

    code = "request_refused"

    def __init__(self, problems: Sequence[Problem], *, what: str = "request") -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        lines = "\n".join(f"  - {line}" for line in lines_of(self.problems))
        super().__init__(f"the {what} has {count} problem{'s' if count != 1 else ''}:\n{lines}", what=what)


class NotFound(FermionError):
    """The named thing does not exist."""

    code = "not_found"


class Conflict(FermionError):
    """The thing exists already, with other content."""

    code = "conflict"


class InvalidTransition(FermionError):
    """A move that the state machine's table does not have."""

    code = "invalid_transition"


class NotPermitted(FermionError):
    """The caller may not do this."""

    code = "not_permitted"


class SettingsInvalid(FermionError):
    """A configuration file is wrong; the message holds every problem as ``file:line: message``."""

    code = "settings_invalid"


class DriverCannot(FermionError):
    """This driver cannot do what was asked."""

    code = "driver_cannot"


class OutsideUnavailable(FermionError):
    """Something outside does not answer; the same call may succeed later."""

    code = "outside_unavailable"
    retryable = True


class OutsideBroken(OutsideUnavailable):
    """Something outside answers, but the answer cannot be used; trying again will not help by itself."""

    code = "outside_broken"
    retryable = False
