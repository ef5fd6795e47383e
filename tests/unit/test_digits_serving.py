"""The digits example, served: its request fits the shipped configuration, its image its training; faults are off by default.

That it really serves is shown in ``tests/components/test_served_engines.py``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ruamel.yaml import YAML

from examples.make_repository import prepare
from fermion.domain.rollout.plan import FULL
from fermion.domain.serving import engines
from fermion.domain.serving.request import parse_service
from fermion.domain.serving.services import ServiceSpec
from fermion.settings import Settings, load

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLES = CHECKOUT / "include" / "examples"
DIGITS = EXAMPLES / "digits"
SERVER = DIGITS / "server"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(environ={"FERMION_ROOT": str(CHECKOUT), "FERMION_STATE": str(tmp_path)})


@pytest.fixture
def spec(settings: Settings) -> ServiceSpec:
    raw = YAML(typ="safe").load((DIGITS / "service.yaml").read_text())
    return parse_service(settings.expand_spec(raw))


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    """The example's module; it is no package of ours."""
    found = importlib.util.spec_from_file_location("faults", DIGITS / "code" / "faults.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["faults"] = module  # its dataclass looks there
    found.loader.exec_module(module)
    del sys.modules["faults"]
    return module


# --- the request ------------------------------------------------------------------------------------------------------


def test_the_request_fits_the_shipped_configuration(spec: ServiceSpec, settings: Settings) -> None:
    commits = prepare(EXAMPLES, settings.examples_dir)
    assert spec.image in settings.images
    assert spec.repository is not None
    repository = Path(spec.repository.removeprefix("file://"))
    assert any(repository.is_relative_to(root) for root in settings.code.file_roots)
    listed = ["git", f"--git-dir={repository}", "ls-tree", "-r", "--name-only", commits["digits"]]
    files = subprocess.run(listed, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    assert {"train.py", "serve.py", "faults.py", "lean_kserve.py"} <= set(files)
    assert engines.argv_of(spec)[0] in files


def test_the_engine_has_nothing_against_the_request(spec: ServiceSpec) -> None:
    assert engines.problems_of(spec, "process") == []
    assert engines.layout_problems(spec, ["model.joblib", "signature.json", "metrics.json"]) == []
    assert (engines.ports_of(spec), engines.port_of(spec)) == (("http", "grpc"), "http")


def test_the_plan_is_short_enough_to_watch(spec: ServiceSpec) -> None:
    baked = [step for step in spec.plan.steps if step.weight_percent != FULL]
    least = sum(step.bake_min.total_seconds() + spec.plan.warm_up.total_seconds() for step in baked)
    assert least <= 10
    assert spec.plan.steps[-1].weight_percent == FULL


# --- the image --------------------------------------------------------------------------------------------------------


def pinned(lock: Path) -> dict[str, set[str]]:
    """Package to the versions that the lock has of it, one for each range of Pythons."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", lock.read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def test_the_lock_pins_everything_with_hashes_and_names_no_index() -> None:
    text = (SERVER / "requirements.lock").read_text()
    assert "http" not in text.replace("httpcore", "").replace("httptools", "").replace("httpx", "")
    requirements = re.findall(r"^\S.*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL)
    assert requirements
    for requirement in requirements:
        assert re.match(r"[a-z0-9-]+==[0-9.post]+", requirement)
        assert "--hash=sha256:" in requirement


def test_what_is_left_out_is_left_out() -> None:
    excluded = {line for line in (SERVER / "excludes.txt").read_text().splitlines() if not line.startswith("#")}
    assert "kubernetes" in excluded
    assert not excluded & pinned(SERVER / "requirements.lock").keys()


def test_a_model_is_loaded_with_the_versions_that_it_was_made_with() -> None:
    served, trained = pinned(SERVER / "requirements.lock"), pinned(DIGITS / "code" / "requirements.lock")
    for name in ("scikit-learn", "numpy", "scipy", "joblib"):
        assert served[name] == trained[name]


# --- faults -----------------------------------------------------------------------------------------------------------


def options(faults: ModuleType, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    faults.add_options(parser)
    return parser.parse_args(words)


def test_nobody_misbehaves_unless_asked_to(faults: ModuleType, tmp_path: Path) -> None:
    assert not faults.asked_for(options(faults)).are_any
    assert not faults.read(tmp_path).are_any


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        pytest.param(["--fault-error-share", "0.03"], {"error_share": 0.03}, id="errors"),
        pytest.param(["--fault_latency_ms", "80"], {"latency_ms": 80.0}, id="underscores"),
        pytest.param(["--fault-latency-factor", "2"], {"latency_factor": 2.0}, id="slower"),
        pytest.param(["--fault-leak-mib=4", "--fault-nan-share=1"], {"nan_share": 1.0, "leak_mib": 4.0}, id="several"),
        pytest.param(["--fault-start", "crash"], {"start": "crash"}, id="a crash at the start"),
    ],
)
def test_what_is_asked_for_is_what_the_server_reads(
    faults: ModuleType, tmp_path: Path, words: list[str], asked: dict[str, Any]
) -> None:
    made = faults.asked_for(options(faults, *words))
    assert made.to_json() == asked
    (tmp_path / faults.FILE).write_text(json.dumps(made.to_json()))
    assert faults.read(tmp_path) == made


@pytest.mark.parametrize(
    "values", [{"error_share": 1.01}, {"nan_share": -0.1}, {"latency_factor": 0.5}, {"leak_mib": 1e9}, {"other": 1}]
)
def test_faults_out_of_their_range_are_refused(faults: ModuleType, values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="fault"):
        faults.checked(values)
