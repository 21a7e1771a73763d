"""Pure. Signatures on callbacks, in both directions: made and judged over the timestamp and the whole body.

Stands around every body that leaves for a `callback_url`, and before every result that arrives without a link.

Two spellings of one thing: the runbooks' `x-worker-signature` (hex HMAC-SHA256 over `timestamp.body`) and Standard
Webhooks (`webhook-signature`, base64, over `id.timestamp.body`). The key of both is the secret's bytes, decoded from
the hex or base64 that it is configured as.

Invariants: every secret is tried, and compared in constant time, whichever fits; the time is judged only after the
signature, so that somebody without a secret learns nothing about our clock.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Final

from fairlead.protocol.reasons import Reason, Reject

SIGNATURE_HEADER: Final = "x-worker-signature"
TIMESTAMP_HEADER: Final = "x-worker-timestamp"
EVENT_ID_HEADER: Final = "x-fairlead-event-id"

_TIMESTAMP: Final = re.compile(r"[1-9][0-9]{0,11}", re.ASCII)
_HEX: Final = re.compile(r"[0-9A-Fa-f]{64}", re.ASCII)


def worker_signature(secret: bytes, timestamp_s: int, body: bytes) -> str:
    """Hex HMAC-SHA256 over `timestamp.body`."""
    return hmac.new(secret, b"%d.%b" % (timestamp_s, body), hashlib.sha256).hexdigest()


def webhook_signature(secrets: Sequence[bytes], event_id: str, timestamp_s: int, body: bytes) -> str:
    """The list that Standard Webhooks takes: one signature for each secret, so that a rotation overlaps."""
    content = b"%b.%d.%b" % (event_id.encode(), timestamp_s, body)
    digests = (hmac.new(secret, content, hashlib.sha256).digest() for secret in secrets)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def signed_headers(
    secrets: Sequence[bytes], event_id: str, now_ms: int, body: bytes
) -> list[tuple[str, str]]:
    """Everything that goes beside a signed body. The first secret is the current one."""
    timestamp_s = now_ms // 1000
    return [
        (SIGNATURE_HEADER, worker_signature(secrets[0], timestamp_s, body)),
        (TIMESTAMP_HEADER, str(timestamp_s)),
        (EVENT_ID_HEADER, event_id),
        ("webhook-id", event_id),
        ("webhook-timestamp", str(timestamp_s)),
        ("webhook-signature", webhook_signature(secrets, event_id, timestamp_s, body)),
    ]


def judge_signature(
    secrets: Sequence[bytes],
    signatures: Sequence[str],
    timestamps: Sequence[str],
    body: bytes,
    now_ms: int,
    tolerance_s: int,
) -> int | Reject:
    """When the body was signed, in milliseconds since the epoch; or why it is not believed.

    `signatures` and `timestamps` are all values of their headers: one given twice has no meaning."""
    if not secrets:
        return Reject(
            Reason.CALLBACK_SIGNATURE_INVALID, "worker.callback_signing_secret is not set: none is taken"
        )
    if len(signatures) != 1 or not _HEX.fullmatch(signatures[0]):
        return Reject(Reason.CALLBACK_SIGNATURE_INVALID, f"one {SIGNATURE_HEADER} of 64 hex digits is needed")
    if len(timestamps) != 1 or not _TIMESTAMP.fullmatch(timestamps[0]):
        return Reject(Reason.CALLBACK_TIMESTAMP_INVALID, f"one {TIMESTAMP_HEADER} in seconds is needed")
    given, timestamp_s = bytes.fromhex(signatures[0]), int(timestamps[0])
    fits = False
    for secret in secrets:  # every one is compared, whichever fits
        wanted = bytes.fromhex(worker_signature(secret, timestamp_s, body))
        fits |= hmac.compare_digest(wanted, given)
    if not fits:
        return Reject(Reason.CALLBACK_SIGNATURE_INVALID, "the signature is not of this timestamp and body")
    late_s = (now_ms - timestamp_s * 1000) / 1000
    if abs(late_s) > tolerance_s:
        when = f"{abs(late_s):.0f} s {'ago' if late_s > 0 else 'ahead'}"
        return Reject(
            Reason.CALLBACK_TIMESTAMP_INVALID, f"signed {when}, at most {tolerance_s} s are allowed"
        )
    return timestamp_s * 1000
