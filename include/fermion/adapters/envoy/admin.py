"""Envoy's admin interface over its Unix socket: what it has taken over, what it refused, what it counted."""

from __future__ import annotations

import http.client
import json
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from fermion.errors import OutsideBroken, OutsideUnavailable

ANSWER_S = 5.0

CLUSTERS = "cluster_manager.cds"
LISTENERS = "listener_manager.lds"
ROUTES = "http.router.rds.routes"
"""What Envoy's statistics call the three files."""

_STANDING = (
    r"^((cluster_manager\.cds|listener_manager\.lds|http\.router\.rds\.routes)\.(version_text|update_rejected|update_failure)"
    r"|cluster_manager\.warming_clusters|listener_manager\.total_listeners_warming)$"
)


@dataclass(frozen=True, slots=True)
class Standing:
    """What Envoy has taken over: the version of each file, how often it refused one, how much is not yet in use."""

    versions: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    warming: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of Envoy's statistics in Prometheus' words."""

    name: str
    labels: Mapping[str, str]
    value: float


class Admin:
    """One Envoy. Every call is bounded by ``ANSWER_S`` and raises OutsideUnavailable where nothing answers."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def standing(self) -> Standing:
        """How far it is."""
        versions: dict[str, str] = {}
        refused: dict[str, int] = {}
        warming = 0
        for line in self._text(f"/stats?filter={quote(_STANDING)}").splitlines():
            name, _, value = line.partition(": ")
            file, _, what = name.rpartition(".")
            if what == "version_text":
                versions[file] = value.strip('"')
            elif file in (CLUSTERS, LISTENERS, ROUTES) and value:
                refused[file] = refused.get(file, 0) + int(value)
            elif value:
                warming += int(value)
        return Standing(versions, refused, warming)

    def route_configurations(self) -> Sequence[Mapping[str, Any]]:
        """Those that requests are routed by now."""
        dump = self._json("/config_dump?resource=dynamic_route_configs")
        return [each["route_config"] for each in dump.get("configs", ()) if "route_config" in each]

    def failed_listeners(self) -> Mapping[str, str]:
        """Listeners that it could not make, and why."""
        dump = self._json("/config_dump?resource=dynamic_listeners")
        errors = [each["error_state"] for each in dump.get("configs", ()) if "error_state" in each]
        return {str(each["failed_configuration"]["name"]): str(each.get("details", "refused")) for each in errors}

    def epoch(self) -> str:
        """When it started: counters of another epoch have nothing to do with these."""
        dump = self._json("/config_dump?mask=last_updated")
        for each in dump.get("configs", ()):
            if str(each.get("@type", "")).endswith("BootstrapConfigDump") and "last_updated" in each:
                return str(each["last_updated"])
        raise OutsideBroken("the router does not say when it started", what="router")

    def is_live(self) -> bool:
        """Whether it carries requests: it has read its files and is not about to end."""
        connection = _UnixConnection(self._path)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def samples(self, pattern: str) -> Sequence[Sample]:
        """The statistics whose own names match, in Prometheus' words."""
        return parse(self._text(f"/stats/prometheus?filter={quote(pattern)}"))

    def _json(self, path: str) -> Mapping[str, Any]:
        try:
            return cast("Mapping[str, Any]", json.loads(self._text(path)))
        except ValueError as error:
            raise OutsideBroken(f"the router answers {path} with something that is no JSON: {error}") from error

    def _text(self, path: str) -> str:
        connection = _UnixConnection(self._path)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise OutsideUnavailable(
                f"the router does not answer at {self._path} ({error or type(error).__name__}); `fermion ps` shows whether it runs",
                what="router",
            ) from error
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise OutsideBroken(f"the router answers {path} with {answer.status}: {text.strip()}", what="router")
        return text


_LINE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


def parse(text: str) -> list[Sample]:
    """Lines of Prometheus' text format; comments are left out."""
    found = []
    for line in text.splitlines():
        if line.startswith("#") or not (match := _LINE.fullmatch(line.strip())):
            continue
        found.append(Sample(match[1], dict(_LABEL.findall(match[2] or "")), float(match[3])))
    return found


_REFUSAL = re.compile(r"Filesystem config update (?:rejected|failure): (?:in \S+, )?(.*?)(?=\n\[\d{4}-|\Z)", re.DOTALL)


def refusals(log: str) -> str:
    """What Envoy printed about files that it did not take, each sentence once."""
    said = [" ".join(match.split()) for match in _REFUSAL.findall(log)]
    return "; ".join(dict.fromkeys(said))


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("router", timeout=ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ANSWER_S)
        self.sock.connect(str(self._path))
