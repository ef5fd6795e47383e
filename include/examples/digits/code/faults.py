"""How a model may be made to misbehave on purpose: for demonstrations of a rollback, and for tests. Off unless asked for.

The training writes what was asked for into the model as faults.json; the server obeys it, and says so when it starts.
Nothing but Python's standard library.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

FILE = "faults.json"


@dataclass(frozen=True)
class Faults:
    """What a server does wrong. Shares are of its requests, 0 to 1, each request judged by chance for itself."""

    start: str = ""  # "crash": exits at once; "hang": never serves
    error_share: float = 0.0  # answered with an error
    nan_share: float = 0.0  # answered with a confidence that is no number
    shape_share: float = 0.0  # answered with one dimension too many
    latency_ms: float = 0.0  # each answer comes later by this
    latency_factor: float = 1.0  # each takes as many times as long to make
    leak_mib: float = 0.0  # each keeps this much memory for ever

    @property
    def are_any(self) -> bool:
        """Whether anything is asked for."""
        return self != Faults()

    def to_json(self) -> dict[str, str | float]:
        """What is asked for, the rest left out."""
        return {name: value for name, value in asdict(self).items() if value != getattr(Faults, name)}


def add_options(parser: argparse.ArgumentParser) -> None:
    """``--fault-error-share 0.03`` and so on, also with underscores."""
    group = parser.add_argument_group("faults", "make a model that misbehaves when it is served (see faults.py)")
    for each in fields(Faults):
        name = f"fault-{each.name.replace('_', '-')}"
        kind = {"choices": ("", "crash", "hang")} if each.name == "start" else {"type": float}
        group.add_argument(f"--{name}", f"--{name.replace('-', '_')}", default=each.default, **kind)


def asked_for(options: argparse.Namespace) -> Faults:
    """The faults that the options ask for.

    Raises:
        ValueError: a number is out of its range.
    """
    return checked({each.name: getattr(options, f"fault_{each.name}") for each in fields(Faults)})


def read(folder: Path) -> Faults:
    """The faults of the model in that folder; none where there is no such file."""
    file = folder / FILE
    return checked(json.loads(file.read_text())) if file.is_file() else Faults()


def checked(values: Mapping[str, str | float]) -> Faults:
    """The faults, their ranges checked.

    Raises:
        ValueError: one is unknown or out of its range.
    """
    unknown = sorted(set(values) - {each.name for each in fields(Faults)})
    if unknown:
        raise ValueError(f"there is no fault {', '.join(unknown)}")
    for name, value in values.items():
        low, high = (0.0, 1.0) if name.endswith("_share") else (1.0 if name == "latency_factor" else 0.0, 10_000.0)
        if name != "start" and not low <= float(value) <= high:
            raise ValueError(f"fault {name} must be {low:g} to {high:g}, not {value}")
    return Faults(**values)  # type: ignore[arg-type]
