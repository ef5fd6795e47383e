"""Every question that Prometheus is asked. Pure.

Raw readings are asked for, not ``rate`` or ``increase``: those estimate what lies between the edges of a window, and leave out
the first requests of a series that is new, as the first errors of a canary are. Differences are taken from exact readings
where the router's own are (``domain/serving/traffic.py``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from datetime import timedelta

from fermion.adapters.envoy.resources import LOG_SCOPE, MIRROR_SUFFIX
from fermion.domain.serving.routing import backend_of

UPTIME = "envoy_server_uptime"
MEMBERS = "envoy_cluster_membership_total"
_COPIES = "upstream_rq_xx|upstream_rq_time_bucket|upstream_rq_time_sum"
_NAMES = f"envoy_{LOG_SCOPE}_(requests|latency_bucket|latency_sum)|envoy_cluster_(membership_total|{_COPIES})|{UPTIME}"


def readings(backends: Collection[str], labels: Mapping[str, str], *, latencies: bool) -> str:
    """All counters of those backends at one moment, and how long their router runs.

    Without ``latencies`` only the number and the sum of them. ``labels`` are what every series must have besides.
    """
    names = "|".join(sorted(map(re.escape, set(map(backend_of, backends)))))
    matchers = [
        _matches("__name__", _NAMES),
        # Each series has one of the two labels, or is about the router as a whole and has none.
        _matches("backend", f"|{names}"),
        _matches("envoy_cluster_name", f"|({names})({MIRROR_SUFFIX})?"),
        *(f"{name}={json.dumps(value)}" for name, value in sorted(labels.items())),
    ]
    if not latencies:
        matchers.append(_matches("le", r"|\+Inf"))
    return f"{{{','.join(matchers)}}}"


def over(selector: str, span: timedelta) -> str:
    """Each single reading of the last ``span``."""
    return f"{selector}[{max(1, round(span.total_seconds() * 1000))}ms]"


def latest(selector: str, span: timedelta) -> str:
    """The last reading of each series within ``span``; one that ended in it, as of a revision that is gone, too."""
    return f"last_over_time({over(selector, span)})"


def _matches(label: str, pattern: str) -> str:
    return f"{label}=~{json.dumps(pattern)}"
