"""Signatures of callbacks: against an implementation written by hand from the two specifications, and forged."""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from tests.support.config_text import strong

from fairlead.protocol.reasons import Reason, Reject
from fairlead.runtime.signing import judge_signature, signed_headers, worker_signature

SECRET, PREVIOUS, FOREIGN = (bytes.fromhex(strong(name)) for name in ("callback", "before", "foreign"))
NOW_MS = 1_800_000_000_500
STAMP = NOW_MS // 1000
BODY = b'{"eventId":"e1","status":"COMPLETED"}'


def judge(
    signatures: list[str],
    timestamps: list[str],
    body: bytes = BODY,
    now_ms: int = NOW_MS,
    secrets: tuple[bytes, ...] = (SECRET, PREVIOUS),
) -> int | Reject:
    return judge_signature(secrets, signatures, timestamps, body, now_ms, 300)


def test_headers_say_what_both_specifications_say():
    headers = dict(signed_headers([SECRET, PREVIOUS], "e1", NOW_MS, BODY))
    assert headers["x-worker-timestamp"] == headers["webhook-timestamp"] == "1800000000"
    assert headers["x-fairlead-event-id"] == headers["webhook-id"] == "e1"
    by_hand = hmac.new(SECRET, b"1800000000." + BODY, hashlib.sha256).hexdigest()
    assert headers["x-worker-signature"] == by_hand
    for given, secret in zip(headers["webhook-signature"].split(" "), (SECRET, PREVIOUS), strict=True):
        version, _, text = given.partition(",")
        assert version == "v1"
        wanted = hmac.new(secret, b"e1.1800000000." + BODY, hashlib.sha256).digest()
        assert base64.b64decode(text) == wanted


def test_the_published_example_of_standard_webhooks_fits():
    """From its specification's reference libraries: a fixed secret, id, timestamp and payload."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signed_headers(
        [secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330_000, b'{"test": 2432232314}'
    )
    assert dict(headers)["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("secret", [SECRET, PREVIOUS])
def test_what_the_current_or_the_previous_secret_signed_is_believed(secret: bytes) -> None:
    assert judge([worker_signature(secret, STAMP, BODY)], [str(STAMP)]) == STAMP * 1000
    assert judge([worker_signature(secret, STAMP, BODY).upper()], [str(STAMP)]) == STAMP * 1000


GOOD = worker_signature(SECRET, STAMP, BODY)


@pytest.mark.parametrize(
    ("signatures", "timestamps", "body", "reason"),
    [
        ([], [str(STAMP)], BODY, Reason.CALLBACK_SIGNATURE_INVALID),
        ([GOOD, GOOD], [str(STAMP)], BODY, Reason.CALLBACK_SIGNATURE_INVALID),
        ([""], [str(STAMP)], BODY, Reason.CALLBACK_SIGNATURE_INVALID),
        ([GOOD[:-1]], [str(STAMP)], BODY, Reason.CALLBACK_SIGNATURE_INVALID),
        ([GOOD + "0"], [str(STAMP)], BODY, Reason.CALLBACK_SIGNATURE_INVALID),
        (["sha256=" + GOOD], [str(STAMP)], BODY, Reason.CALLBACK_SIGNATURE_INVALID),
        ([GOOD[:-1] + "g"], [str(STAMP)], BODY, Reason.CALLBACK_SIGNATURE_INVALID),
        (["0" * 64], [str(STAMP)], BODY, Reason.CALLBACK_SIGNATURE_INVALID),
        (["\uff10" * 64], [str(STAMP)], BODY, Reason.CALLBACK_SIGNATURE_INVALID),
        ([worker_signature(FOREIGN, STAMP, BODY)], [str(STAMP)], BODY, Reason.CALLBACK_SIGNATURE_INVALID),
        ([GOOD], [str(STAMP)], BODY + b" ", Reason.CALLBACK_SIGNATURE_INVALID),
        ([GOOD], [str(STAMP)], BODY.replace(b"COMPLETED", b"FAILED"), Reason.CALLBACK_SIGNATURE_INVALID),
        ([GOOD], [str(STAMP)], b"", Reason.CALLBACK_SIGNATURE_INVALID),
        ([GOOD], [str(STAMP + 1)], BODY, Reason.CALLBACK_SIGNATURE_INVALID),
        # the timestamp's digits moved into the body: the dot in between belongs to what is signed
        ([GOOD], [str(STAMP)[:-1]], str(STAMP)[-1:].encode() + b"." + BODY, Reason.CALLBACK_SIGNATURE_INVALID),
        ([GOOD], [], BODY, Reason.CALLBACK_TIMESTAMP_INVALID),
        ([GOOD], [str(STAMP)] * 2, BODY, Reason.CALLBACK_TIMESTAMP_INVALID),
        ([GOOD], [""], BODY, Reason.CALLBACK_TIMESTAMP_INVALID),
        ([GOOD], [f"{STAMP}.0"], BODY, Reason.CALLBACK_TIMESTAMP_INVALID),
        ([GOOD], [f"+{STAMP}"], BODY, Reason.CALLBACK_TIMESTAMP_INVALID),
        ([GOOD], [f" {STAMP}"], BODY, Reason.CALLBACK_TIMESTAMP_INVALID),
        ([GOOD], [f"0{STAMP}"], BODY, Reason.CALLBACK_TIMESTAMP_INVALID),
        ([GOOD], ["1_800_000_000"], BODY, Reason.CALLBACK_TIMESTAMP_INVALID),
        ([GOOD], ["9" * 5_000], BODY, Reason.CALLBACK_TIMESTAMP_INVALID),
        ([GOOD], ["\u0661\u0662"], BODY, Reason.CALLBACK_TIMESTAMP_INVALID),
    ],
)  # fmt: skip
def test_forgeries(signatures: list[str], timestamps: list[str], body: bytes, reason: Reason) -> None:
    judged = judge(signatures, timestamps, body)
    assert isinstance(judged, Reject)
    assert judged.reason is reason


@pytest.mark.parametrize("place", [0, 63, 64, 5_000, 99_999])
def test_every_byte_of_a_long_body_is_signed(place: int) -> None:
    body = b"x" * 100_000
    signed = worker_signature(SECRET, STAMP, body)
    assert isinstance(judge([signed], [str(STAMP)], body), int)
    assert isinstance(judge([signed], [str(STAMP)], body[:place] + b"y" + body[place + 1 :]), Reject)
    assert (
        signed_headers([SECRET], "e1", NOW_MS, body)[5]
        != signed_headers([SECRET], "e1", NOW_MS, body[:place])[5]
    )


@pytest.mark.parametrize(
    ("late_s", "is_believed"), [(0, True), (300, True), (301, False), (-300, True), (-301, False)]
)
def test_the_tolerance_has_two_ends(late_s: int, is_believed: bool) -> None:
    judged = judge([GOOD], [str(STAMP)], now_ms=(STAMP + late_s) * 1000)
    assert isinstance(judged, int) is is_believed
    if isinstance(judged, Reject):
        assert judged.reason is Reason.CALLBACK_TIMESTAMP_INVALID


def test_who_holds_no_secret_learns_nothing_about_the_clock():
    judged = judge(["0" * 64], ["1"])
    assert judged == Reject(
        Reason.CALLBACK_SIGNATURE_INVALID, "the signature is not of this timestamp and body"
    )


def test_without_a_secret_nothing_is_believed():
    judged = judge([worker_signature(b"", STAMP, BODY)], [str(STAMP)], secrets=())
    assert isinstance(judged, Reject)
    assert judged.reason is Reason.CALLBACK_SIGNATURE_INVALID
