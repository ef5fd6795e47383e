"""What may stand for a commit: branches, tags, whole and short commit names. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fermion.domain.counting import counted
from fermion.domain.problems import Problem

FIELD = "ref"

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,39}")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(?:/|$)|^[/.]|[/.]$|^@$")


def problems_of(ref: str) -> list[Problem]:
    """Everything wrong with a ref's text, by git's own rules for names plus: no leading dash."""
    if not ref:
        return [_problem("empty", "no branch, tag or commit is named.", "Name one, for example 'main'.")]
    found = []
    if ref.startswith("-"):
        message = f"{ref[:100]!r} begins with a dash, which git would take for an option."
        found.append(_problem("option", message, "Name a branch, tag or commit."))
    if len(ref) > 250 or _FORBIDDEN.search(ref) or not ref.isprintable():
        message = f"{ref[:100]!r} cannot be the name of a branch or tag."
        found.append(_problem("bad_ref", message, "Name a branch, tag or commit."))
    return found


def is_commit(ref: str) -> bool:
    """Whether it is a whole commit name (40 lower-case hex digits)."""
    return _COMMIT.fullmatch(ref) is not None


def is_short_commit(ref: str) -> bool:
    """Whether it may be the beginning of a commit's name (7 to 39 hex digits)."""
    return _SHORT_COMMIT.fullmatch(ref) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertised:
    """What a server says its refs are: full name to object, tags peeled to their commits."""

    refs: Mapping[str, str]

    @classmethod
    def from_listing(cls, text: str) -> Advertised:
        """Read the output of ``git ls-remote``."""
        refs: dict[str, str] = {}
        for line in text.splitlines():
            name_of_object, _, name = line.partition("\t")
            if name.endswith("^{}"):
                refs[name[: -len("^{}")]] = name_of_object
            elif name:
                refs.setdefault(name, name_of_object)
        return cls(refs=refs)

    def commits_of(self, ref: str) -> dict[str, str]:
        """Every full name that ``ref`` may mean, to its commit."""
        names = (ref, f"refs/heads/{ref}", f"refs/tags/{ref}")
        return {name: self.refs[name] for name in names if name in self.refs}

    def starting_with(self, short: str) -> set[str]:
        """Advertised commits whose names begin so."""
        return {commit for commit in self.refs.values() if commit.startswith(short)}

    def names(self) -> list[str]:
        """Branches and tags by their short names."""
        return sorted({name.split("/", 2)[2] for name in self.refs if name.startswith(("refs/heads/", "refs/tags/"))})


def ambiguous(ref: str, meanings: Mapping[str, str]) -> Problem:
    """The problem of a name with several meanings."""
    listed = ", ".join(f"{name} is {commit[:12]}" for name, commit in sorted(meanings.items()))
    return _problem("ambiguous", f"{ref!r} has several meanings: {listed}.", "Write the full name, or the commit.")


def missing(ref: str, known: list[str], where: str) -> Problem:
    """The problem of a name that the repository does not have."""
    near = difflib.get_close_matches(ref, known, n=3) or known[:5]
    have = (
        f"It has {counted(len(known), 'branch or tag', 'branches and tags')}, such as {', '.join(near)}."
        if near
        else ""
    )
    return _problem(
        "no_such_ref", f"{where} has no branch, tag or commit {ref!r}. {have}".strip(), "Push it, or name another."
    )


def _problem(code: str, message: str, fix: str) -> Problem:
    return Problem(field=FIELD, code=code, message=message, fix=fix)
