"""The command that asks for the same training again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit, urlunsplit

from fermion.domain.jobs import Job
from fermion.domain.request import to_payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """How to run it again: a shell command with the specification in it, and what that does not fix."""

    command: str
    spec: Mapping[str, object]
    is_pinned: bool
    notes: tuple[str, ...]


def reproduction(job: Job) -> Reproduction:
    """The command that asks for the same again, with the commit instead of the branch; the specification is its input."""
    pins = job.pins
    spec = _again(job)
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in spec.items())
    body = _escape_invisible(f"{{\n{lines}\n}}")
    notes = [f"image {job.spec.image} was {pins.image_digest}"] if pins else []
    notes += [f"dataset {name} was {checksum}" for name, checksum in sorted(pins.datasets.items())] if pins else []
    if without_credentials(job.spec.repository) != job.spec.repository:
        notes.append("the repository's credentials were left out")
    return Reproduction(
        # A quoted delimiter: the shell expands nothing in the body. No line of JSON can be the delimiter itself.
        command=f"fermion train --spec - <<'SPEC'\n{body}\nSPEC\n",
        spec=spec,
        is_pinned=pins is not None,
        notes=tuple(notes),
    )


def _again(job: Job) -> dict[str, object]:
    """The request as the job made it; whoever runs it is its owner."""
    pinned = replace(
        job.spec,
        repository=without_credentials(job.spec.repository),
        ref=job.pins.commit if job.pins else job.spec.ref,
    )
    return {key: value for key, value in to_payload(pinned).items() if key != "owner" and value is not None}


def without_credentials(url: str) -> str:
    """The URL without a password or token in it; a report is passed around. The user of ssh is part of the address."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return re.sub(r"//[^/@]*@", "//", url)
    user, at_sign, host = parts.netloc.rpartition("@")
    name = user.partition(":")[0] + at_sign if parts.scheme == "ssh" else ""
    return urlunsplit(parts._replace(netloc=name + host)) if at_sign else url


def _escape_invisible(text: str) -> str:
    """Text for a shell window: what cannot be seen (controls, direction marks) as JSON escapes."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
