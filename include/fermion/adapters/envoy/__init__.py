"""The router of the process and docker drivers: Envoy beside the platform, told by files that it watches.

``bootstrap.prepare`` makes what it is started with; ``EnvoyRouter`` tells it what to do and reads back what it does.
"""

from __future__ import annotations

from fermion.adapters.envoy.router import EnvoyRouter

__all__ = ["EnvoyRouter"]
