"""Asks a Prometheus over its HTTP interface. Keeps ``ports.Measurements``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from fermion.adapters.prometheus import promql, recorded
from fermion.domain.serving.traffic import Window
from fermion.errors import OutsideBroken, OutsideUnavailable

if TYPE_CHECKING:
    import httpx

ANSWER_S = 5.0
COARSE = timedelta(minutes=1)
"""Between two readings where latencies are not asked for; what a router counted between the last of them and its end is lost."""

MOST_POINTS = 10_000
"""Prometheus answers at most 11,000 of a series."""

EDGE = timedelta(seconds=1)
"""Prometheus 3 leaves the reading at the very beginning of a span out."""


class PrometheusMeasurements:
    """One Prometheus. ``labels`` are what the router's series must have besides, as ``job``; ``keys`` are name and password."""

    def __init__(
        self, url: str, *, labels: Mapping[str, str] | None = None, keys: tuple[str, str] | None = None
    ) -> None:
        self._url = url.rstrip("/")
        self._labels = dict(labels or {})
        self._keys = keys
        self._client: httpx.Client | None = None

    @property
    def source(self) -> str:
        """Its address."""
        return f"Prometheus at {self._url}"

    def windows(
        self, backends: Collection[str], since: datetime, until: datetime, *, latencies: bool = True
    ) -> Mapping[str, Window]:
        """Every single scrape counts; without ``latencies`` one a minute.

        Raises:
            OutsideUnavailable: it does not answer, or answers too late.
            OutsideBroken: it refuses the question, or answers with something else than readings.
        """
        if not backends or until <= since:
            return {}
        asked = promql.readings(backends, self._labels, latencies=latencies)
        if latencies:
            result = self._ask("query", {"query": promql.over(asked, until - since + EDGE), "time": _time(until)})
        else:
            step = max(COARSE, (until - since) / MOST_POINTS)
            start = until - step * ((until - since) // step)  # so that the newest reading is one of them
            span = {"start": _time(start), "end": _time(until), "step": f"{step.total_seconds():.3f}"}
            result = self._ask("query_range", {"query": promql.latest(asked, step), **span})
        try:
            return recorded.windows(result, backends, since=since, latencies=latencies)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._broken(f"answers with something that is no readings: {error!r}") from error

    def _ask(self, how: str, fields: Mapping[str, str]) -> Sequence[Mapping[str, Any]]:
        import httpx

        if self._client is None:
            self._client = httpx.Client(timeout=ANSWER_S, trust_env=False, auth=self._keys)
        try:
            answer = self._client.post(f"{self._url}/api/v1/{how}", data=dict(fields))
        except httpx.HTTPError as error:
            raise OutsideUnavailable(
                f"{self.source} does not answer ({error or type(error).__name__}).", what="prometheus"
            ) from error
        if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise OutsideUnavailable(
                f"{self.source} answers with {answer.status_code}: {answer.text.strip()[:200]}", what="prometheus"
            )
        try:
            told = answer.json()
            if told["status"] != "success":
                raise self._broken(f"refuses the question: {told.get('error', told)}")
            result: Sequence[Mapping[str, Any]] = told["data"]["result"]
            return result
        except (ValueError, KeyError, TypeError) as error:
            told = f"answers with {answer.status_code} and no readings: {answer.text.strip()[:200]!r}"
            raise self._broken(told) from error

    def _broken(self, what: str) -> OutsideBroken:
        return OutsideBroken(f"{self.source} {what}", what="prometheus")


def _time(moment: datetime) -> str:
    return f"{moment.timestamp():.3f}"
