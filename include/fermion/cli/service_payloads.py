"""Services, rollouts and looks as the command's JSON; the API answers the same facts in its own words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fermion.domain.payloads import to_payload
from fermion.domain.records import Decision
from fermion.domain.rollout.looks import Look
from fermion.domain.rollout.plan import Share
from fermion.domain.rollout.rollouts import Rollout
from fermion.domain.serving.engine_presets import Engine
from fermion.domain.serving.engines import metric_names
from fermion.domain.serving.replicas import ReplicaSeen
from fermion.domain.serving.routing import copies_of
from fermion.domain.serving.services import Replica
from fermion.domain.serving.traffic import Counters, Window
from fermion.usecases.serving.queries import ServiceState


def service_payload(found: ServiceState) -> dict[str, Any]:
    """A service as it is now; what is not known is null."""
    service = found.service
    stable = next((each for each in found.revisions if each.number == service.stable), None)
    return {
        "id": service.id,
        "name": service.name,
        "status": found.status,
        "owner": service.owner,
        "team": service.team,
        "pool": service.pool,
        "endpoint": found.endpoint,
        "api_type": str(service.api_type),
        "model_path": stable.model_path if stable else None,
        "replicas": {"desired": service.replicas, "current": found.current, "ready": found.ready},
        "autoscaling": to_payload(service.autoscaling),
        "weights": found.weights,
        "spread": to_payload(found.spread),
        "rollout": rollout_payload(found.rollout) if found.rollout else None,
        "metrics": _metrics(found),
        "revisions": [
            {
                "id": each.id,
                "model_path": each.model_path,
                "phase": str(each.phase),
                "wanted": each.wanted,
                "failed": each.failed,
                "message": each.explanation.message,
                "created_at": each.created_at.isoformat(),
            }
            for each in found.revisions
        ],
        "instances": [replica_payload(row, seen) for row, seen in found.replicas],
    }


def replica_payload(row: Replica, seen: ReplicaSeen | None) -> dict[str, Any]:
    """One replica: its row, and what was seen of it now. ``detail`` says why it is not ready, or when it starts again."""
    return {
        "name": row.name,
        "phase": str(row.phase),
        "state": str(seen.state) if seen else None,
        "starts": seen.starts if seen else None,
        "reason": str(row.explanation.reason),
        "message": row.explanation.message,
        "detail": seen.detail or None if seen else None,
    }


def why_of(row: Replica, seen: ReplicaSeen | None) -> str:
    """The sentence that tells most of why it is as it is: what was seen of its server, else why its row is so."""
    return (seen.detail if seen else "") or row.explanation.message


def _metrics(found: ServiceState) -> dict[str, Any]:
    """What was measured, by whom and when; null where nothing was, with the reason."""
    p95 = found.p95_ms
    return {
        "source": found.source,
        "observed_at": found.lately.until.isoformat() if found.lately else None,
        "trouble": found.trouble or None,
        "lately": window_payload(found.lately),
        "p95_latency_ms": p95 if p95 is not None and math.isfinite(p95) else None,
        "day": window_payload(found.day),
    }


def window_payload(window: Window | None) -> dict[str, Any] | None:
    """Traffic between two moments; null where nothing was counted."""
    if window is None:
        return None
    return {
        "since": window.since.isoformat(),
        "until": window.until.isoformat(),
        "requests": window.requests,
        "failures": window.failures,
        "router_made": window.router_made,
        "qps": window.requests / window.seconds if window.seconds > 0 else None,
        "mean_latency_ms": window.mean_ms,
        "success_rate": 1 - window.failures / window.requests if window.requests else None,
    }


def rollout_payload(rollout: Rollout) -> dict[str, Any]:
    """Where a rollout is."""
    return {
        "id": rollout.id,
        "service": rollout.service,
        "canary": rollout.canary,
        "stable": rollout.stable,
        "phase": str(rollout.phase),
        "reason": str(rollout.explanation.reason),
        "message": rollout.explanation.message,
        "step": rollout.step,
        "steps": [step.weight_percent for step in rollout.plan.steps],
        "shares": [share_payload(step.share) for step in rollout.plan.steps],
        "weight_percent": rollout.wanted_weight_percent,
        "share": share_payload(rollout.wanted_share),
        "created_at": rollout.created_at.isoformat(),
        "ended_at": rollout.ended_at.isoformat() if rollout.ended_at else None,
    }


def share_payload(share: Share) -> dict[str, Any]:
    """What the canary gets of the requests, and in which way."""
    return {
        "way": str(share.way),
        "weight_percent": share.weight_percent,
        "mirror_percent": share.mirror_percent,
        "split": None if share.split is None else to_payload(share.split),
        "told": str(share),
    }


def look_payload(look: Look) -> dict[str, Any]:
    """One look with its numbers; the counts that it was judged from are in the store."""
    return {
        "number": look.number,
        "outcome": str(look.outcome),
        "sentence": look.sentence,
        "weight_percent": look.measured.weight_percent,
        "share": share_payload(look.measured.share),
        "counted_percent": look.measured.counted_percent,
        "from": look.measured.started_at.isoformat(),
        "to": look.measured.ended_at.isoformat(),
        "rule_version": look.rule_version,
        "metrics": [
            {
                "metric": each.metric,
                "outcome": str(each.outcome),
                "statistic": each.statistic,
                "bound": each.bound,
                "canary": each.canary_value,
                "stable": each.stable_value,
                "sentence": each.sentence,
            }
            for each in look.metrics
        ],
        "checks": [
            {"check": each.check, "outcome": str(each.outcome), "sentence": each.sentence} for each in look.checks
        ],
    }


def approval_payload(answer: Decision) -> dict[str, Any]:
    """A person's answer: who, when, why, what became of it, and what was known when it was given."""
    return {
        "verdict": answer.verdict,
        "by": answer.inputs.get("by"),
        "at": answer.decided_at.isoformat(),
        "note": answer.inputs.get("note"),
        "step": answer.inputs.get("step"),
        "became": answer.reason,
        "message": answer.message,
        "evidence": dict(answer.numbers),
    }


def traffic_payload(found: ServiceState, counters: Mapping[str, Counters]) -> list[dict[str, Any]]:
    """The split of a service's requests by revision."""
    return [
        {
            "revision": each.id,
            "model_path": each.model_path,
            "wished_percent": found.service.weights.get(str(each.number), 0),
            "applied_percent": None if found.weights is None else found.weights.get(each.id, 0),
            "requests": counters[each.id].requests if each.id in counters else None,
            "failures": counters[each.id].by_class.get("5xx", 0) if each.id in counters else None,
            "active": counters[each.id].active if each.id in counters else None,
            "copies": counters[copies_of(each.id)].requests if copies_of(each.id) in counters else None,
        }
        for each in found.revisions
    ]


def engine_payload(engine: Engine) -> dict[str, Any]:
    """A model server's preset: what it listens on, how it is started and asked, and where it really serves."""
    return {
        "name": engine.name,
        "about": engine.about,
        "dialect": str(engine.dialect),
        "api_types": [str(each) for each in engine.api_types],
        "ports": list(engine.ports),
        "argv": list(engine.argv),
        "probes": to_payload(engine.probes),
        "metrics": dict(metric_names(engine)),
        "drivers": sorted(engine.drivers),
        "elsewhere": engine.elsewhere,
    }
