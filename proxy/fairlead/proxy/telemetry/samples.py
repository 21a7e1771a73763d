"""Pure. What happened, in buckets of one minute by series: counts, failures, and how long it took.

Between the events of dispatch, callbacks and HTTP, which are handed in as they happen, and everything that is concluded
from them: objectives, alerts, rollouts. A series is a metric with a name in it (a command), a tenant and the version
label of the node. Durations are measured from when something was due, so that waiting counts.

Invariants: memory is bounded: a series too many is counted under "*", a minute becomes part of its hour, an hour is
forgotten after three days; what was closed never changes; a window holds what happened in it at most, to the minute
up to `WHOLE_MINUTES`, to the hour beyond.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from fairlead.proxy.telemetry.burn_rates import HOUR_MS, MINUTE_MS, Counted
from fairlead.runtime.sketch import Sketch

ANY: Final = "*"
RUNS: Final = "runs"  # that ended, replays aside
REPLAYS: Final = "replays"  # of dead letters, and retries that somebody asked for
CALLBACKS: Final = "callbacks"  # that were delivered, or given up
CALLBACK_ATTEMPTS: Final = "callback_attempts"
HTTP_OPS: Final = "http_ops"
HTTP_EDGE: Final = "http_edge"
OUTBOX_LAG: Final = "outbox_lag"
REJECTS: Final = "rejects"  # by reason
ACCEPTED: Final = "accepted"

SERIES_MAX: Final = 256
SERIES_MINUTES: Final = 65
WHOLE_MINUTES: Final = 365  # of a metric as a whole: six hours and a little
HOURS: Final = 73
UNSAVED_MAX: Final = 20_000


class Series(NamedTuple):
    """What is counted together."""

    metric: str
    name: str = ANY
    tenant: str = ANY
    version: str = ""


class Bucket:
    """What happened to one series in a while. `amount` and `most`: the sum and the largest of what was measured."""

    __slots__ = ("amount", "errors", "most", "sketch", "total")

    def __init__(self) -> None:
        self.total = self.errors = 0
        self.amount = self.most = 0.0
        self.sketch: Sketch | None = None

    def add(self, count: int, errors: int, measured: float | None) -> None:
        self.total += count
        self.errors += errors
        if measured is not None:
            self.read(measured)
            if self.sketch is None:
                self.sketch = Sketch()
            self.sketch.add(measured, count)

    def read(self, value: float) -> None:
        """A number that is no duration."""
        self.amount += value
        self.most = max(self.most, value)

    def merge(self, other: Bucket) -> None:
        self.total += other.total
        self.errors += other.errors
        self.amount += other.amount
        self.most = max(self.most, other.most)
        if other.sketch is not None:
            if self.sketch is None:
                self.sketch = Sketch()
            self.sketch.merge(other.sketch)

    @property
    def counted(self) -> Counted:
        return Counted(self.total, self.errors)

    @property
    def mean(self) -> float | None:
        return self.amount / self.total if self.total else None

    def quantile_ms(self, share: float) -> float | None:
        """Of what was measured, in milliseconds; None where nothing was."""
        found = self.sketch.quantile(share) if self.sketch is not None else None
        return None if found is None else round(found * 1000, 3)


class _Track:
    """The closed minutes of one series, and the hours that they are part of."""

    __slots__ = ("_minutes_max", "hours", "minutes")

    def __init__(self, minutes_max: int) -> None:
        self._minutes_max = minutes_max
        self.minutes: dict[int, Bucket] = {}
        self.hours: dict[int, Bucket] = {}

    def absorb(self, minute: int, bucket: Bucket, newest: int) -> None:
        for held, number, oldest in (
            (self.minutes, minute, newest - self._minutes_max),
            (self.hours, minute // 60, newest // 60 - HOURS),
        ):
            if number > oldest:
                if number not in held:
                    held[number] = Bucket()
                held[number].merge(bucket)

    def absorb_hour(self, hour: int, bucket: Bucket) -> None:
        if hour not in self.hours:
            self.hours[hour] = Bucket()
        self.hours[hour].merge(bucket)

    def trim(self, newest: int) -> bool:
        """Forget what is too old. Whether anything is left."""
        for held, oldest in (
            (self.minutes, newest - self._minutes_max), (self.hours, newest // 60 - HOURS),
        ):  # fmt: skip
            for number in [each for each in held if each <= oldest]:
                del held[number]
        return bool(self.hours)

    def since(self, minute: int, newest: int) -> Iterator[Bucket]:
        if minute > newest - self._minutes_max:
            return (bucket for number, bucket in self.minutes.items() if number >= minute)
        first = -(-minute // 60)  # hours that began before are left out
        return (bucket for number, bucket in self.hours.items() if number >= first)


class Samples:
    """All series of this process, and of the processes beside it as far as the store told of them."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._open: dict[Series, Bucket] = {}
        self._minute = now_ms() // MINUTE_MS
        self._tracks: dict[Series, _Track] = {}
        self._whole: dict[str, _Track] = {}
        self._known: dict[str, set[Series]] = {}  # by metric
        self._unsaved: deque[tuple[int, Series, Bucket]] = deque()
        self.lost = 0  # buckets that could not be written in time

    # -- what happens

    def ended(
        self, command: str, tenant: str, version: str, *, ok: bool, seconds: float, is_replay: bool = False
    ) -> None:
        """A run ended, so long after it was due."""
        self.add(Series(REPLAYS if is_replay else RUNS, command, tenant, version), 1, not ok, seconds)

    def http(self, surface: str, *, ok: bool, seconds: float | None) -> None:
        """A request was answered. `seconds`: None where the caller asked to wait."""
        self.add(Series(surface), 1, not ok, seconds)

    def callback(self, outcome: str) -> None:
        """An attempt at a callback: delivered, retried or dead."""
        delivered = outcome == "delivered"
        self.add(Series(CALLBACK_ATTEMPTS), 1, not delivered)
        if outcome != "retried":
            self.add(Series(CALLBACKS), 1, not delivered)

    def lag(self, seconds: float) -> None:
        """A run was delivered, so long after it was due."""
        self.add(Series(OUTBOX_LAG), 1, 0, max(0.0, seconds))

    def gauge(self, metric: str, value: float) -> None:
        """A number that was read now."""
        self.add(Series(metric), 1).read(value)

    def add(self, series: Series, count: int, errors: int = 0, measured: float | None = None) -> Bucket:
        """`count` times the same happened now, `errors` of them badly."""
        self.roll()
        bucket = self._open.get(series)
        if bucket is None:
            series = self._bounded(series)
            bucket = self._open.setdefault(series, Bucket())
        bucket.add(count, errors, measured)
        return bucket

    def _bounded(self, series: Series) -> Series:
        known = self._known.setdefault(series.metric, set())
        if series not in known and len(known) >= SERIES_MAX:
            series = Series(series.metric)
        known.add(series)
        return series

    # -- minutes end

    def roll(self) -> None:
        """Close the minute if it is over. A clock that was set back changes nothing but where it is counted."""
        minute = self._now_ms() // MINUTE_MS
        if minute != self._minute:
            self.close()
            self._minute = minute

    def close(self) -> None:
        """What is open is over: also before a stop."""
        for series, bucket in self._open.items():
            self._absorb(self._minute, series, bucket)
            self._unsaved.append((self._minute, series, bucket))
        self._open = {}
        while len(self._unsaved) > UNSAVED_MAX:
            self._unsaved.popleft()
            self.lost += 1
        newest = self._now_ms() // MINUTE_MS
        self._tracks = {key: track for key, track in self._tracks.items() if track.trim(newest)}
        self._whole = {metric: track for metric, track in self._whole.items() if track.trim(newest)}
        self._known = {}
        for series in self._tracks:
            self._known.setdefault(series.metric, set()).add(series)

    def _absorb(self, minute: int, series: Series, bucket: Bucket) -> None:
        newest = max(minute, self._now_ms() // MINUTE_MS)
        self._track(series).absorb(minute, bucket, newest)
        self._whole_of(series.metric).absorb(minute, bucket, newest)

    def remember(self, at_ms: int, width_ms: int, series: Series, bucket: Bucket) -> None:
        """What the store knows: of the process before this one, or of another beside it."""
        series = self._bounded(series)
        if width_ms >= HOUR_MS:
            self._track(series).absorb_hour(at_ms // HOUR_MS, bucket)
            self._whole_of(series.metric).absorb_hour(at_ms // HOUR_MS, bucket)
        else:
            self._absorb(at_ms // MINUTE_MS, series, bucket)

    def _track(self, series: Series) -> _Track:
        return self._tracks.setdefault(series, _Track(SERIES_MINUTES))

    def _whole_of(self, metric: str) -> _Track:
        return self._whole.setdefault(metric, _Track(WHOLE_MINUTES))

    def unsaved(self, limit: int) -> list[tuple[int, Series, Bucket]]:
        """Closed buckets that are not in the store yet, oldest first."""
        return [self._unsaved[index] for index in range(min(limit, len(self._unsaved)))]

    def saved(self, count: int) -> None:
        """So many of them are."""
        for _ in range(count):
            self._unsaved.popleft()

    # -- what is asked

    def within(
        self,
        window_ms: int,
        metric: str,
        *,
        name: str | None = None,
        tenant: str | None = None,
        version: str | None = None,
        before_ms: int = 0,
    ) -> Bucket:
        """What happened in the last `window_ms`, of the series that are named. `before_ms`: up to so long ago."""
        return self.since(
            self._now_ms() - window_ms, metric, name=name, tenant=tenant, version=version,
            until_ms=self._now_ms() - before_ms if before_ms else None,
        )  # fmt: skip

    def since(
        self,
        from_ms: int,
        metric: str,
        *,
        name: str | None = None,
        tenant: str | None = None,
        version: str | None = None,
        until_ms: int | None = None,
    ) -> Bucket:
        """The same since a time: the minutes that begin after it, and before `until_ms`."""
        self.roll()
        first = from_ms // MINUTE_MS + 1
        found = Bucket()

        def fits(series: Series) -> bool:
            return (
                series.metric == metric
                and (name is None or series.name == name)
                and (tenant is None or series.tenant == tenant)
                and (version is None or series.version == version)
            )

        if name is tenant is version is None:
            whole = self._whole.get(metric)
            tracks = [whole] if whole is not None else []
        else:
            tracks = [track for series, track in self._tracks.items() if fits(series)]
        newest = self._now_ms() // MINUTE_MS
        for track in tracks:
            if until_ms is not None:
                last = until_ms // MINUTE_MS
                for number, bucket in track.minutes.items():
                    if first <= number < last:
                        found.merge(bucket)
                continue
            for bucket in track.since(first, newest):
                found.merge(bucket)
        if until_ms is None:
            for series, bucket in self._open.items():
                if fits(series):
                    found.merge(bucket)
        return found

    def counted(self, window_ms: int, metric: str) -> Counted:
        """How much happened, and how much of it badly."""
        self.roll()
        now_ms = self._now_ms()
        first, total, errors = (now_ms - window_ms) // MINUTE_MS + 1, 0, 0
        whole = self._whole.get(metric)
        closed = whole.since(first, now_ms // MINUTE_MS) if whole is not None else ()
        for bucket in (*closed, *(each for series, each in self._open.items() if series.metric == metric)):
            total += bucket.total
            errors += bucket.errors
        return Counted(total, errors)

    def series(self, metric: str | None = None) -> list[Series]:
        """What has been seen lately."""
        known = {*self._tracks, *self._open}
        return sorted(each for each in known if metric is None or each.metric == metric)
