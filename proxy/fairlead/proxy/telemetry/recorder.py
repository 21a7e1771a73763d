"""The samples' way into the store and back: written once a minute, read again by the process that comes after.

Beside dispatch, never in its way: nobody waits for a sample. What the store does not take is tried again with the next
minute; what other proxies of the same store saw is read with it. Old minutes become hours, and old hours go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from fairlead.protocol.reasons import Reason
from fairlead.proxy.store.interface import TelemetryStore
from fairlead.proxy.store.telemetry_records import SampleRow
from fairlead.proxy.telemetry.burn_rates import DAY_MS, MINUTE_MS
from fairlead.proxy.telemetry.samples import Bucket, Samples, Series
from fairlead.runtime.observer import Observer
from fairlead.runtime.sketch import Sketch
from fairlead.runtime.world import World

RETENTION_MS: Final = 30 * DAY_MS
HISTORY_MS: Final = 3 * DAY_MS
READ_MAX: Final = 100_000
WRITE_MAX: Final = 2_000
MERGE_MAX: Final = 2_000
FLUSH_S: Final = 5.0  # how often it looks whether a minute is over
SIBLINGS_LATE_MS: Final = 10 * MINUTE_MS
STOP_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class RecorderSettings:
    """`is_kept`: whether samples go into the store at all; `minutes_max`: after which they become hours there."""

    is_kept: bool
    minutes_max: int


class Recorder:
    """The loop. `load` before anything is concluded from samples, then `run` it once."""

    def __init__(
        self,
        world: World,
        observer: Observer,
        store: TelemetryStore,
        samples: Samples,
        owner: str,
        settings: RecorderSettings,
        *,
        shared: bool,
        each_turn: Callable[[], None] = lambda: None,
    ) -> None:
        """`each_turn`: reads what nobody hands in (counters, gauges) into the samples."""
        self._world, self._observer, self._store, self._samples = world, observer, store, samples
        self._owner, self._settings, self._shared, self._each_turn = owner, settings, shared, each_turn
        self._known: set[tuple[int, str, Series]] = set()  # rows of siblings that were read
        self._minute = world.wall_ms() // MINUTE_MS
        observer.metrics.computed(
            "samples_lost", "Samples that could not be written in time.", (), lambda: {(): samples.lost},
        )  # fmt: skip

    async def load(self) -> None:
        """What processes before this one saw. Without it this one begins with no data, and says so."""
        if not self._settings.is_kept:
            return
        now_ms = self._world.wall_ms()
        try:
            rows = await self._store.samples(now_ms - HISTORY_MS, now_ms + MINUTE_MS, READ_MAX)
        except Exception as error:  # the objectives are no reason not to start
            self._failed("read", error)
            return
        for row in rows:
            self._take(row)

    async def run(self) -> None:
        """Write each minute once it is over, until cancelled; then what there is of the last one."""
        try:
            while True:
                await trio.sleep(FLUSH_S)
                self._each_turn()
                self._samples.roll()
                if self._settings.is_kept:
                    await self._turn()
        finally:
            if self._settings.is_kept:
                with trio.move_on_after(STOP_S, shield=True):
                    self._samples.close()
                    await self._write()

    async def _turn(self) -> None:
        await self._write()
        minute = self._world.wall_ms() // MINUTE_MS
        if minute == self._minute:
            return
        self._minute = minute
        try:
            if self._shared:
                await self._read_siblings()
            await self._forget()
        except Exception as error:  # the next minute tries again
            self._failed("upkeep", error)

    async def _write(self) -> None:
        while batch := self._samples.unsaved(WRITE_MAX):
            rows = [
                SampleRow(
                    minute * MINUTE_MS, MINUTE_MS, self._owner, *series, bucket.total, bucket.errors, bucket.amount,
                    bucket.most, bucket.sketch.encode() if bucket.sketch is not None else b"",
                )
                for minute, series, bucket in batch
            ]  # fmt: skip
            try:
                await self._store.save_samples(rows)
            except Exception as error:  # kept, and written with the next minute
                self._failed("write", error)
                return
            self._samples.saved(len(batch))

    async def _read_siblings(self) -> None:
        now_ms = self._world.wall_ms()
        from_ms = now_ms - SIBLINGS_LATE_MS
        rows = await self._store.samples(from_ms, now_ms + MINUTE_MS, READ_MAX, without_owner=self._owner)
        for row in rows:
            self._take(row)
        self._known = {key for key in self._known if key[0] >= from_ms}

    def _take(self, row: SampleRow) -> None:
        series = Series(row.metric, row.name, row.tenant, row.version)
        key = (row.at_ms, row.owner, series)
        if row.width_ms == MINUTE_MS:
            if key in self._known:
                return
            if row.at_ms >= self._world.wall_ms() - SIBLINGS_LATE_MS:
                self._known.add(key)
        bucket = Bucket()
        bucket.total, bucket.errors, bucket.amount, bucket.most = row.total, row.errors, row.amount, row.most
        bucket.sketch = Sketch.decode(row.sketch) if row.sketch else None
        self._samples.remember(row.at_ms, row.width_ms, series, bucket)

    async def _forget(self) -> None:
        now_ms = self._world.wall_ms()
        await self._store.merge_samples(now_ms - self._settings.minutes_max * MINUTE_MS, MERGE_MAX)
        await self._store.prune_telemetry(now_ms - RETENTION_MS)

    def _failed(self, what: str, error: Exception) -> None:
        detail = f"samples, {what}: {type(error).__name__}: {error}"
        self._observer.refused(Reason.STORE_UNAVAILABLE, detail, level="error")
