"""The values of telemetry that cross the store's border: samples of series, states of alerts, what is to be told."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


class SampleRow(msgspec.Struct, frozen=True, gc=False):
    """What one process saw of one series in a minute or an hour. `amount` and `most` are the sum and the largest of
    what was measured; `sketch` is its distribution, empty where nothing was. A row that was written never changes,
    but for the merging of old ones into hours."""

    at_ms: int
    width_ms: int
    owner: str
    metric: str
    name: str
    tenant: str
    version: str
    total: int
    errors: int
    amount: float = 0.0
    most: float = 0.0
    sketch: bytes = b""


@dataclass(frozen=True, slots=True)
class SavedAlert:
    """How an alert stood when it last changed."""

    name: str
    phase: str
    since_ms: int
    false_since_ms: int | None = None
    told_at_ms: int | None = None
    value: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class AlertNotice:
    """Something that is told of an alert. `is_sent`: there is a webhook for it; else it is kept for people to read."""

    event_id: str
    alert: str
    kind: str
    event_type: str
    body: bytes
    created_at_ms: int
    is_sent: bool = False


@dataclass(frozen=True, slots=True)
class AlertDue:
    """A notice that is to be sent now."""

    event_id: str
    event_type: str
    body: bytes
    attempts: int
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class SilenceRow:
    """Of which rule (or of all: *) nobody is to be told, until when, and who said so. `holds`: its seal does; one that
    does not silences nothing."""

    rule: str
    until_ms: int
    owner: str
    why: str
    created_at_ms: int
    holds: bool = True


@dataclass(frozen=True, slots=True)
class RunningRuns:
    """Runs on nodes, and those among them whose node has not renewed them in time."""

    running: int
    stale: int
