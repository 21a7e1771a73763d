"""Pure. What is told of an alert: the body of schema v1, the one that Slack shows, and the headers beside them.

Between an event of `alerting` and the row that is delivered. The body is made once, when the event is: each attempt
sends the same bytes, so that a receiver can tell a repetition by its id.

Invariants: the signature covers the timestamp and the body; an event id is the same for the same event.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Final

import msgspec

from fairlead.proxy.store.telemetry_records import AlertNotice
from fairlead.proxy.telemetry.alerting import AlertEvent, EventKind, Rule
from fairlead.proxy.telemetry.slo import told_ms
from fairlead.runtime.signing import webhook_signature

SCHEMA_VERSION: Final = "v1"
EVENT_TYPE_HEADER: Final = "x-reliability-event-type"
SIGNATURE_HEADER: Final = "x-reliability-signature"
TIMESTAMP_HEADER: Final = "x-reliability-timestamp"
V1, SLACK = "v1", "slack"
_MARKS: Final = {
    EventKind.FIRED: "FIRING",
    EventKind.REPEATED: "STILL FIRING",
    EventKind.RESOLVED: "RESOLVED",
}


def event_type(rule: Rule) -> str:
    """What receivers sort by."""
    return rule.event_type or rule.name


def event_id(name: str, event: AlertEvent) -> str:
    """Of one event, whoever makes it and however often."""
    return f"alert-{name}-{event.kind.value}-{event.at_ms}".replace(" ", "-")


def body(name: str, event: AlertEvent, where: dict[str, str]) -> dict[str, Any]:
    """Schema v1. `where`: which proxy and environment tell it."""
    rule = event.rule
    return {
        "schemaVersion": SCHEMA_VERSION, "eventId": event_id(name, event), "eventType": event_type(rule),
        "status": event.kind.value, "alert": rule.name, "severity": rule.severity.value, "summary": rule.summary,
        "value": event.value, "threshold": threshold(rule), "windowMs": rule.window_ms, "forMs": rule.for_ms,
        "samplesMin": rule.samples_min, "sinceMs": event.since_ms, "atMs": event.at_ms, "detail": event.detail,
        "actions": [f"{number}. {text}" for number, text in enumerate(rule.actions, 1)],
        "evidence": list(rule.evidence), "runbook": rule.source, **where,
    }  # fmt: skip


def notice(name: str, event: AlertEvent, where: dict[str, str], form: str, *, is_sent: bool) -> AlertNotice:
    """The event as it is kept and sent. `name`: of its state."""
    told = body(name, event, where)
    raw = msgspec.json.encode(told if form == V1 else slack(told))
    return AlertNotice(
        event_id(name, event),
        event.rule.name,
        event.kind.value,
        event_type(event.rule),
        raw,
        event.at_ms,
        is_sent,
    )


def slack(told: dict[str, Any]) -> dict[str, Any]:
    """The same as a text. What could be read as a mention or a link is made harmless."""
    mark = _MARKS[EventKind(told["status"])]
    head = f"*{mark}* [{told['severity']}] `{told['alert']}`: {told['summary']}"
    lines = [head]
    if told["detail"]:
        lines.append(told["detail"])
    if told["status"] != EventKind.RESOLVED.value:
        lines += told["actions"]
    lines.append(f"{told.get('proxy', '')} ({told.get('environment', '')})")
    return {"text": "\n".join(_harmless(line) for line in lines)}


def _harmless(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def headers(secret: bytes | None, due_id: str, kind: str, now_ms: int, raw: bytes) -> list[tuple[str, str]]:
    """Beside a body that is sent now. Without a secret nothing is signed."""
    timestamp_s = now_ms // 1000
    found = [(EVENT_TYPE_HEADER, kind), (TIMESTAMP_HEADER, str(timestamp_s))]
    if secret is not None:
        found += [
            (SIGNATURE_HEADER, signature(secret, timestamp_s, raw)),
            ("webhook-id", due_id),
            ("webhook-timestamp", str(timestamp_s)),
            ("webhook-signature", webhook_signature([secret], due_id, timestamp_s, raw)),
        ]
    return found


def signature(secret: bytes, timestamp_s: int, raw: bytes) -> str:
    """HMAC-SHA256 over the timestamp, a dot and the body, in hex."""
    return hmac.new(secret, b"%d.%b" % (timestamp_s, raw), hashlib.sha256).hexdigest()


def threshold(rule: Rule) -> str:
    """What a rule compares with."""
    if rule.is_heartbeat:
        return "always"
    return f"> {rule.above:g}" if rule.above is not None else f"< {rule.below:g}"


def conditions(rule: Rule) -> str:
    """When a rule fires, in words."""
    if rule.is_heartbeat:
        return f"always; told every {told_ms(rule.cooldown_ms)}"
    said = f"{rule.reading} {threshold(rule)} over {told_ms(rule.window_ms)}"
    if rule.for_ms:
        said += f", for {told_ms(rule.for_ms)}"
    if rule.samples_min > 1:
        said += f", of at least {rule.samples_min}"
    return said
