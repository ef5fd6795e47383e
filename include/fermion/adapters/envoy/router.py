"""Envoy as the router: told by three files that it watches, read back over its admin socket.

It keeps nothing of its own: the files are what was applied last, and a table applied again repairs them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from fermion.adapters.envoy import admin, counting, reading, resources, rules
from fermion.adapters.envoy.admin import Admin, Standing
from fermion.adapters.envoy.bootstrap import DRAFT, replace
from fermion.adapters.envoy.layout import Layout
from fermion.adapters.envoy.resources import Document
from fermion.adapters.files.locks import lock
from fermion.adapters.local_platform.addresses import is_free
from fermion.domain.problems import Problem
from fermion.domain.serving.routing import Protocol, Route, RouteTable, Spread
from fermion.domain.serving.traffic import Counters
from fermion.errors import OutsideBroken, OutsideUnavailable
from fermion.ports import Clock

WITHIN = timedelta(seconds=5)
"""So long a change may take until Envoy uses it; measured are 5 to 40 ms, half a second when a new replica hangs."""

BACK_WITHIN = timedelta(seconds=2)
PAUSE_S = 0.002
LONGEST_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class _Step:
    """One file's next content. ``stat`` is what Envoy's statistics call the file."""

    stat: str
    path: Path
    content: Document


class _Refused(Exception):
    """Envoy does not take a file, or not all of it."""

    def __init__(self, step: _Step) -> None:
        super().__init__(f"{step.path.name} was rejected")
        self.stat = step.stat


class EnvoyRouter:
    """The router whose files lie in ``folder``; keeps ``ports.Router``. Any number of processes may use one at once."""

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        within: timedelta = WITHIN,
        is_free: Callable[[int], bool] = is_free,
    ) -> None:
        self._layout = Layout(folder)
        self._clock = clock
        self._within = within
        self._is_free = is_free
        self._admin = Admin(self._layout.socket)

    # --- the port ---------------------------------------------------------------------------------------------------

    def problems_of(self, route: Route) -> Sequence[Problem]:
        """What Envoy cannot do, and a port that somebody else has."""
        found = list(rules.problems_of(route, router_port=self._layout.port()))
        if (
            not found
            and route.port is not None
            and route.port not in self._own_ports()
            and not self._is_free(route.port)
        ):
            found.append(rules.port_taken(route.port))
        return found

    def apply(self, table: RouteTable) -> None:
        """Returns when Envoy says that it uses all of it.

        Raises:
            DriverCannot: the table has problems; nothing was changed.
            OutsideBroken: Envoy refuses it and says why; what was there before holds.
            OutsideUnavailable: Envoy did not get there within the time; applied again, it goes on from where it is.
        """
        rules.refuse(table, problems_of=self.problems_of)
        with lock(self._layout.lock, timeout=2 * self._within, what="a change of the router"):
            self._change(table)

    def applied(self) -> Mapping[str, Spread]:
        """Out of the routes that Envoy dumps, not out of the files."""
        found: dict[str, Spread] = {}
        for configuration in self._admin.route_configurations():
            found.update(reading.spreads_of(configuration))
        return found

    def counters(self, backends: Collection[str]) -> Mapping[str, Counters]:
        """Counts as of now; latencies at most half a second old.

        When a backend's replicas change Envoy may forget what it counted of copies and answers: they then have another epoch.
        """
        # Envoy's workers let go of a removed cluster one after the other, and until then it has statistics.
        held = {str(each["name"]): each for each in _resources(_text(self._layout.clusters))}
        asked = {key for key in backends if counting.cluster_of(key) in held}
        if not asked:
            return {}
        epoch = self._admin.epoch()
        samples = self._admin.samples(counting.pattern(asked))
        found = counting.read(samples, asked, epoch=epoch, observed_at=self._clock.now())
        return {
            key: dataclasses.replace(each, epoch=f"{epoch} {resources.digest([held[counting.cluster_of(key)]])}")
            if counting.is_of_cluster(key)
            else each
            for key, each in found.items()
        }

    def address(self, route: Route) -> str:
        """On loopback; the shared listener where the service has no port of its own."""
        place = f"{resources.LOOPBACK}:{route.port or self._layout.port()}"
        if route.protocol is Protocol.GRPC:
            return place
        return f"http://{place}" if route.port else f"http://{place}{route.prefix}"

    # --- changing ---------------------------------------------------------------------------------------------------

    def _change(self, table: RouteTable) -> None:
        """What is new before the routes that use it, what is gone after the routes that used it."""
        for left in self._layout.watched.glob(f"{DRAFT}*"):
            left.unlink()  # By a writer that was killed: only who holds the lock writes here.
        before = {path: _text(path) for path in self._files()}
        clusters = _resources(before[self._layout.clusters])
        wanted = resources.clusters(table, mirrored=_mirrored(clusters))
        listeners = _resources(before[self._layout.listeners])
        routes_file, host = str(self._layout.routes), self._layout.host()
        wanted_listeners = resources.listeners(table, routes_file=routes_file, host=host)
        routes = [resources.route_configuration(table)]
        stages = (
            (self._clusters(_merged(clusters, wanted)),),
            (self._listeners(_merged(listeners, wanted_listeners)),),
            (_Step(admin.ROUTES, self._layout.routes, resources.document(resources.ROUTE_CONFIGURATION, routes)),),
            (self._listeners(wanted_listeners),),
            (self._clusters(wanted),),
        )
        until = time.monotonic() + self._within.total_seconds()
        mark = self._log_size()
        standing = self._standing()
        lost: Mapping[str, str] = {}
        for stage in stages:
            try:
                standing = self._take(stage, standing, until=until)
            except _Refused as refused:
                lost = self._lost(refused, listeners)
                if not lost:
                    self._take_back(before)
                    raise OutsideBroken(
                        f"the router refuses the change, and what it did before holds: {self._words(mark) or refused}",
                        what="router",
                    ) from refused
                standing = self._standing()
        if still := {name: why for name, why in lost.items() if any(each["name"] == name for each in wanted_listeners)}:
            raise OutsideBroken(
                f"all of the change is in place, but {'; '.join(f'{name}: {why}' for name, why in still.items())}. "
                "Free the port; the same change again takes it.",
                what="router",
            )

    def _lost(self, refused: _Refused, before: Sequence[resources.Resource]) -> Mapping[str, str]:
        """Why ports that were there before cannot be had any more; nothing when something else was refused as well.

        Somebody took them while Envoy was away: no reason to refuse a change of all the others.
        """
        failed = self._admin.failed_listeners() if refused.stat == admin.LISTENERS else {}
        return failed if failed.keys() <= {str(each["name"]) for each in before} else {}

    def _take(self, steps: Sequence[_Step], standing: Standing | None, *, until: float) -> Standing | None:
        """Put the files in place, wait until Envoy uses them, and say how it stands then."""
        refused = dict(standing.refused) if standing else {}
        for step in steps:
            if (
                standing is None
                or standing.versions.get(step.stat) != step.content.version
                or _text(step.path) != step.content.text
            ):
                replace(step.path, step.content.text)
        pause_s = PAUSE_S
        while missing := self._missing(steps, standing, refused=refused):
            if time.monotonic() > until:
                raise OutsideUnavailable(
                    f"the router did not take over {', '.join(missing)} within {self._within.total_seconds():g} s; "
                    "its files are in place, and the same change again goes on from here",
                    what="router",
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            standing = self._standing()
        return standing

    def _missing(self, steps: Sequence[_Step], standing: Standing | None, *, refused: Mapping[str, int]) -> list[str]:
        """What Envoy does not use yet.

        Raises:
            _Refused: it has looked at it and does not take it.
        """
        if standing is None:
            return ["anything: its admin socket does not answer"]
        missing = [step for step in steps if standing.versions.get(step.stat) != step.content.version]
        for step in missing:
            if standing.refused.get(step.stat, 0) > refused.get(step.stat, 0):
                raise _Refused(step)
        if not missing and standing.warming:
            return [f"{standing.warming} clusters or listeners that are not ready"]
        return [step.path.name for step in missing]

    def _take_back(self, before: Mapping[Path, str]) -> None:
        """Routes first: they may need nothing that came with the refused change."""
        until = time.monotonic() + BACK_WITHIN.total_seconds()
        stats = dict(zip(self._files(), (admin.CLUSTERS, admin.LISTENERS, admin.ROUTES), strict=True))
        for path in (self._layout.routes, self._layout.listeners, self._layout.clusters):
            if (version := _version(before[path])) is not None:
                with contextlib.suppress(_Refused, OutsideUnavailable):
                    step = _Step(stats[path], path, Document(version, before[path]))
                    self._take((step,), self._standing(), until=until)

    def _standing(self) -> Standing | None:
        try:
            return self._admin.standing()
        except OutsideBroken:
            raise
        except OutsideUnavailable:
            return None

    # --- files ------------------------------------------------------------------------------------------------------

    def _files(self) -> tuple[Path, Path, Path]:
        return self._layout.clusters, self._layout.listeners, self._layout.routes

    def _clusters(self, held: Sequence[resources.Resource]) -> _Step:
        return _Step(admin.CLUSTERS, self._layout.clusters, resources.document(resources.CLUSTER, held))

    def _listeners(self, held: Sequence[resources.Resource]) -> _Step:
        return _Step(admin.LISTENERS, self._layout.listeners, resources.document(resources.LISTENER, held))

    def _own_ports(self) -> set[int]:
        held = _resources(_text(self._layout.listeners))
        return {int(each["address"]["socket_address"]["port_value"]) for each in held}

    def _log_size(self) -> int:
        log = self._layout.log()
        return log.stat().st_size if log and log.exists() else 0

    def _words(self, mark: int) -> str:
        """What Envoy printed about files since then."""
        log = self._layout.log()
        if log is None or not log.exists():
            return ""
        text = log.read_bytes()
        return admin.refusals(text[mark if mark <= len(text) else 0 :].decode(errors="replace"))


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _version(text: str) -> str | None:
    """None when somebody wrote something else into the file."""
    try:
        return str(json.loads(text)["version_info"])
    except (ValueError, KeyError, TypeError):
        return None


def _resources(text: str) -> list[dict[str, Any]]:
    """What a file holds; nothing when somebody wrote something else into it."""
    try:
        return list(json.loads(text)["resources"])
    except (ValueError, KeyError, TypeError):
        return []


def _mirrored(clusters: Sequence[resources.Resource]) -> set[str]:
    """Backends that got copies: their second cluster stays as long as they do, for its counters stay with it."""
    suffix = resources.MIRROR_SUFFIX
    return {str(each["name"]).removesuffix(suffix) for each in clusters if str(each["name"]).endswith(suffix)}


def _merged(old: Sequence[resources.Resource], new: Sequence[resources.Resource]) -> list[resources.Resource]:
    """All of the new, and of the old what the new has no word on."""
    named = {each["name"]: each for each in (*old, *new)}
    return [named[name] for name in sorted(named)]
