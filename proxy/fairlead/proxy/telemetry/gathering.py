"""What nobody hands in: counters whose growth is sampled, and numbers that are read now and then.

Between the metrics of this process and the samples. Counters are read as they are: what grew since the last look is
what happened in it, whoever counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from fairlead.proxy.telemetry.readings import reject_series
from fairlead.proxy.telemetry.samples import ACCEPTED, ANY, HTTP_EDGE, Samples, Series
from fairlead.runtime.metrics import Family, Metrics
from fairlead.runtime.observer import Observer

EDGE_REQUESTS: Final = "fairlead_edge_requests_total"
RUNS_ACCEPTED: Final = "fairlead_runs_accepted_total"


class Gathering:
    """Reads into the samples."""

    def __init__(
        self, observer: Observer, samples: Samples, gauges: Mapping[str, Callable[[], float | None]]
    ) -> None:
        """`gauges`: by the name of their series; None is not known."""
        self._observer, self._samples, self._gauges = observer, samples, gauges
        self._seen: dict[Series, float] = {}

    def counters(self) -> None:
        """What grew."""
        for reasons in self._observer.rejects().values():
            for reason, count in reasons.items():
                self._grown(reject_series(reason), count)
        metrics = self._observer.metrics
        self._grown(Series(ACCEPTED), _total(metrics, RUNS_ACCEPTED))
        edge = metrics.family(EDGE_REQUESTS)
        if isinstance(edge, Family) and "status_class" in edge.labels:
            at = edge.labels.index("status_class")
            for errors in (False, True):
                found = sum(
                    cell.value for key, cell in edge.cells.items() if key[at].startswith("5") is errors
                )
                self._grown(Series(HTTP_EDGE), found, is_error=errors)

    def numbers(self) -> None:
        """How things stand."""
        for name, read in self._gauges.items():
            value = read()
            if value is not None:
                self._samples.gauge(name, value)

    def _grown(self, series: Series, count: float, *, is_error: bool = False) -> None:
        key = Series(series.metric, series.name, "5xx" if is_error else ANY)
        grown = round(count - self._seen.get(key, 0.0))
        if grown > 0:
            self._seen[key] = count
            self._samples.add(series, grown, grown if is_error else 0)


def _total(metrics: Metrics, name: str) -> float:
    family = metrics.family(name)
    return family.total() if isinstance(family, Family) else 0.0
