"""Which repositories may be fetched from. Pure: a URL and the rules in, a remote or all its problems out."""

from __future__ import annotations

import ipaddress
import re
import urllib.parse
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from fermion.domain.problems import Problem

FIELD = "repository"
MAX_LENGTH = 2048

_SCP_LIKE = re.compile(r"(?:(?P<user>[^@/:]+)@)?(?P<host>[^@/:]+):(?P<path>(?!//).*)")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HIDDEN_CONTROL = re.compile(r"%(?:0[0-9a-f]|1[0-9a-f]|7f)", re.IGNORECASE)
_DEFAULT_PORTS = {"https": 443, "http": 80, "ssh": 22}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is allowed: ``hosts`` (``name`` for the scheme's own port, or ``name:port``), and, only when ``embedded``,
    ``file://`` below ``file_roots`` and plain http to loopback.
    """

    hosts: Collection[str] = ()
    file_roots: Collection[Path] = ()
    embedded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """An allowed repository. ``url`` holds no secret; ``host`` is ``name`` or ``name:port``, empty for a local one."""

    url: str
    scheme: str
    host: str = ""
    folder: Path | None = None


def shown(url: str) -> str:
    """The URL as it may appear in messages: without user, password, query and fragment, and not too long."""
    text = re.sub(r"[?#].*", "", re.sub(r"//[^/]*@", "//", url), flags=re.DOTALL)
    text = re.sub(r"[^/@:]+:[^/@]*@", "", text)
    return repr(text if len(text) <= 200 else text[:200] + "…")


def parse(url: str, rules: Rules) -> Remote | list[Problem]:
    """The remote that the URL names, or everything that is wrong with the URL."""
    problems = _of_text(url)
    if problems:
        return problems
    if "://" in url:
        return _with_scheme(url, rules)
    if (match := _SCP_LIKE.fullmatch(url)) is not None:
        return _scp_like(url, match, rules)
    fix = "Write https://host/path, ssh://git@host/path or git@host:path."
    return [_problem("not_a_url", f"{shown(url)} is not the URL of a repository.", fix)]


def _of_text(url: str) -> list[Problem]:
    if not url:
        return [_problem("empty", "the repository is empty.", "Write the URL of a git repository.")]
    found = []
    if len(url) > MAX_LENGTH:
        message = f"the repository has {len(url)} characters; at most {MAX_LENGTH} are allowed."
        found.append(_problem("too_long", message, "Use the URL of a git repository."))
    if url.startswith("-"):
        message = f"{shown(url)} begins with a dash, which git would take for an option."
        found.append(_problem("option", message, "Write a URL such as https://host/path."))
    if "::" in url.split("/", 1)[0]:
        helper = url.split("::", 1)[0]
        message = f"{helper + '::'!r} asks git to run a remote helper program."
        found.append(_problem("remote_helper", message, "Write a URL such as https://host/path."))
    spaced = " " in url and not url.lower().startswith("file://")
    if not url.isprintable() or spaced or "\\" in url or _HIDDEN_CONTROL.search(url):
        message = f"{shown(url)} has spaces, backslashes or control characters."
        found.append(_problem("bad_characters", message, "Remove them."))
    return found


def _with_scheme(url: str, rules: Rules) -> Remote | list[Problem]:
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        return [_problem("not_a_url", f"{shown(url)} is not the URL of a repository.", "Check its host and port.")]
    scheme = parts.scheme.lower()
    if scheme == "file":
        return _local(url, parts, rules)
    if scheme not in ("https", "ssh", "http"):
        fix = "Use https:// or ssh://."
        return [_problem("scheme", f"{scheme}:// is not allowed for repositories.", fix)]
    name = (parts.hostname or "").lower()
    problems = _of_parts(parts, name, scheme, rules)
    host = name if port in (None, _DEFAULT_PORTS[scheme]) else f"{name}:{port}"
    is_loopback = scheme == "http" and rules.embedded and _is_loopback(name)
    if name and not is_loopback:
        problems += _of_host(host, rules)
    if problems:
        return problems
    user = f"{parts.username}@" if parts.username else ""
    clean = urllib.parse.urlunsplit(
        (scheme, f"{user}{_bracketed(name)}{f':{port}' if port else ''}", parts.path, "", "")
    )
    return Remote(url=clean, scheme=scheme, host=host)


def _of_parts(parts: urllib.parse.SplitResult, name: str, scheme: str, rules: Rules) -> list[Problem]:
    found = []
    if scheme == "http" and not (rules.embedded and _is_loopback(name)):
        where = "to this machine itself" if rules.embedded else "on an embedded installation"
        found.append(_problem("scheme", f"http:// is allowed only {where}.", "Use https://."))
    if not name or not (_HOST.fullmatch(name) or _is_address(name)):
        found.append(_problem("bad_host", f"{shown(parts.geturl())} has no valid host.", "Write https://host/path."))
    if parts.password is not None or (parts.username is not None and scheme != "ssh"):
        fix = "Remove it; put the credentials into the connection of that host."
        found.append(_problem("credentials", "the URL contains a user or password.", fix))
    elif parts.username is not None and not _USER.fullmatch(parts.username):
        found.append(_problem("bad_user", "the URL's user is not a plain name.", "Write ssh://git@host/path."))
    if parts.query or parts.fragment:
        found.append(_problem("query", "the URL has a query or fragment.", "Remove everything from '?' or '#' on."))
    return found + _of_path(parts.path)


def _of_path(path: str) -> list[Problem]:
    if not path.strip("/"):
        return [_problem("no_path", "the URL names a host but no repository.", "Add the repository's path.")]
    if any(segment.startswith("-") for segment in urllib.parse.unquote(path).strip("/").split("/")[:1]):
        message = "the repository's path begins with a dash, which a server could take for an option."
        return [_problem("option", message, "Rename the repository.")]
    return []


def _of_host(host: str, rules: Rules) -> list[Problem]:
    allowed = sorted(each.lower() for each in rules.hosts)
    if host in allowed:
        return []
    listed = ", ".join(allowed) or "none"
    fix = f"Use one of the allowed hosts, or have it added to code.hosts in config/fermion.yaml (now: {listed})."
    return [_problem("host_not_allowed", f"the host '{host}' is not on the list of allowed git hosts.", fix)]


def _scp_like(url: str, match: re.Match[str], rules: Rules) -> Remote | list[Problem]:
    user, host, path = match["user"], match["host"].lower(), match["path"]
    problems = []
    if not _HOST.fullmatch(host):
        problems.append(_problem("bad_host", f"{shown(url)} has no valid host.", "Write git@host:path."))
    if user is not None and not _USER.fullmatch(user):
        problems.append(_problem("bad_user", "the URL's user is not a plain name.", "Write git@host:path."))
    problems += _of_path(path)
    problems += _of_host(host, rules)
    return problems or Remote(url=url, scheme="ssh", host=host)


def _local(url: str, parts: urllib.parse.SplitResult, rules: Rules) -> Remote | list[Problem]:
    if not rules.embedded:
        message = "file:// repositories are allowed only on an embedded installation."
        return [_problem("scheme", message, "Use https:// or ssh://.")]
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        message = f"{shown(url)} names another host or has a query."
        return [_problem("bad_host", message, "Write file:///absolute/path.")]
    folder = Path(urllib.parse.unquote(parts.path)).resolve()
    if not any(folder.is_relative_to(Path(root).resolve()) for root in rules.file_roots):
        roots = ", ".join(map(str, rules.file_roots)) or "none"
        fix = f"Add a folder that holds it to code.file_roots in config/fermion.yaml (now: {roots})."
        return [_problem("outside_roots", f"{shown(url)} is outside the allowed repository folders.", fix)]
    return Remote(url=folder.as_uri(), scheme="file", folder=folder)


def _is_loopback(name: str) -> bool:
    return name == "localhost" or (_is_address(name) and ipaddress.ip_address(name).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _bracketed(name: str) -> str:
    return f"[{name}]" if ":" in name else name


def _problem(code: str, message: str, fix: str) -> Problem:
    return Problem(field=FIELD, code=code, message=message, fix=fix)
