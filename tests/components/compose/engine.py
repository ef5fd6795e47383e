"""A Docker engine of the tests' own, with its own containerd; one on this machine already is neither used nor touched.

Its images stay in the cache folder, so that the next run finds its layers. Containers reach the outside through three
firewall rules for the engine's own addresses, removed at the end; the engine itself writes none.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from go_programs import CACHE, ProgramMissing, built

PROGRAMS = ("docker", "dockerd", "containerd", "runc", "iptables", "ldd", "git")
PACKAGES = "docker.io, containerd, runc, iptables, git: tests/components/install.sh installs them"
ADDRESSES = "10.213.0.0/16"
RULES = (
    ("nat", "POSTROUTING", "-s", ADDRESSES, "!", "-d", ADDRESSES, "-j", "MASQUERADE"),
    ("filter", "FORWARD", "-s", ADDRESSES, "-j", "ACCEPT"),
    ("filter", "FORWARD", "-d", ADDRESSES, "-j", "ACCEPT"),
)
START_WITHIN_S = 60
STOP_WITHIN_S = 60
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


class EngineMissing(RuntimeError):
    """No engine can be started here; the message says what is missing."""


@dataclass(frozen=True)
class Engine:
    """A running engine. ``environ`` makes the ``docker`` command talk to it, compose included."""

    folder: Path
    environ: Mapping[str, str]

    def docker(self, *words: str, within_s: float = 120) -> str:
        """What the command printed.

        Raises:
            AssertionError: it failed; with all it said.
        """
        done = subprocess.run(
            ["docker", *words], env=self.environ, capture_output=True, text=True, timeout=within_s, check=False
        )
        assert done.returncode == 0, f"docker {' '.join(words)} exited with {done.returncode}: {done.stderr}"
        return done.stdout

    def imported(self, name: str, root: Path, *settings: str) -> str:
        """The image of a root file system, made if it is not there: the tag names the content, so layers on it stay."""
        image = f"{name}:{sha256(root.read_bytes() + repr(settings).encode()).hexdigest()[:12]}"
        if not self.docker("images", "--quiet", image).strip():
            changes = [word for setting in settings for word in ("--change", setting)]
            self.docker("import", *changes, str(root), image)
        for other in self.docker("images", "--format", "{{.Repository}}:{{.Tag}}", name).split():
            if other != image:
                self.docker("rmi", other)
        return image


@contextmanager
def running() -> Iterator[Engine]:
    """An engine until the end of the block; then its processes, mounts and firewall rules are gone.

    One at a time on a machine, the others wait. What a killed run has left behind is ended first.

    Raises:
        EngineMissing: this machine lacks root, a program, or the compose plugin cannot be built.
    """
    compose = _checked()
    folder = CACHE / "engine"
    folder.mkdir(parents=True, exist_ok=True)
    with (CACHE / "engine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        engine = Engine(folder, _environ(folder, compose))
        forwarding = FORWARDING.read_text()
        try:
            _end_all(folder)
            _start(engine)
            yield engine
        finally:
            _end_all(folder)
            FORWARDING.write_text(forwarding)


def processes(folder: Path) -> list[int]:
    """Ids of processes that name this folder: the engine, its containerd, and a shim for each container."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (words := _command(int(entry.name))):
            is_ours = any(str(folder) in word for word in words)
            if is_ours and Path(words[0]).name in {"dockerd", "containerd", "containerd-shim-runc-v2"}:
                found.append(int(entry.name))
    return found


def mounts(folder: Path) -> list[str]:
    """What is mounted below the folder, the innermost first."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
    return sorted((point for point in points if point.startswith(f"{folder}/")), reverse=True)


def rules() -> list[str]:
    """Our firewall rules that are there."""
    return [" ".join(rule) for rule in RULES if _iptables("-C", rule) == 0]


def _checked() -> Path:
    if sys.platform != "linux" or os.geteuid() != 0:
        raise EngineMissing("a Docker engine of the tests' own needs Linux and root")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise EngineMissing(f"not on the PATH: {', '.join(missing)} ({PACKAGES})")
    try:
        return built("docker-compose")
    except ProgramMissing as error:
        raise EngineMissing(str(error)) from error


def _environ(folder: Path, compose: Path) -> dict[str, str]:
    plugins = folder / "config" / "cli-plugins"
    plugins.mkdir(parents=True, exist_ok=True)
    (plugins / "docker-compose").unlink(missing_ok=True)
    (plugins / "docker-compose").symlink_to(compose)
    ours = ("DOCKER_", "COMPOSE_", "FERMION_", "AIRFLOW", "POSTGRES_BASE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    # The classic builder: the packages here have no buildx.
    return {
        **kept,
        "DOCKER_HOST": f"unix://{folder}/docker.sock",
        "DOCKER_CONFIG": str(folder / "config"),
        "DOCKER_BUILDKIT": "0",
    }


def _start(engine: Engine) -> None:
    folder = engine.folder
    (folder / "engine.json").write_text("{}", encoding="utf-8")
    (folder / "containerd.toml").write_text(
        f'version = 2\nroot = "{folder}/containerd"\nstate = "{folder}/run/containerd"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "{folder}/containerd.sock"\n',
        encoding="utf-8",
    )
    for rule in RULES:
        _iptables("-I", rule)
    containerd = _spawn(folder, "containerd", "--config", f"{folder}/containerd.toml")
    _wait(lambda: (folder / "containerd.sock").exists(), containerd, folder / "containerd.log")
    options = {
        "--host": f"unix://{folder}/docker.sock",
        "--containerd": f"{folder}/containerd.sock",
        "--config-file": f"{folder}/engine.json",
        "--data-root": f"{folder}/data",
        "--exec-root": f"{folder}/run/docker",
        "--pidfile": f"{folder}/dockerd.pid",
        "--bridge": "none",
        "--default-address-pool": f"base={ADDRESSES},size=24",
        "--shutdown-timeout": "15",
    }
    words = [word for option in options.items() for word in option]
    dockerd = _spawn(folder, "dockerd", "--iptables=false", *words, before=_end_with_us)
    _wait(lambda: _answers(engine), dockerd, folder / "dockerd.log")


def _answers(engine: Engine) -> bool:
    asked = subprocess.run(["docker", "version"], env=engine.environ, capture_output=True, timeout=10, check=False)
    return asked.returncode == 0


def _spawn(folder: Path, *command: str, before: Callable[[], None] | None = None) -> subprocess.Popen[bytes]:
    with (folder / f"{command[0]}.log").open("wb") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=before
        )


def _end_with_us() -> None:
    """Also tests that are killed leave no container: their engine stops, and stops them before."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _wait(is_true: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_WITHIN_S
    while not is_true():
        if process.poll() is not None or time.monotonic() > until:
            said = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{log.stem} did not start within {START_WITHIN_S} s:\n{said}")
        time.sleep(0.1)


def _end_all(folder: Path) -> None:
    """End the engine, which ends its containers, then containerd and what is left; take mounts and rules away."""
    for name in ("dockerd", "containerd"):
        _end([pid for pid in processes(folder) if _name(pid) == name], signal.SIGTERM)
    _end(processes(folder), signal.SIGKILL)
    for point in mounts(folder):
        subprocess.run(["umount", "--lazy", point], timeout=30, check=False, capture_output=True)
    for name in ("docker.sock", "containerd.sock", "dockerd.pid"):
        (folder / name).unlink(missing_ok=True)
    for rule in RULES:
        while _iptables("-D", rule) == 0:
            pass


def _end(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
    until = time.monotonic() + STOP_WITHIN_S
    while any(_lives(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)


def _lives(pid: int) -> bool:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return bool(_command(pid))


def _name(pid: int) -> str:
    words = _command(pid)
    return Path(words[0]).name if words else ""


def _command(pid: int) -> list[str]:
    """A process's words; none when there is no such process, or only its remains."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return line.decode(errors="replace").split("\0") if line else []


def _iptables(action: str, rule: Sequence[str]) -> int:
    table, chain, *words = rule
    command = ["iptables", "--wait", "10", "--table", table, action, chain, *words]
    return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode
