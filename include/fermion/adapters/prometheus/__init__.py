"""A Prometheus that scrapes the router: what it recorded of requests, for figures and, where configured, for looks."""

from __future__ import annotations

from fermion.adapters.prometheus.measurements import PrometheusMeasurements

__all__ = ["PrometheusMeasurements"]
