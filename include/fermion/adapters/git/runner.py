"""Running git: bounded in time, cut off from every configuration but ours, with credentials that no process list shows.

Secrets travel in the environment of git and its own children only. The helper that git asks for them answers nothing but
the exact host they are for, so a redirected or rewritten URL gets none.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import cast

from fermion.adapters.files.placing import make_folder, write_durably
from fermion.adapters.git.remotes import FIELD, Remote, shown
from fermion.domain.problems import Problem
from fermion.errors import FermionError, OutsideBroken, OutsideUnavailable, RequestRefused

Credentials = Callable[[str], tuple[str, str] | None]
"""Host (``name`` or ``name:port``) to (user, token), None where the host has none."""

_ASKPASS = """#!/bin/sh
# Answers git's question for a user or a password, and only for the host that the credentials are for.
case "$1" in
  "Username for '$FERMION_GIT_SCHEME://$FERMION_GIT_HOST': ") printf '%s\\n' "$FERMION_GIT_USER" ;;
  "Password for '$FERMION_GIT_SCHEME://"*"@$FERMION_GIT_HOST': ") printf '%s\\n' "$FERMION_GIT_TOKEN" ;;
  *) exit 1 ;;
esac
"""

_TRACING = ("GIT_TRACE", "GIT_CURL_VERBOSE")
_AUTHORIZATION = re.compile(r"^.*authorization:.*$\n?", re.IGNORECASE | re.MULTILINE)

_KILLED_IS_GONE_WITHIN_S = 10.0


class GitFailed(FermionError):
    """Git ended with an error; ``said`` is its message, without secrets."""

    code = "git_failed"

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said


@dataclass(frozen=True, slots=True, kw_only=True)
class Ssh:
    """How ssh is called: the key and the known hosts (None: the user's own). Unknown host keys are never accepted."""

    key_file: Path | None = None
    known_hosts_file: Path | None = None

    def command(self) -> str:
        """The value of ``GIT_SSH_COMMAND``."""
        words = ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=15"]
        words += ["-o", "ForwardAgent=no", "-o", "ClearAllForwardings=yes"]
        if self.key_file is not None:
            words += ["-i", str(self.key_file), "-o", "IdentitiesOnly=yes"]
        if self.known_hosts_file is not None:
            words += ["-o", f"UserKnownHostsFile={self.known_hosts_file}"]
        return shlex.join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """Runs git for one remote in one bare repository, ``folder``. ``settings`` is where helper files are kept."""

    remote: Remote
    folder: Path
    settings: Path
    credentials: Credentials
    ssh: Ssh = field(default_factory=Ssh)

    def prepare(self) -> None:
        """Write the configuration and the helper that git is run with."""
        make_folder(self.settings)
        _write_if_other(self._askpass, _ASKPASS.encode(), mode=0o700)
        _write_if_other(self._config, self._configuration().encode(), mode=0o600)

    def run(
        self,
        *arguments: str,
        timeout: timedelta,
        work_tree: Path | None = None,
        index: Path | None = None,
        keep_open: Sequence[int] = (),
        with_credentials: bool = False,
    ) -> bytes:
        """What ``git <arguments>`` writes to its standard output. ``keep_open`` are descriptors that git inherits.

        Raises:
            GitFailed: git ended with an error.
            OutsideUnavailable: it did not end in time, and was killed with all its children; or git is not installed.
        """
        secrets = self._secrets() if with_credentials else {}
        environment = {**self._environment(work_tree=work_tree, index=index), **secrets}
        command = [*_without_tracing(environment), "git", *arguments]
        with _started(command, self.folder, environment, keep_open) as process:
            try:
                output, errors = process.communicate(timeout=timeout.total_seconds())
            except subprocess.TimeoutExpired as error:
                message = (
                    f"git {arguments[0]} of {shown(self.remote.url)} did not end within {timeout.total_seconds():g} s"
                )
                raise OutsideUnavailable(f"{message} and was ended. Call again.", what=self.remote.host) from error
        if process.returncode != 0:
            raise GitFailed(_without_secrets(errors.decode(errors="replace"), secrets))
        return bytes(output)

    @property
    def _askpass(self) -> Path:
        return self.settings / "askpass.sh"

    @property
    def _config(self) -> Path:
        return self.settings / f"{self.folder.name}.gitconfig"

    def _secrets(self) -> Mapping[str, str]:
        found = self.credentials(self.remote.host) if self.remote.scheme in ("https", "http") else None
        if found is None:
            return {}
        user, token = found
        return {
            "GIT_ASKPASS": str(self._askpass),
            "FERMION_GIT_SCHEME": self.remote.scheme,
            "FERMION_GIT_HOST": self.remote.host,
            "FERMION_GIT_USER": user,
            "FERMION_GIT_TOKEN": token,
        }

    def _environment(self, *, work_tree: Path | None, index: Path | None) -> Mapping[str, str]:
        # Every variable that points git elsewhere is set, because ours may be run from a hook that exports them.
        return {
            "GIT_DIR": str(self.folder),
            "GIT_COMMON_DIR": str(self.folder),
            "GIT_OBJECT_DIRECTORY": str(self.folder / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": "",
            "GIT_WORK_TREE": str(work_tree or self.folder),
            "GIT_INDEX_FILE": str(index or self.folder / "index"),
            "GIT_NAMESPACE": "",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(self._config),
            "GIT_CONFIG_COUNT": "0",
            "GIT_CONFIG_PARAMETERS": "",
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "false",
            "SSH_ASKPASS": "false",
            "GIT_SSH_COMMAND": self.ssh.command(),
            "GIT_LITERAL_PATHSPECS": "1",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_TRACE_REDACT": "1",
            "HOME": str(self.settings),  # no .netrc of whoever runs the platform
        }

    def _configuration(self) -> str:
        # Only the one repository that is asked for is trusted although another user owns it; its hooks never run.
        trusted = [self.folder]
        if self.remote.folder is not None:
            trusted += [self.remote.folder, self.remote.folder / ".git"]
        lines = ["[protocol]", "allow = never", f'[protocol "{self.remote.scheme}"]', "allow = always"]
        lines += ["[core]", "hooksPath = /dev/null", "attributesFile = /dev/null", "excludesFile = /dev/null"]
        lines += ["fsmonitor = false", "symlinks = true", "protectHFS = true", "protectNTFS = true"]
        lines += ["[credential]", 'helper = ""', "[gc]", "auto = 0", "[maintenance]", "auto = false"]
        lines += ["[fetch]", "recurseSubmodules = false", "[submodule]", "recurse = false"]
        lines += ["[http]", "followRedirects = false", "lowSpeedLimit = 1000", "lowSpeedTime = 30"]
        lines += ["[uploadpack]", "allowFilter = true", "allowAnySHA1InWant = true"]  # read by the server of file://
        lines += ["[safe]", *(f"directory = {quoted(str(each))}" for each in trusted)]
        return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _started(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], keep_open: Sequence[int]
) -> Iterator[subprocess.Popen[bytes]]:
    """The running process; when it is left, no child of it runs any more (git's helpers share its session)."""
    try:
        import git  # slow to import, and it looks for the git program while it is
    except ImportError as error:
        raise OutsideUnavailable("the git program cannot be run; install git.", what="git") from error
    try:
        holder = git.cmd.Git(str(folder)).execute(
            list(command), as_process=True, env=dict(environment), start_new_session=True, pass_fds=tuple(keep_open)
        )
    except git.exc.GitCommandNotFound as error:
        raise OutsideUnavailable("the git program is not installed; install git.", what="git") from error
    # The holder ends the process as soon as it is collected, so it has to live as long as this block.
    process = cast("subprocess.Popen[bytes]", holder.proc)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        # A killed helper is gone a moment later; the pipes that it shares with git end when it is.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_KILLED_IS_GONE_WITHIN_S)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        del holder


def _write_if_other(path: Path, content: bytes, *, mode: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == content:
            return
    write_durably(path, content, mode=mode)


def quoted(value: str) -> str:
    """The value as it is written in git's configuration."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _without_tracing(environment: Mapping[str, str]) -> Sequence[str]:
    """What goes before git, so that it traces nothing that its caller traces: for some variables being there is enough."""
    traced = [name for name in os.environ if name.startswith(_TRACING) and name not in environment]
    return ["env", *(f"--unset={name}" for name in traced)] if traced else []


def _without_secrets(said: str, secrets: Mapping[str, str]) -> str:
    """What git said, without the token, plain or as a header carries it, and without any line of such a header."""
    text = _AUTHORIZATION.sub("", said)
    user, token = secrets.get("FERMION_GIT_USER", ""), secrets.get("FERMION_GIT_TOKEN", "")
    if token:
        for secret in (b64encode(f"{user}:{token}".encode()).decode(), token):
            text = text.replace(secret, "***")
    return text.strip()


_REFUSALS: Sequence[tuple[re.Pattern[str], str, str, str]] = (
    (
        re.compile(r"could not read (Username|Password)|returned error: 401"),
        "credentials_missing",
        "the host wants credentials and has none configured",
        "Add a connection for that host, or use a public repository.",
    ),
    (
        re.compile(r"Authentication failed|returned error: 403|Permission denied|access denied", re.IGNORECASE),
        "credentials_refused",
        "the host refused the configured credentials",
        "Give that account access to the repository, or correct the connection.",
    ),
    (
        re.compile(r"returned error: 30[1-8]|unable to update url base from redirection", re.IGNORECASE),
        "redirected",
        "the host answers with a redirect, which is not followed",
        "Write the URL it leads to (often the one that ends in '.git').",
    ),
    (
        re.compile(r"not found|returned error: 404|does not appear to be a git repos|not a git repos", re.IGNORECASE),
        "not_found",
        "there is no repository at that URL, or the credentials do not show it",
        "Correct the URL.",
    ),
)
_BROKEN = re.compile(r"certificate|Host key verification failed|dubious ownership|bad object|corrupt", re.IGNORECASE)


def translated(error: GitFailed, remote: Remote) -> FermionError:
    """The platform's error for what git said about a remote."""
    for pattern, code, message, fix in _REFUSALS:
        if pattern.search(error.said):
            problem = Problem(field=FIELD, code=code, message=f"{shown(remote.url)}: {message}.", fix=fix)
            return RequestRefused([problem], what="code")
    said = " ".join(error.said.split())[-500:]
    kind = OutsideBroken if _BROKEN.search(error.said) else OutsideUnavailable
    again = "It has to be repaired there." if kind is OutsideBroken else "Call again when it answers."
    return kind(f"the repository {shown(remote.url)} cannot be read: {said}. {again}", what=remote.host or "git")
