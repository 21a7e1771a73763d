"""Pure. Counters and histograms of one process, added up in another: what changed, and how it is added.

Gauges are not carried: whoever adds up knows best what they are of the whole.

Invariants: what was taken once is not taken again; what a receiver does not know is left out, and cannot be made to
grow its tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fairlead.runtime.metrics import Family, Histogram, HistogramCell, Metrics

CELLS_MAX: Final = 10_000  # of one family; more label values than that are nobody's counters

# Name, label values, and what to add: one number; or of a histogram count, total and each bucket.
Change = tuple[str, tuple[str, ...], tuple[float, ...]]


class Changes:
    """Of the metrics of one process."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._told: dict[tuple[str, tuple[str, ...]], tuple[float, ...]] = {}

    def take(self) -> list[Change]:
        """What changed since this was asked last."""
        found: list[Change] = []
        for family in self._metrics.families():
            if isinstance(family, Family) and family.kind == "counter":
                for labels, cell in family.cells.items():
                    if cell.value:
                        self._one(family.name, labels, (cell.value,), found)
            elif isinstance(family, Histogram):
                for labels, counted in family.cells.items():
                    if counted.count:
                        self._one(
                            family.name, labels, (counted.count, counted.total, *counted.buckets), found
                        )
        return found

    def _one(self, name: str, labels: tuple[str, ...], now: tuple[float, ...], found: list[Change]) -> None:
        before = self._told.get((name, labels))
        if before == now:
            return
        self._told[(name, labels)] = now
        if before is not None:
            found.append((name, labels, tuple(new - old for new, old in zip(now, before, strict=True))))
        else:
            found.append((name, labels, now))


def add(metrics: Metrics, changes: Iterable[Change]) -> None:
    """Count in `metrics` what changed elsewhere."""
    for name, labels, amounts in changes:
        family = metrics.family(name)
        if not isinstance(family, Family | Histogram) or family.kind == "gauge":
            continue
        if len(labels) != len(family.labels):
            continue
        if labels not in family.cells and len(family.cells) >= CELLS_MAX:
            continue
        cell = family.cell(*labels)
        if isinstance(cell, HistogramCell):
            if len(amounts) == 2 + len(cell.buckets):
                cell.count += int(amounts[0])
                cell.total += amounts[1]
                cell.buckets = [
                    have + int(more) for have, more in zip(cell.buckets, amounts[2:], strict=True)
                ]
        elif len(amounts) == 1 and amounts[0] > 0:
            cell.inc(amounts[0])
