"""The forms that a person fills in. Choices come from a small file that the sync writes: no database at parse time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from airflow.sdk import Param


def choices() -> dict[str, list[str]]:
    """Pools, images and datasets as the sync last wrote them; empty lists before the first sync."""
    path = Path(os.environ.get("FERMION_STATE", "run")) / "choices.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"pools": [], "images": [], "datasets": []}
    return {key: [str(name) for name in found.get(key, [])] for key in ("pools", "images", "datasets")}


def train_form() -> dict[str, Param]:
    """The fields of a training request, in the order a person thinks of them."""
    known = choices()
    return {
        "name": Param(
            "training", type="string", title="Name", description="What you call it.", minLength=1, maxLength=63
        ),
        "pool": _choice(known["pools"], "GPU pool", "Whose GPUs it runs on."),
        "image": _choice(known["images"], "Image", "What it runs in."),
        "datasets": Param(
            known["datasets"][:1],
            type=["array", "null"],
            title="Datasets",
            description="Staged read-only; the code finds each in FERMION_DATA_DIR/<name>.",
            examples=known["datasets"],
        ),
        **_code_fields(),
        **_resource_fields(),
        "checkpoint": Param(
            None,
            type=["null", "string"],
            title="Resume from",
            description="The id of a job whose last checkpoint to start from, or empty.",
        ),
    }


def _code_fields() -> dict[str, Param]:
    return {
        "repository": Param(
            "", type="string", title="Git repository", description="https, ssh; embedded also file://."
        ),
        "ref": Param(
            "main", type="string", title="Branch, tag or commit", description="Pinned to a commit at the check."
        ),
        "entrypoint": Param(
            "train.py",
            type="string",
            title="Entrypoint",
            description="A script of the repository with fixed arguments; no shell.",
        ),
        "hyperparameters": Param(
            {},
            type="object",
            title="Hyperparameters",
            description="Reach the code as --key value and as the JSON file FERMION_PARAMETERS.",
        ),
        "output_model": Param(
            "",
            type="string",
            title="Model",
            description="Its name in the model repository; the version is given there.",
        ),
    }


def _resource_fields() -> dict[str, Param]:
    return {
        "gpus_per_node": Param(1, type="integer", minimum=1, title="GPUs per node"),
        "nodes": Param(1, type="integer", minimum=1, title="Nodes"),
        "priority": Param(
            0, type="integer", minimum=-1000, maximum=1000, title="Priority", description="Higher goes first."
        ),
        "team": Param("default", type="string", title="Team", description="Whose quota it counts against."),
        "memory_mib": Param(
            None,
            type=["null", "integer"],
            minimum=16,
            title="Memory (MiB)",
            description="Ended beyond it; empty: the default.",
        ),
        "preemptible": Param(
            True,
            type="boolean",
            title="Preemptible",
            description="A higher priority may take its GPUs; it resumes later.",
        ),
        "queue_timeout": Param(
            None, type=["null", "string"], title="Queue timeout", description="Such as 30m: gives up waiting after it."
        ),
        "max_runtime": Param(
            None,
            type=["null", "string"],
            title="Max runtime",
            description="Such as 90s, 30m, 12h; lets it start earlier in gaps.",
        ),
    }


def _choice(names: list[str], title: str, description: str) -> Param:
    if not names:
        return Param(
            "", type="string", title=title, description=f"{description} (No choices yet: the first sync lists them.)"
        )
    extra: dict[str, Any] = {"enum": names}
    return Param(names[0], type="string", title=title, description=description, **extra)


def digits_request(**changes: object) -> dict[str, object]:
    """The request of the example in ``include/examples/digits``, for the DAGs that train it again."""
    state = Path(os.environ.get("FERMION_STATE", "run")).resolve()
    return {
        "name": "digits",
        "pool": "local/declared",
        "image": "digits:1",
        "datasets": ["digits"],
        "repository": f"file://{state}/examples/digits.git",
        "ref": "main",
        "entrypoint": "python train.py",
        "hyperparameters": {"epochs": 10},
        "memory_mib": 1024,
        "output_model": "digits",
        **changes,
    }
