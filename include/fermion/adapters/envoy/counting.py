"""Counters of a backend out of Envoy's statistics. Pure.

What clients asked for is counted where their requests end, once each: the listeners' own log. Copies (a mirror) have no
client; they are counted by the second cluster that a mirrored backend has, and what they are compared with (answers) by the
first one's own statistics.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from fermion.adapters.envoy.admin import Sample
from fermion.adapters.envoy.bootstrap import bounds_ms
from fermion.adapters.envoy.resources import LOG_SCOPE, MIRROR_SUFFIX
from fermion.domain.serving.routing import ANSWERS, answers_of, backend_of
from fermion.domain.serving.traffic import Counters

NAMED_AT_MOST = 50
"""Up to so many backends are asked for by name; beyond that all are read."""

GAVE_UP = frozenset({"DC", "DR"})
"""Envoy's flags of a request whose client went away before it was answered."""

NOT_ANSWERED = frozenset(
    {"UH", "UF", "UO", "UC", "UR", "UT", "LR", "URX", "NC", "UPE", "UMSDR", "DT", "SI", "OM", "DO"}
)
"""Envoy's flags of a request that no replica answered, or not to the end."""

UPGRADED = "101"
"""The status of a WebSocket. Whoever ends one, it was answered."""

GRPC_CLASSES = {
    "0": "2xx",
    **dict.fromkeys(("1", "3", "5", "6", "7", "8", "9", "10", "11", "16"), "4xx"),
    **dict.fromkeys(("2", "4", "12", "13", "14", "15"), "5xx"),
}
"""A gRPC status as the HTTP status that ``google/rpc/code.proto`` gives it."""


def cluster_of(key: str) -> str:
    """The cluster whose statistics hold that key's counters."""
    return key.removesuffix(ANSWERS)


def is_of_cluster(key: str) -> bool:
    """Whether that key's counters are a cluster's own, which Envoy forgets when the cluster is changed."""
    return key.endswith((ANSWERS, MIRROR_SUFFIX))


def pattern(keys: Collection[str]) -> str:
    """Which statistics to ask for."""
    backends = set(map(backend_of, keys))
    names = "|".join(sorted(map(re.escape, backends))) if len(backends) <= NAMED_AT_MOST else "[^.]+"
    cluster = "upstream_rq_active|upstream_rq_pending_active|membership_total|upstream_rq_[1-5]xx|upstream_rq_time"
    return (
        rf"^({LOG_SCOPE}\.(requests|latency)\.backend\.({names})\."
        rf"|cluster\.({names})({MIRROR_SUFFIX})?\.({cluster})$)"
    )


def read(
    samples: Sequence[Sample], keys: Collection[str], *, epoch: str, observed_at: datetime
) -> Mapping[str, Counters]:
    """Of each backend that Envoy has a cluster for; ``keys`` may also name its copies and its answers."""
    tallies = {key: _Tally() for key in keys}
    clusters = set()
    for sample in samples:
        cluster = sample.labels.get("envoy_cluster_name", "")
        if sample.name == "envoy_cluster_membership_total":
            clusters.add(cluster)
        if (client := tallies.get(sample.labels.get("backend") or cluster)) is not None and not _is_copies(cluster):
            client.add_request(sample)
        if (replica := tallies.get(cluster if _is_copies(cluster) else answers_of(cluster))) is not None:
            replica.add_answer(sample)
    known = sorted(key for key in tallies if cluster_of(key) in clusters)
    return {key: tallies[key].counters(key, epoch=epoch, observed_at=observed_at) for key in known}


def _is_copies(cluster: str) -> bool:
    return cluster.endswith(MIRROR_SUFFIX)


@dataclass(slots=True)
class _Tally:
    classes: Counter[str] = field(default_factory=Counter)
    router_made: int = 0
    active: int = 0
    latency: Counter[float] = field(default_factory=Counter)
    latency_sum_ms: float = 0.0

    def add_request(self, sample: Sample) -> None:
        """What clients saw, out of the listeners' log."""
        if sample.name == f"envoy_{LOG_SCOPE}_requests":
            self._add_request(sample)
        elif sample.name.startswith(f"envoy_{LOG_SCOPE}_latency") and not _flags(sample) & GAVE_UP:
            self._add_latency(sample, per_ms=1000)
        else:
            self._add_active(sample)

    def add_answer(self, sample: Sample) -> None:
        """What replicas gave, out of a cluster's own statistics."""
        if sample.name == "envoy_cluster_upstream_rq_xx":
            self.classes[f"{sample.labels['envoy_response_code_class']}xx"] += int(sample.value)
        elif sample.name.startswith("envoy_cluster_upstream_rq_time"):
            self._add_latency(sample, per_ms=1)
        else:
            self._add_active(sample)

    def _add_active(self, sample: Sample) -> None:
        if sample.name in ("envoy_cluster_upstream_rq_active", "envoy_cluster_upstream_rq_pending_active"):
            self.active += int(sample.value)

    def counters(self, backend: str, *, epoch: str, observed_at: datetime) -> Counters:
        latency = {_label(bound): self.latency[bound] for bound in (*bounds_ms(), math.inf)}
        return Counters(
            backend=backend,
            epoch=epoch,
            observed_at=observed_at,
            requests=self.classes.total(),
            by_class=dict(sorted(self.classes.items())),
            router_made=self.router_made,
            active=self.active,
            latency_ms=latency,
            latency_sum_ms=self.latency_sum_ms,
        )

    def _add_request(self, sample: Sample) -> None:
        flags, code, count = _flags(sample), sample.labels.get("code", ""), int(sample.value)
        if code == UPGRADED:
            self.classes["1xx"] += count
        elif flags & GAVE_UP or code == "0":
            return
        elif flags & NOT_ANSWERED:
            self.router_made += count
            self.classes["5xx"] += count
        else:
            self.classes[GRPC_CLASSES.get(sample.labels.get("grpc", ""), f"{code[:1]}xx")] += count

    def _add_latency(self, sample: Sample, *, per_ms: int) -> None:
        if sample.name.endswith("_bucket"):
            self.latency[_nearest(float(sample.labels["le"]) / per_ms)] += int(sample.value)
        elif sample.name.endswith("_sum"):
            self.latency_sum_ms += sample.value / per_ms


def _flags(sample: Sample) -> frozenset[str]:
    return frozenset(sample.labels.get("flags", "").split(","))


def _nearest(bound: float) -> float:
    return bound if math.isinf(bound) else round(bound, 3)


def _label(bound: float) -> str:
    return "inf" if math.isinf(bound) else f"{bound:g}"
