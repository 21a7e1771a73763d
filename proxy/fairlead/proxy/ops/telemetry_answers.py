"""What the endpoints of the telemetry send: objectives, series, ratios, alerts. See `answers`."""

from __future__ import annotations

from typing import Any

import msgspec


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    pass


class SloWindow(_Answer, kw_only=True):
    total: int
    errors: int
    error_rate: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class BurnRate(_Answer, kw_only=True):
    long_ms: int
    short_ms: int
    limit: float
    severity: str
    rate: float | None
    samples: int
    samples_min: int
    is_burning: bool | None


class SloThresholds(_Answer):
    max_error_rate: float
    max_p95_ms: int
    min_samples: int
    window_ms: int


class RolloutAdvice(_Answer):
    advice: str
    reasons: list[str]


class BaselineRow(_Answer, kw_only=True):
    name: str
    objective: float
    bound: str
    value: float | None
    samples: int
    samples_min: int
    state: str


class SloSnapshot(_Answer, kw_only=True):
    at_ms: int
    windows: dict[str, SloWindow]
    burn_rates: dict[str, list[BurnRate]]
    thresholds: SloThresholds
    recommendation: RolloutAdvice
    baseline: list[BaselineRow]
    firing: list[str]


class SeriesPoint(_Answer, kw_only=True):
    at_ms: int
    total: int
    errors: int
    error_rate: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    mean: float | None
    most: float


class SeriesOfMetric(_Answer, kw_only=True):
    metric: str
    window_ms: int
    step_ms: int
    points: list[SeriesPoint]
    of: dict[str, str] | None = None


class SampledMetrics(_Answer):
    metrics: list[str]
    window_ms: int


class OpsMetrics(_Answer, kw_only=True):
    at_ms: int
    heartbeat_stale_ratio: dict[str, Any]
    callback_failed_ratio: dict[str, Any]
    retry_success_rate: dict[str, Any]
    run_success_rate: dict[str, Any]
    runs: SloWindow
    outbox_lag: SloWindow
    http_ops: SloWindow
    dead_letters_open: int | None


class AlertRow(_Answer, kw_only=True):
    name: str
    severity: str
    phase: str
    summary: str
    since_ms: int | None
    value: float | None
    samples: int
    threshold: str
    condition: str
    detail: str
    told_at_ms: int | None
    is_silenced: bool
    inhibited_by: list[str]
    is_heartbeat: bool
    runbook: str
    actions: list[str]
    evidence: list[str]


class SilenceOfAlert(_Answer):
    rule: str
    until_ms: int
    owner: str
    why: str
    created_at_ms: int
    holds: bool


class AlertTold(_Answer, kw_only=True):
    event_id: str
    alert: str
    kind: str
    event_type: str
    state: str
    attempts: int
    detail: str
    created_at_ms: int


class Alerts(_Answer):
    firing: list[str]
    alerts: list[AlertRow]
    silences: list[SilenceOfAlert]
    events: list[AlertTold]


class SilenceRemoved(_Answer):
    removed: bool
    rule: str


class AlertTested(_Answer):
    event_id: str
    console: bool
    webhook: bool
    told: bool
