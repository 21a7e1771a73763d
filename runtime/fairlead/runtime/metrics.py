"""Counters, gauges and histograms, and their Prometheus text.

Our own exposition, because the usual client library stalls the event loop for hundreds of milliseconds on
a scrape of a few thousand series; the text is checked with its parser in the tests. A family whose labels
are a closed set is registered with all of them, so that every counter exists at zero from the start.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

LATENCY_BUCKETS_S: Final = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)


class Cell:
    """One number."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount

    def dec(self, amount: float = 1.0) -> None:
        self.value -= amount

    def set(self, value: float) -> None:
        self.value = value


class Family:
    """Counters or gauges of one name, by label values."""

    def __init__(self, name: str, kind: str, text: str, labels: Sequence[str]) -> None:
        self.name, self.kind, self.text, self.labels = name, kind, text, tuple(labels)
        self.cells: dict[tuple[str, ...], Cell] = {}
        if not self.labels:
            self.cells[()] = Cell()

    def cell(self, *values: str) -> Cell:
        """The cell of these label values, in the order of `labels`; made on first use."""
        found = self.cells.get(values)
        if found is None:
            assert len(values) == len(self.labels), f"{self.name} takes {self.labels}"
            found = self.cells[values] = Cell()
        return found

    def inc(self, *values: str) -> None:
        self.cell(*values).value += 1.0

    def total(self) -> float:
        return sum(cell.value for cell in self.cells.values())

    def lines(self) -> Iterable[str]:
        for values, cell in self.cells.items():
            yield f"{self.name}{_labels(self.labels, values)} {_number(cell.value)}"


class HistogramCell:
    """One distribution over fixed buckets."""

    __slots__ = ("bounds", "buckets", "count", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.count = 0
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.buckets[bisect_left(self.bounds, value)] += 1


class Histogram:
    """Distributions of one name, by label values."""

    kind = "histogram"

    def __init__(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self.name, self.text, self.labels, self.bounds = name, text, tuple(labels), tuple(bounds)
        self.cells: dict[tuple[str, ...], HistogramCell] = {}
        if not self.labels:
            self.cell()

    def cell(self, *values: str) -> HistogramCell:
        found = self.cells.get(values)
        if found is None:
            assert len(values) == len(self.labels), f"{self.name} takes {self.labels}"
            found = self.cells[values] = HistogramCell(self.bounds)
        return found

    def observe(self, value: float, *values: str) -> None:
        self.cell(*values).observe(value)

    def lines(self) -> Iterable[str]:
        names = (*self.labels, "le")
        for values, cell in self.cells.items():
            running = 0
            for bound, count in zip((*self.bounds, float("inf")), cell.buckets, strict=True):
                running += count
                edge = "+Inf" if bound == float("inf") else _number(bound)
                yield f"{self.name}_bucket{_labels(names, (*values, edge))} {running}"
            yield f"{self.name}_sum{_labels(self.labels, values)} {_number(cell.total)}"
            yield f"{self.name}_count{_labels(self.labels, values)} {cell.count}"


class Computed:
    """A family whose numbers are read when they are asked for."""

    def __init__(
        self,
        name: str,
        kind: str,
        text: str,
        labels: Sequence[str],
        read: Callable[[], Mapping[tuple[str, ...], float]],
    ) -> None:
        self.name, self.kind, self.text, self.labels, self.read = name, kind, text, tuple(labels), read

    def lines(self) -> Iterable[str]:
        for values, number in self.read().items():
            yield f"{self.name}{_labels(self.labels, values)} {_number(number)}"


class Metrics:
    """All families of one process."""

    def __init__(self, prefix: str = "fairlead_") -> None:
        self._prefix = prefix
        self._families: dict[str, Family | Histogram | Computed] = {}

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Family:
        return self._add(Family(self._prefix + name, "counter", text, labels))

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Family:
        return self._add(Family(self._prefix + name, "gauge", text, labels))

    def histogram(
        self, name: str, text: str, labels: Sequence[str] = (), bounds: Sequence[float] = LATENCY_BUCKETS_S
    ) -> Histogram:
        family = Histogram(self._prefix + name, text, labels, bounds)
        self._families[family.name] = family
        return family

    def computed(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        read: Callable[[], Mapping[tuple[str, ...], float]],
        kind: str = "gauge",
    ) -> None:
        family = Computed(self._prefix + name, kind, text, labels, read)
        self._families[family.name] = family

    def families(self) -> Iterable[Family | Histogram | Computed]:
        return self._families.values()

    def family(self, name: str) -> Family | Histogram | Computed | None:
        """By its whole name."""
        return self._families.get(name)

    def _add(self, family: Family) -> Family:
        known = self._families.get(family.name)
        if isinstance(known, Family):
            return known
        self._families[family.name] = family
        return family

    def exposition(self) -> str:
        """The Prometheus text format, version 0.0.4."""
        out: list[str] = []
        for family in self._families.values():
            out.append(f"# HELP {family.name} {_escape(family.text, quotes=False)}")
            out.append(f"# TYPE {family.name} {family.kind}")
            out.extend(family.lines())
        out.append("")
        return "\n".join(out)


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    if not names:
        return ""
    inside = ",".join(f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=True))
    return "{" + inside + "}"


def _escape(text: str, quotes: bool = True) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
