"""Signatures of requests: against an implementation written by hand from the specification, and forged in every way."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from pathlib import Path

import pytest
from tests.support.config_text import strong

from fairlead.protocol.keys import fingerprint
from fairlead.protocol.reasons import Reason, Reject
from fairlead.runtime.request_signing import Signed, judge, sign, signing_keys, target_of

SECRET, PREVIOUS, FOREIGN = (bytes.fromhex(strong(name)) for name in ("dispatch", "before", "foreign"))
CURRENT, BEFORE, STRANGE = signing_keys([SECRET, PREVIOUS, FOREIGN])
KEYS = (CURRENT, BEFORE)
NOW_MS = 1_800_000_000_500
SKEW_MS = 300_000
METHOD, TARGET, BODY, NONCE = "POST", "/api/dispatch?x=1", b'{"command":"demo:echo"}', "n" * 22


def judged(
    *values: str, method: str = METHOD, target: str = TARGET, body: bytes = BODY, now_ms: int = NOW_MS,
    keys: tuple = KEYS,
) -> Signed | Reject:  # fmt: skip
    return judge(keys, values, method, target, body, now_ms, SKEW_MS)


GOOD = sign(CURRENT, METHOD, TARGET, BODY, NOW_MS, NONCE)


def test_the_header_is_what_the_specification_says():
    key_id = hashlib.blake2b(b"fingerprint", key=SECRET, person=b"fairlead-print", digest_size=8).hexdigest()
    lines = [str(NOW_MS), NONCE, METHOD, TARGET, hashlib.sha256(BODY).hexdigest(), key_id]
    by_hand = hmac.new(SECRET, "\n".join(lines).encode(), hashlib.sha256).hexdigest()
    assert GOOD == f"v2 keyId={key_id};ts={NOW_MS};nonce={NONCE};sig={by_hand}"


@pytest.mark.parametrize("key", KEYS)
def test_what_the_current_or_the_previous_secret_signed_is_believed(key) -> None:
    made = sign(key, METHOD, TARGET, BODY, NOW_MS, NONCE)
    assert judged(made) == Signed(fingerprint(key.secret), NOW_MS, NONCE)


MALFORMED = {
    "empty": "",
    "version 1": GOOD.replace("v2", "v1"),
    "no version": GOOD.removeprefix("v2 "),
    "capital hex": GOOD.replace(GOOD[-64:], GOOD[-64:].upper()),
    "a short signature": GOOD[:-2],
    "a long signature": GOOD + "00",
    "another order": "v2 " + ";".join(sorted(GOOD.removeprefix("v2 ").split(";"))),
    "a field twice": GOOD + f";nonce={NONCE}",
    "a field more": GOOD + ";alg=none",
    "a space in front": f" {GOOD}",
    "a space behind": f"{GOOD} ",
    "spaces between": GOOD.replace(";", "; "),
    "a line feed behind": f"{GOOD}\n",
    "a line feed in the nonce": GOOD.replace(NONCE, NONCE[:-1] + "\n"),
    "a short nonce": GOOD.replace(NONCE, "n" * 15),
    "a long nonce": GOOD.replace(NONCE, "n" * 65),
    "a time with a sign": GOOD.replace("ts=", "ts=+"),
    "a time with a leading zero": GOOD.replace("ts=", "ts=0"),
    "a huge time": GOOD.replace(f"ts={NOW_MS}", "ts=" + "9" * 400),
    "a time in other digits": GOOD.replace(f"ts={NOW_MS}", "ts=١٨٠٠٠٠٠٠٠٠٥٠٠"),
    "two in one": f"{GOOD}, {GOOD}",
}


@pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_not_spelled_exactly_so_is_refused(value: str) -> None:
    found = judged(value)
    assert isinstance(found, Reject)
    assert found.reason is Reason.SIGNATURE_MALFORMED


CHANGED = {
    "method": {"method": "PUT"},
    "path": {"target": "/api/dispatch/batch?x=1"},
    "query": {"target": "/api/dispatch?x=2"},
    "no query": {"target": "/api/dispatch"},
    "body": {"body": BODY + b" "},
    "no body": {"body": b""},
}


@pytest.mark.parametrize("changed", CHANGED.values(), ids=CHANGED.keys())
def test_each_part_of_the_request_is_signed(changed) -> None:
    found = judged(GOOD, **changed)
    assert isinstance(found, Reject)
    assert found.reason is Reason.SIGNATURE_INVALID


@pytest.mark.parametrize("part", ["ts", "nonce", "sig"])
def test_each_field_of_the_header_is_signed(part: str) -> None:
    fields = dict(field.split("=") for field in GOOD.removeprefix("v2 ").split(";"))
    last = fields[part][-1]
    fields[part] = fields[part][:-1] + ("1" if last != "1" else "2")
    found = judged("v2 " + ";".join(f"{name}={value}" for name, value in fields.items()))
    assert isinstance(found, Reject)
    assert found.reason is Reason.SIGNATURE_INVALID


def test_a_key_id_of_another_key_we_know_does_not_pass():
    found = judged(GOOD.replace(CURRENT.key_id, BEFORE.key_id))
    assert isinstance(found, Reject)
    assert found.reason is Reason.SIGNATURE_INVALID


@pytest.mark.parametrize("keys", [KEYS, ()])
def test_a_secret_that_is_neither_current_nor_previous(keys: tuple) -> None:
    found = judged(sign(STRANGE, METHOD, TARGET, BODY, NOW_MS, NONCE), keys=keys)
    assert isinstance(found, Reject)
    assert (found.reason, STRANGE.key_id in found.detail) == (Reason.SIGNATURE_KEY_UNKNOWN, True)


def test_none_and_two_are_told_apart():
    assert [each.reason for each in (judged(), judged(GOOD, GOOD)) if isinstance(each, Reject)] == [
        Reason.SIGNATURE_MISSING, Reason.SIGNATURE_MALFORMED,
    ]  # fmt: skip


@pytest.mark.parametrize("off_ms", [-SKEW_MS - 1, SKEW_MS + 1, -(10**9)])
def test_a_signature_ages_in_both_directions(off_ms: int) -> None:
    found = judged(sign(CURRENT, METHOD, TARGET, BODY, NOW_MS + off_ms, NONCE))
    assert isinstance(found, Reject)
    assert found.reason is Reason.SIGNATURE_TIMESTAMP_INVALID


@pytest.mark.parametrize("off_ms", [-SKEW_MS, 0, SKEW_MS])
def test_within_the_skew_it_holds(off_ms: int) -> None:
    assert isinstance(judged(sign(CURRENT, METHOD, TARGET, BODY, NOW_MS + off_ms, NONCE)), Signed)


def test_our_clock_is_told_to_nobody_without_a_secret():
    stale = sign(STRANGE, METHOD, TARGET, BODY, NOW_MS - 10**9, NONCE)
    forged = stale.replace(STRANGE.key_id, CURRENT.key_id)
    reasons = [each.reason for each in (judged(stale), judged(forged)) if isinstance(each, Reject)]
    assert reasons == [Reason.SIGNATURE_KEY_UNKNOWN, Reason.SIGNATURE_INVALID]


@pytest.mark.parametrize(
    "field", [{"method": "post"}, {"target": "api"}, {"target": "/a\nb"}, {"target": "/a b"}, {"nonce": "x"}]
)
def test_what_would_not_be_unambiguous_is_not_signed(field: dict) -> None:
    given = {"method": METHOD, "target": TARGET, "body": BODY, "ts_ms": NOW_MS, "nonce": NONCE, **field}
    with pytest.raises(ValueError, match="can be signed"):
        sign(CURRENT, **given)


def test_a_target_is_signed_as_it_is_sent():
    assert (target_of("/a%2Fb", ""), target_of("/a", "x=%20&y")) == ("/a%2Fb", "/a?x=%20&y")
    latin = sign(CURRENT, "GET", "/caf\xe9", b"", NOW_MS, NONCE)
    assert isinstance(judged(latin, method="GET", target="/caf\xe9", body=b""), Signed)


def test_the_lines_of_the_readme_sign_so(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[3] / "README.md").read_text().partition("## Sign a request")[2]
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found
    assert len([line for line in found[1].splitlines() if line]) <= 10
    monkeypatch.setenv("DISPATCH_HMAC_SECRET", SECRET.hex())
    there: dict = {}
    exec(found[1], there)
    headers = there["signed"](METHOD, TARGET, BODY)
    assert isinstance(judged(headers["x-signature"], now_ms=int(time.time() * 1000)), Signed)
