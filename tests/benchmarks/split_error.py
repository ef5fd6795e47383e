"""How exactly the router splits: who answered 10,000 requests at each of three weights, against what chance allows."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

from tests.benchmarks.lines import Line
from tests.benchmarks.routers import fast_load, model_servers, our_router
from tests.benchmarks.stores import fresh_folder

WEIGHTS = (1, 5, 50)
REQUESTS = 10_000
CLIENTS = 8
SIGMAS = 3.29
"""A router that draws each request's arm fairly is further off in one of 1,000 measurements."""


def main(given: argparse.Namespace) -> Iterator[Line]:
    """A line for each weight."""
    requests = 1000 if given.short else REQUESTS
    with (
        fresh_folder() as folder,
        model_servers(folder / "servers", ["stable", "canary"]) as servers,
        our_router(folder / "ours") as router,
    ):
        for weight in WEIGHTS:
            router.serve({"stable": 100 - weight, "canary": weight}, servers)
            before = router.router.counters(servers)["canary"].requests
            seen = fast_load(router.port, requests=requests, clients=CLIENTS)
            counted = router.router.counters(servers)["canary"].requests - before
            yield _line(weight, requests, seen.by["canary"], counted, judged=not given.short)


def _line(weight: int, requests: int, found: int, counted: int, *, judged: bool) -> Line:
    share = weight / 100
    sigma = math.sqrt(requests * share * (1 - share))
    off = abs(found - requests * share) / sigma
    return Line(
        bench=f"split_error_{weight}",
        bar=f"at most {SIGMAS:g} standard deviations of a fair draw, and counted exactly",
        holds=off <= SIGMAS and counted == found if judged else None,
        value=off,
        raw={
            "requests": requests,
            "weight_percent": weight,
            "measured_percent": round(100 * found / requests, 3),
            "answered_by_canary": found,
            "counted_by_router": counted,
            "allowed": [round(requests * share - SIGMAS * sigma), round(requests * share + SIGMAS * sigma)],
        },
    )
