"""What the router costs a request: the same load through it and through an Envoy configured by hand, in turns.

Both have as many threads and lead to the same server, which takes 2 ms, as a small real model does. Ours keeps counters and latencies of every request, may try it again,
and knows twenty other services; the other one has a single static route.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from statistics import median

from tests.benchmarks.lines import Line, percentile
from tests.benchmarks.routers import Answers, envoy_by_hand, fixed_load, model_servers, our_router
from tests.benchmarks.stores import fresh_folder

ROUNDS = 10
TURNS = 20
SERVER_MS = 2
REQUESTS = 100
PER_SECOND = 400.0
CLIENTS = 4
NEIGHBOURS = 20
BARS = {"p50": (0.5, 1.05), "p99": (0.99, 1.2)}


def main(given: argparse.Namespace) -> Iterator[Line]:
    """A line for each percentile."""
    rounds, turns = (2, 4) if given.short else (ROUNDS, TURNS)
    ours: list[list[float]] = []
    theirs: list[list[float]] = []
    late = 0.0
    with fresh_folder() as folder, model_servers(folder / "servers", ["digits-r1"], takes_ms=SERVER_MS) as servers:
        (server,) = servers.values()
        with our_router(folder / "ours") as router, envoy_by_hand(folder / "theirs", server=server) as by_hand:
            router.serve({"digits-r1": 100}, servers, neighbours=NEIGHBOURS)
            _round(router.port, by_hand, turns)  # warms both up
            for _ in range(rounds):
                mine, hand = _round(router.port, by_hand, turns)
                ours.append(mine.latencies_s)
                theirs.append(hand.latencies_s)
                late = max(late, mine.late_s, hand.late_s)
    for name, (share, bar) in BARS.items():
        yield _line(name, share, bar, ours, theirs, late, judged=not given.short)


def _round(ours: int, theirs: int, turns: int) -> tuple[Answers, Answers]:
    """Both ports under the same load in short turns, so that what else the machine does meets both alike."""
    found = {ours: Answers(), theirs: Answers()}
    for turn in range(turns):
        for port in (ours, theirs) if turn % 2 else (theirs, ours):
            found[port].add(fixed_load(port, requests=REQUESTS, per_second=PER_SECOND, clients=CLIENTS))
    return found[ours], found[theirs]


def _line(
    name: str,
    share: float,
    bar: float,
    ours: list[list[float]],
    theirs: list[list[float]],
    late: float,
    *,
    judged: bool,
) -> Line:
    mine, hand = ([1000 * percentile(each, share) for each in rounds] for rounds in (ours, theirs))
    ratio = median(mine) / median(hand)
    return Line(
        bench=f"router_overhead_{name}",
        bar=f"ratio <= {bar:g}",
        holds=ratio <= bar if judged else None,
        ratio=ratio,
        raw={
            "ours_ms": [round(each, 3) for each in mine],
            "by_hand_ms": [round(each, 3) for each in hand],
            "added_ms": round(median(mine) - median(hand), 3),
            "server_ms": SERVER_MS,
            "requests_a_round": len(ours[0]),
            "per_second": PER_SECOND,
            "latest_ms": round(1000 * late, 1),
        },
    )
