"""Which names a model may have in the model repository.

A name is one or more segments (``vision/digits``). A segment of digits only is refused: ``<model>/<number>`` is the path
of a version, so ``digits/3`` would mean two things.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from fermion.domain.problems import Problem

MAX_LENGTH = 128
"""Characters of a whole name; it becomes part of paths and object keys, whose limits are 255 and 1024 bytes."""

MAX_SEGMENTS = 8

_SEGMENT = re.compile(r"[a-z0-9][a-z0-9._-]*")
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")
_FIX = (
    "Use a name such as 'digits' or 'vision/digits': lower-case letters, digits, '.', '_', '-', segments joined by '/'."
)


def problems_of(name: str, *, field: str = "output_model") -> list[Problem]:
    """Everything wrong with a model's name; empty when it is a valid one."""

    def problem(code: str, message: str) -> Problem:
        return Problem(field=field, code=code, message=message, fix=_FIX)

    if not name:
        return [problem("empty", "the model name is empty.")]
    if len(name) > MAX_LENGTH:
        return [problem("too_long", f"the model name has {len(name)} characters; at most {MAX_LENGTH} are allowed.")]
    shown = repr(name)
    if _SCHEME.match(name):
        return [problem("foreign_scheme", f"{shown} is a URL; a model is named by its path in the model repository.")]
    found = []
    if name.startswith(("/", "~")) or "\\" in name:
        found.append(problem("absolute", f"{shown} is a path of a file system, not a name."))
    segments = name.strip("/").split("/")
    if len(segments) > MAX_SEGMENTS:
        found.append(problem("too_deep", f"{shown} has {len(segments)} segments; at most {MAX_SEGMENTS} are allowed."))
    if ".." in segments or "." in segments:
        found.append(problem("dot_segment", f"{shown} has a '.' or '..' segment, which could leave the repository."))
    if "" in segments or name.endswith("/"):
        found.append(problem("empty_segment", f"{shown} has an empty segment."))
    found += _problems_of_segments(segments, problem)
    return found


def _problems_of_segments(segments: list[str], problem: Callable[[str, str], Problem]) -> list[Problem]:
    named = [segment for segment in segments if segment not in ("", ".", "..")]
    found = [
        problem("bad_characters", f"the segment {segment!r} has characters that a model name may not have.")
        for segment in named
        if not _SEGMENT.fullmatch(segment)
    ]
    found += [
        problem("number_segment", f"the segment {segment!r} is a number, which would be read as a version.")
        for segment in named
        if segment.isdecimal()
    ]
    return found
