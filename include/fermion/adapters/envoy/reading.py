"""How requests are spread, out of the route configuration that Envoy dumps. Pure; the way back from ``resources.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from fermion.adapters.envoy.resources import MATCH, MIRROR_SUFFIX, WEIGHTS
from fermion.domain.serving.routing import Match, MatchKind, Mirror, Spread

Dumped = Mapping[str, Any]


def spreads_of(configuration: Dumped) -> dict[str, Spread]:
    """By service name. A service has a route for each way by which it is reached; all of them say the same."""
    found: dict[str, Spread] = {}
    for service, kind, route in _named(configuration):
        before = found.get(service, Spread())
        if kind == MATCH:
            matches = dict.fromkeys((*before.matches, _match(route)))
            found[service] = replace(before, matches=tuple(matches))
        elif kind == WEIGHTS:
            found[service] = replace(
                before, weights=_weights(route), mirror=_mirror(route), sticky_cookie=_sticky_cookie(route)
            )
    return found


def _named(configuration: Dumped) -> Iterator[tuple[str, str, Dumped]]:
    for host in configuration.get("virtual_hosts", ()):
        for route in host.get("routes", ()):
            service, _, kind = str(route.get("name", "")).rpartition("/")
            if kind in (MATCH, WEIGHTS):
                yield service, kind, route


def _shares(route: Dumped) -> list[Dumped]:
    return list(route.get("route", {}).get("weighted_clusters", {}).get("clusters", ()))


def _weights(route: Dumped) -> dict[str, int]:
    return {each["name"]: int(each.get("weight", 0)) for each in _shares(route)}


def _match(route: Dumped) -> Match:
    """The last condition is the match, those before it are how the service is reached."""
    when = route["match"]
    kind = MatchKind.COOKIE if when.get("cookies") else MatchKind.HEADER
    condition = when["cookies" if kind is MatchKind.COOKIE else "headers"][-1]
    value = str(condition["string_match"]["exact"])
    return Match(kind=kind, name=str(condition["name"]), value=value, backend=str(route["route"]["cluster"]))


def _mirror(route: Dumped) -> Mirror | None:
    for policy in route.get("route", {}).get("request_mirror_policies", ()):
        percent = policy.get("runtime_fraction", {}).get("default_value", {}).get("numerator", 0)
        return Mirror(backend=str(policy["cluster"]).removesuffix(MIRROR_SUFFIX), percent=int(percent))
    return None


def _sticky_cookie(route: Dumped) -> str | None:
    for share in _shares(route):
        for added in share.get("response_headers_to_add", ()):
            if str(added["header"]["key"]).lower() == "set-cookie":
                return str(added["header"]["value"]).partition("=")[0].replace("%%", "%")
    return None
