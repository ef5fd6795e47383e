"""The platform as docker-compose.yml has it, on the tests' engine: built, started, asked and stopped as a person would."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import bases
import httpx
from engine import Engine

ROOT = Path(__file__).resolve().parents[3]
FILES = ("docker-compose.yml", "tests/components/compose/outside.yml")
PROJECT = "fermion-test"
STATE = "/var/lib/fermion"
UP_WITHIN_S = 240
BUILD_WITHIN_S = 900
PATIENCE_S = 90.0
RESTART_WITHIN_S = 180.0
COMPONENTS = ("api-server", "scheduler", "dag-processor", "triggerer")
SERVICES = ("postgres", "machine", "router", *COMPONENTS)
KEEPERS = (b"keep.py", b"router.py")
"""Main processes whose child is the program."""


def wait_until(is_true: Callable[[], Any], what: str, *, within_s: float = PATIENCE_S) -> Any:
    """The first true answer; fails after ``within_s``. A failing call is asked again."""
    until = time.monotonic() + within_s
    last: object = None
    while time.monotonic() < until:
        try:
            if answer := is_true():
                return answer
        except (AssertionError, httpx.HTTPError) as error:
            last = error
        time.sleep(0.3)
    raise TimeoutError(f"{what} did not come true within {within_s:.0f} s ({last or 'no error'})")


@dataclass
class Composed:
    """One project: images made here, secrets and port of its own, volumes that are forgotten by ``forget``."""

    engine: Engine
    folder: Path
    environ: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        with socket.socket() as pages, socket.socket() as services:
            for probe in (pages, services):
                probe.bind(("127.0.0.1", 0))
            self.port, self.router_port = (int(probe.getsockname()[1]) for probe in (pages, services))
        self.secrets = self.folder / "secrets"
        self.environ = {
            **self.engine.environ,
            "COMPOSE_PROJECT_NAME": PROJECT,
            "COMPOSE_ANSI": "never",
            "COMPOSE_PROGRESS": "plain",
            "FERMION_TAG": "test",
            "FERMION_PORT": str(self.port),
            "FERMION_ROUTER_PORT": str(self.router_port),
            "FERMION_SECRETS": str(self.secrets),
        }
        made = subprocess.run(
            [ROOT / "config/docker/make-secrets.sh"], env=self.environ, timeout=30, capture_output=True, check=False
        )
        assert made.returncode == 0, made.stderr

    # --- the command ---

    def call(self, *words: str, within_s: float = 120, **changes: str) -> subprocess.CompletedProcess[str]:
        """``docker compose`` with these words, whatever comes of it."""
        files = [word for file in FILES for word in ("--file", file)]
        command = ["docker", "compose", *files, *words]
        environ = {**self.environ, **changes}
        return subprocess.run(
            command, env=environ, cwd=ROOT, capture_output=True, text=True, timeout=within_s, check=False
        )

    def compose(self, *words: str, within_s: float = 120) -> str:
        """What it printed; it has to succeed."""
        done = self.call(*words, within_s=within_s)
        assert done.returncode == 0, (
            f"{words} exited with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        )
        return done.stdout

    def build(self) -> None:
        """Both images, on bases made of this machine."""
        trusted = f"{bases.CERTIFICATES}"
        settings = [f"PATH={bases.PATH}", f"SSL_CERT_FILE={trusted}", f"PIP_CERT={trusted}"]
        for variable, name, root in (
            ("FERMION_BASE", "fermion-test-python", bases.python_root()),
            ("POSTGRES_BASE", "fermion-test-postgres", bases.postgres_root()),
        ):
            file = self.folder / f"{name}.tar"
            root.write(file)
            self.environ[variable] = self.engine.imported(name, file, *(f"ENV {each}" for each in settings))
            file.unlink()
        self.compose("build", within_s=BUILD_WITHIN_S)

    def up(self) -> None:
        """Start it and return once it is healthy, as docs/operations.md says."""
        self.compose("up", "--detach", "--wait", "--wait-timeout", str(UP_WITHIN_S), within_s=UP_WITHIN_S + 30)

    def down(self) -> None:
        """Stop it; its volumes stay."""
        self.compose("down", "--remove-orphans", within_s=180)

    def forget(self) -> None:
        """Nothing of it is left but its images; also after a run that was killed."""
        self.call("down", "--remove-orphans", "--volumes", "--timeout", "5", within_s=180)
        self.engine.docker("image", "prune", "--force")

    # --- containers ---

    def container(self, service: str) -> dict[str, Any]:
        """What the engine knows about the service's container."""
        found: list[dict[str, Any]] = json.loads(self.engine.docker("inspect", f"{PROJECT}-{service}-1"))
        return found[0]

    def health(self, service: str) -> str:
        """``starting``, ``healthy`` or ``unhealthy``."""
        return str(self.container(service)["State"]["Health"]["Status"])

    def passes_its_check(self, service: str) -> bool:
        """Whether the container's own health check passes now; asked directly, without the engine's rhythm."""
        _, *check = self.container(service)["Config"]["Healthcheck"]["Test"]
        return self.call("exec", "-T", service, *check, within_s=40).returncode == 0

    def pid(self, service: str) -> int:
        """The process id of the service's main process on this machine."""
        return int(self.container(service)["State"]["Pid"])

    def program(self, service: str) -> int:
        """The process id of the service's program: the main process, or what this one keeps running."""
        main = self.pid(service)
        kept = Path(f"/proc/{main}/task/{main}/children").read_text(encoding="utf-8").split()
        command = Path(f"/proc/{main}/cmdline").read_bytes()
        return int(kept[0]) if kept and any(keeper in command for keeper in KEEPERS) else main

    def listening(self, service: str) -> set[tuple[str, int]]:
        """Addresses and ports that somebody listens on in the service's network."""
        found = set()
        for line in Path(f"/proc/{self.pid(service)}/net/tcp").read_text(encoding="utf-8").splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            host, port = local.split(":")
            if state == "0A":
                found.add((socket.inet_ntoa(int(host, 16).to_bytes(4, sys.byteorder)), int(port, 16)))
        return found

    def kill(self, *services: str) -> None:
        """``kill -9`` of the main processes, as a crash would; the engine does not take it for our wish."""
        for pid in [self.pid(service) for service in services]:
            os.kill(pid, signal.SIGKILL)

    def wait_for_check(self, service: str, *, passes: bool) -> None:
        """Until the container's own health check passes, or until it does not."""
        wait_until(lambda: self.passes_its_check(service) is passes, f"the check of {service} to be {passes}")

    def wait_for_restart(self, service: str) -> None:
        """Until the engine has started the service again after a crash, and it is healthy."""

        def is_back() -> bool:
            return bool(self.container(service)["RestartCount"]) and self.health(service) == "healthy"

        wait_until(is_back, f"{service} started again", within_s=RESTART_WITHIN_S)

    # --- the platform ---

    def fermion(self, *words: str, spec: Mapping[str, object] | None = None, within_s: float = 180) -> Any:
        """What the command answers as JSON in the scheduler's container; ``spec`` goes to its standard input."""
        done = subprocess.run(
            ["docker", "compose", "exec", "-T", "scheduler", "fermion", *words, "--json"],
            env=self.environ,
            cwd=ROOT,
            input=json.dumps(spec) if spec is not None else "",
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
        assert done.returncode == 0, f"fermion {words} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def ask(self, path: str, body: Mapping[str, object] | None = None) -> httpx.Response:
        """What a client on this machine gets on the services' published port."""
        url = f"http://127.0.0.1:{self.router_port}{path}"
        return httpx.request("POST" if body else "GET", url, json=body, timeout=10, trust_env=False)

    def is_serving(self) -> bool:
        """Whether the pages answer on the published port."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/api/v2/version", timeout=5, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def runs(self, dag_id: str) -> dict[str, str]:
        """Airflow's runs of a DAG and their states, asked as its administrator on the published port."""
        password = json.loads((self.secrets / "passwords.json").read_text(encoding="utf-8"))["admin"]
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30, trust_env=False) as client:
            signed_in = client.post("/auth/token", json={"username": "admin", "password": password})
            headers = {"Authorization": f"Bearer {signed_in.json()['access_token']}"}
            listed = client.get(f"/api/v2/dags/{dag_id}/dagRuns", headers=headers).json()["dag_runs"]
        return {run["dag_run_id"]: run["state"] for run in listed}

    def files(self, folder: str) -> dict[str, str]:
        """SHA-256 of every file below a folder of the state volume."""
        volume = json.loads(self.engine.docker("volume", "inspect", f"{PROJECT}_state"))[0]
        root = Path(volume["Mountpoint"]) / folder
        found = sorted(path for path in root.rglob("*") if path.is_file())
        return {str(path.relative_to(root)): sha256(path.read_bytes()).hexdigest() for path in found}

    def wrong(self, name: str, content: str) -> str:
        """A copy of the secrets folder in which that one is something else."""
        folder = self.folder / f"wrong-{name}"
        shutil.copytree(self.secrets, folder, dirs_exist_ok=True)
        (folder / name).chmod(0o644)
        (folder / name).write_text(content, encoding="utf-8")
        return str(folder)
