"""The forms that a person fills in. Choices come from a small file that the sync writes: no database at parse time.

A field's schema only draws the form. Airflow would answer a wrong value with the first thing that is wrong with it; so every
value arrives at ``check_quota``, which answers all problems of a request at once, whichever door it came through.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from airflow.sdk import Param

PLAN_HELP = (
    'Steps in percent, and what is measured. A step may also be copies, as {"mirror": 20}, those who bring a header or a '
    'cookie, as {"split": {"header": "x-group", "value": "beta"}, "approval": true}, sticky, as {"weight": 10, '
    '"split": {"cookie": "variant"}, "approval": true}, or kept for a time, as {"split": {"fixed": 30, "for": "1h"}}. '
    "docs/rollouts.md lists all of it."
)
"""Of the deployment form's plan. The examples in it are steps that are taken."""


def choices() -> dict[str, list[str]]:
    """Pools, images and datasets as the sync last wrote them; empty lists before the first sync."""
    path = _state() / "choices.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    known = found if isinstance(found, dict) else {}
    return {key: [str(name) for name in known.get(key) or []] for key in ("pools", "images", "datasets")}


def train_form() -> dict[str, Param]:
    """The fields of a training request, in the order a person thinks of them. Untouched it trains the example, where that is."""
    known = choices()
    trainers = sorted(known["images"], key=_is_server)
    return {
        "name": _field(
            "training", type="string", title="Name", description="What you call it.", minLength=1, maxLength=100
        ),
        **_code_fields(),
        "image": _choice(trainers, "Image", "What it runs in: the Python environment or container."),
        "datasets": _field(
            known["datasets"][:1],
            type=["array", "null"],
            title="Datasets",
            description="Choose any number. Your code finds each in the folder FERMION_DATA_DIR/<name>, read-only.",
            examples=known["datasets"],
        ),
        **_resource_fields(known["pools"]),
        **_limit_fields(),
    }


def _code_fields() -> dict[str, Param]:
    example = _example_repository()
    return {
        "repository": _field(
            example,
            type="string",
            title="Git repository",
            description="Where your training code is, such as https://github.com/you/code.git or git@host:you/code.git."
            + (" Filled in is the example of this installation." if example else ""),
        ),
        "ref": _field(
            "main",
            type="string",
            title="Branch, tag or commit",
            description="What it means now is what is trained, also if the branch moves on while the job waits.",
        ),
        "entrypoint": _field(
            "python train.py",
            type="string",
            title="Entrypoint",
            description="The command that trains, run in the repository's folder. No shell: write arguments as they are.",
        ),
        "hyperparameters": _field(
            {},
            type="object",
            title="Hyperparameters",
            description='Such as {"epochs": 10, "lr": 0.01}: given to the entrypoint as --epochs 10 --lr 0.01.',
        ),
        "output_model": _field(
            "digits" if example else "",
            type="string",
            title="Model",
            description="The name to publish it under, such as vision/digits; each training makes its next version.",
        ),
    }


def _resource_fields(pools: list[str]) -> dict[str, Param]:
    section = "GPUs"
    return {
        "pool": _choice(pools, "GPU pool", "Which GPUs it runs on: cluster / GPU model.", section=section),
        "gpus_per_node": _field(
            1,
            type="integer",
            minimum=1,
            title="GPUs per node",
            description="Whole GPUs of one machine.",
            section=section,
        ),
        "nodes": _field(
            1, type="integer", minimum=1, title="Nodes", description="Machines; all start together.", section=section
        ),
        "priority": _field(
            0,
            type="integer",
            minimum=-1000,
            maximum=1000,
            title="Priority",
            description="-1000 to 1000. Higher goes first and may take GPUs from preemptible jobs below it.",
            section=section,
        ),
        "preemptible": _field(
            True,
            type="boolean",
            title="Preemptible",
            description="A job of higher priority may take its GPUs; it then goes on later from its last checkpoint.",
            section=section,
        ),
        "team": _field(
            "default", type="string", title="Team", description="Whose quota it counts against.", section=section
        ),
    }


def _limit_fields() -> dict[str, Param]:
    section = "Limits and resuming"
    return {
        "max_runtime": _field(
            None,
            type=["null", "string"],
            title="Longest run",
            description="Such as 90s, 30m, 12h: ended beyond it. A job that says so may start earlier, in gaps.",
            section=section,
        ),
        "queue_timeout": _field(
            None,
            type=["null", "string"],
            title="Longest wait",
            description="Such as 30m, 12h: gives up when no GPU was free for so long. Empty: the pool's default.",
            section=section,
        ),
        "memory_mib": _field(
            None,
            type=["null", "integer"],
            minimum=16,
            title="Memory (MiB)",
            description="Ended when it takes more. Empty: the platform's default.",
            section=section,
        ),
        "checkpoint": _field(
            None,
            type=["null", "string"],
            title="Resume from",
            description="The id of an earlier job, such as job-20261124-001, whose last checkpoint to start from.",
            section=section,
        ),
    }


def deploy_form() -> dict[str, Param]:
    """The fields of a deployment, in the order a person thinks of them. Untouched it deploys the example, where that is."""
    known = choices()
    example = _example_repository()
    servers = list(filter(_is_server, known["images"])) or known["images"]
    return {
        "name": _field(
            "digits" if example else "", type="string", title="Service", description="Its name: a DNS label."
        ),
        "model": _field(
            "digits" if example else "",
            type="string",
            title="Model",
            description="A published model, such as digits (its newest version) or digits/3.",
        ),
        "engine": _field(
            "kserve",
            type="string",
            title="Engine",
            description="The model server; `fermion engines` tells what each needs.",
            enum=["kserve", "mlserver", "triton", "vllm", "tensorflow-serving", "command"],
        ),
        "image": _choice(servers, "Image", "What the server runs in."),
        "repository": _field(
            example,
            type=["null", "string"],
            title="Git repository",
            description="Where the server's code is; empty where the image or the model brings it.",
        ),
        "command": _field(
            "python serve.py" if example else "",
            type=["null", "string"],
            title="Command",
            description="The server's command line where the engine's own is not wanted. {port:http} stands for its port.",
        ),
        **_serving_resources(known["pools"]),
        **_rollout_fields(),
    }


def _rollout_fields() -> dict[str, Param]:
    section = "Rollout"
    return {
        "plan": _field(
            {"steps": [10, 50, 100]},
            type="object",
            title="Rollout plan",
            description=PLAN_HELP,
            section=section,
        ),
        "retry_failed": _field(
            False,
            type="boolean",
            title="Try again what failed",
            description="What failed in this service is refused otherwise; kept with your name.",
            section=section,
        ),
    }


def _serving_resources(pools: list[str]) -> dict[str, Param]:
    section = "Replicas"
    return {
        "pool": _choice(pools, "GPU pool", "Which GPUs it runs on: cluster / GPU model.", section=section),
        "replicas": _field(
            1, type="integer", minimum=1, title="Replicas", description="Model servers.", section=section
        ),
        "gpus_per_replica": _field(
            1, type="integer", minimum=1, title="GPUs of each", description="Whole GPUs.", section=section
        ),
        "memory_mib": _field(
            None,
            type=["null", "integer"],
            title="Memory of each (MiB)",
            description="Started again when it takes more. Empty: the platform's default.",
            section=section,
        ),
        "capacity": _field(
            "wait",
            type="string",
            title="When GPUs are short",
            description="wait in line, borrow from preemptible jobs, or swap replica by replica.",
            enum=["wait", "borrow", "swap"],
            section=section,
        ),
    }


def _is_server(image: str) -> bool:
    """By its name: an image is known by nothing else here."""
    return "server" in image


def _choice(names: list[str], title: str, description: str, **more: Any) -> Param:
    if not names:
        description = f"{description} (No choices yet: the first sync lists them within a minute.)"
        return _field("", type="string", title=title, description=description, **more)
    return _field(names[0], type="string", title=title, description=description, enum=names, **more)


def _field(default: object, *, description: str, **drawn: Any) -> Param:
    """A field that is drawn as ``drawn`` says, and takes every value.

    In JSON Schema draft 7 whatever stands beside a ``$ref`` is ignored when a value is checked (section 8.3); Airflow's form
    reads it all the same.
    """
    takes_all = {"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/definitions/all"}
    return Param(default, description=description, schema={**takes_all, "definitions": {"all": {}}, **drawn})


def _state() -> Path:
    return Path(os.environ.get("FERMION_STATE", "run")).resolve()


def _example_repository() -> str:
    """The example's URL where it was made, else an empty string."""
    place = _state() / "examples" / "digits.git"
    return place.as_uri() if place.exists() else ""


def digits_request(**changes: object) -> dict[str, object]:
    """The request of the example in ``include/examples/digits``, for the DAGs that train it again."""
    return {
        "name": "digits",
        "pool": "local/declared",
        "image": "digits:1",
        "datasets": ["digits"],
        "repository": (_state() / "examples" / "digits.git").as_uri(),
        "ref": "main",
        "entrypoint": "python train.py",
        "hyperparameters": {"epochs": 10},
        "memory_mib": 1024,
        "output_model": "digits",
        **changes,
    }
