"""What was measured, what was promised, and what fires: objectives, series, the ratios of runbook 004, alerts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason, Refused
from fairlead.proxy.dispatch.submit import check_json
from fairlead.proxy.ops.audit import event_of
from fairlead.proxy.store.interface import Store
from fairlead.proxy.store.telemetry_records import SampleRow, SilenceRow
from fairlead.proxy.telemetry.alerting import SILENCE_MAX_MS
from fairlead.proxy.telemetry.alerts import Alerts
from fairlead.proxy.telemetry.burn_rates import DAY_MS, HOUR_MS, MINUTE_MS
from fairlead.proxy.telemetry.samples import (
    CALLBACK_ATTEMPTS,
    HTTP_OPS,
    OUTBOX_LAG,
    REPLAYS,
    RUNS,
    Bucket,
    Samples,
)
from fairlead.proxy.telemetry.slo import Objectives, snapshot, window
from fairlead.runtime.http.message import Request, Response, json_response
from fairlead.runtime.sketch import Sketch
from fairlead.runtime.world import World

POINTS_MAX: Final = 1_000
ROWS_MAX: Final = 200_000
EVENTS_MAX: Final = 100
WHY_CHARS_MAX: Final = 500
SERIES_WINDOW_MS: Final = HOUR_MS
_SHOWN: Final = ("name", "severity", "summary", "since_ms", "value", "detail", "is_silenced")
_LENGTH: Final = re.compile(r"([0-9]{1,6})(s|m|h|d)")
_UNITS_MS: Final = {"s": 1_000, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}


class AlertSilence(msgspec.Struct, forbid_unknown_fields=True):
    """The body of PUT /api/alerts/silences. `rule`: a name, or * for all; for `for_s` seconds from now."""

    rule: str
    for_s: int
    why: str


class TelemetryApi:
    """The HTTP face of the telemetry. All of it concerns every tenant, so it is for callers who are bound to none."""

    def __init__(
        self,
        world: World,
        store: Store,
        samples: Samples,
        alerts: Alerts,
        objectives: Objectives,
        holding: Callable[[], str],
    ) -> None:
        """`holding`: why nothing is to be rolled out now, whatever the figures say; or nothing."""
        self._world, self._store, self._samples, self._alerts = world, store, samples, alerts
        self._objectives, self._holding = objectives, holding

    # -- objectives

    async def serve_slo(self, request: Request, caller: Identity, _: str) -> Response:
        return json_response({
            "at_ms": self._world.wall_ms(), **snapshot(self._samples, self._objectives, self._holding()),
            "firing": [each["name"] for each in self._alerts.firing()],
        })  # fmt: skip

    def answered(self, status: int, seconds: float, *, waited: bool) -> None:
        """A call on the ops port was answered."""
        self._samples.http(HTTP_OPS, ok=status < 500, seconds=None if waited else seconds)

    async def serve_ops_metrics(self, request: Request, caller: Identity, _: str) -> Response:
        """What runbook 004 alerts on, each over its window."""
        dead_letters, running, stale = self._alerts.counts
        within = self._samples.within

        def ratio(name: str, bucket: Bucket, limit: str, *, of_good: bool) -> dict[str, Any]:
            rate = bucket.counted.error_rate
            value = None if not bucket.total else round(1 - rate if of_good else rate, 6)
            return {
                "ratio": value,
                "failed": bucket.errors,
                "total": bucket.total,
                "alert": name,
                "limit": limit,
            }

        return json_response({
            "at_ms": self._world.wall_ms(),
            "heartbeat_stale_ratio": {
                "ratio": None if running is None else round(stale / running, 6) if running else 0.0,
                "runningWithoutHeartbeat": stale, "runningRuns": running, "alert": "heartbeat_stale_ratio",
                "limit": "> 0.25 for 5 min",
            },
            "callback_failed_ratio": ratio(
                "callback_failed_ratio", within(10 * MINUTE_MS, CALLBACK_ATTEMPTS), "> 0.10 for 10 min", of_good=False
            ),
            "retry_success_rate": ratio(
                "retry_success_rate", within(30 * MINUTE_MS, REPLAYS), "< 0.70 for 30 min", of_good=True
            ),
            "run_success_rate": ratio(
                "run_success_rate", within(30 * MINUTE_MS, RUNS), "< 0.90 for 30 min", of_good=True
            ),
            "runs": window(within(30 * MINUTE_MS, RUNS)),
            "outbox_lag": window(within(10 * MINUTE_MS, OUTBOX_LAG)),
            "http_ops": window(within(30 * MINUTE_MS, HTTP_OPS)),
            "dead_letters_open": dead_letters,
        })  # fmt: skip

    # -- series

    async def serve_metrics_series(self, request: Request, caller: Identity, _: str) -> Response:
        params = request.params()
        now_ms = self._world.wall_ms()
        window_ms = _length(params, "window", SERIES_WINDOW_MS, 30 * DAY_MS)
        metric = params.get("metric", "")
        if not metric:
            known = await self._store.sampled_metrics(now_ms - window_ms)
            lately = {each.metric for each in self._samples.series()}
            return json_response({"metrics": sorted({*known, *lately}), "window_ms": window_ms})
        step_ms = _length(params, "step", max(MINUTE_MS, window_ms // 60), window_ms)
        step_ms = max(MINUTE_MS, step_ms - step_ms % MINUTE_MS)
        if window_ms // step_ms > POINTS_MAX:
            raise Refused(
                Reason.QUERY_INVALID, f"at most {POINTS_MAX} points: a longer step or a shorter window"
            )
        rows = await self._store.samples(now_ms - window_ms, now_ms + MINUTE_MS, ROWS_MAX, metric)
        wanted = {key: params[key] for key in ("name", "tenant", "version") if key in params}
        points: dict[int, Bucket] = {}
        for row in rows:
            if all(getattr(row, key) == value for key, value in wanted.items()):
                points.setdefault(row.at_ms - row.at_ms % step_ms, Bucket()).merge(_bucket(row))
        newest = self._samples.since(
            now_ms - MINUTE_MS, metric, name=wanted.get("name"), tenant=wanted.get("tenant"),
            version=wanted.get("version"),
        )  # fmt: skip
        if newest.total:  # the minute that is not over is not in the store yet
            points.setdefault(now_ms - now_ms % step_ms, Bucket()).merge(newest)
        return json_response({
            "metric": metric, "window_ms": window_ms, "step_ms": step_ms, **({"of": wanted} if wanted else {}),
            "points": [{"at_ms": at_ms, **_point(points[at_ms])} for at_ms in sorted(points)],
        })  # fmt: skip

    # -- alerts

    async def serve_alerts(self, request: Request, caller: Identity, _: str) -> Response:
        silences = await self._store.silences()
        return json_response({
            "firing": [each["name"] for each in self._alerts.firing()],
            "alerts": self._alerts.describe(),
            "silences": [
                {"rule": each.rule, "until_ms": each.until_ms, "owner": each.owner, "why": each.why,
                 "created_at_ms": each.created_at_ms, "holds": each.holds}
                for each in silences
            ],
            "events": await self._store.alert_events(EVENTS_MAX),
        })  # fmt: skip

    async def serve_alert_silence(self, request: Request, caller: Identity, _: str) -> Response:
        asked = _decode(request.body)
        if asked.rule != "*" and asked.rule not in {rule.name for rule in self._alerts.rules}:
            raise Refused(
                Reason.BODY_MALFORMED, f"no alert has the name {asked.rule[:80]!r}; * is all of them"
            )
        if not 1 <= asked.for_s <= SILENCE_MAX_MS // 1000:
            raise Refused(Reason.BODY_MALFORMED, f"for_s must be from 1 to {SILENCE_MAX_MS // 1000}")
        if not asked.why.strip() or len(asked.why) > WHY_CHARS_MAX:
            raise Refused(Reason.BODY_MALFORMED, f"why must say why, in at most {WHY_CHARS_MAX} characters")
        now_ms = self._world.wall_ms()
        row = SilenceRow(asked.rule, now_ms + asked.for_s * 1000, caller.principal, asked.why, now_ms)
        event = event_of(
            self._world,
            request,
            caller,
            "alert_silenced",
            scope=asked.rule,
            detail={"until_ms": row.until_ms},
        )
        await self._store.save_silence(row, event)
        self._alerts.look_soon()
        return await self.serve_alerts(request, caller, "")

    async def serve_alert_unsilence(self, request: Request, caller: Identity, rule: str) -> Response:
        event = event_of(self._world, request, caller, "alert_unsilenced", scope=rule[:80])
        removed = await self._store.remove_silence(rule, event)
        self._alerts.look_soon()
        return json_response({"removed": removed, "rule": rule})

    async def serve_alert_test(self, request: Request, caller: Identity, _: str) -> Response:
        await self._store.audit(event_of(self._world, request, caller, "alert_tested"))
        return json_response(await self._alerts.test())

    def status(self) -> dict[str, Any]:
        """What fires, for /status."""
        return {
            "firing": [
                {key: each[key] for key in _SHOWN}
                for each in self._alerts.firing()
            ],
            "is_evaluating": self._alerts.is_leader,
        }  # fmt: skip


def _length(params: Mapping[str, str], name: str, default_ms: int, most_ms: int) -> int:
    text = params.get(name, "")
    if not text:
        return default_ms
    matched = _LENGTH.fullmatch(text)
    found = int(matched[1]) * _UNITS_MS[matched[2]] if matched else 0
    if not MINUTE_MS <= found <= most_ms:
        raise Refused(
            Reason.QUERY_INVALID, f"{name} must be like 90s, 5m, 6h or 1d, from 1m to {most_ms // MINUTE_MS}m"
        )
    return found


def _bucket(row: SampleRow) -> Bucket:
    bucket = Bucket()
    bucket.total, bucket.errors, bucket.amount, bucket.most = row.total, row.errors, row.amount, row.most
    bucket.sketch = Sketch.decode(row.sketch) if row.sketch else None
    return bucket


def _point(bucket: Bucket) -> dict[str, Any]:
    mean = None if bucket.mean is None else round(bucket.mean, 6)
    return {**window(bucket), "mean": mean, "most": round(bucket.most, 6)}


def _decode(body: bytes) -> AlertSilence:
    check_json(body)
    try:
        return msgspec.json.decode(body, type=AlertSilence)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise Refused(Reason.BODY_MALFORMED, str(error)) from error
