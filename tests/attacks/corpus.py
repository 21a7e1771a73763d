"""The attacks on the HTTP surface: what is sent, where the idea comes from, and the reason that must refuse it.

Each row is sent to real processes by `test_corpus.py`. Nothing of what is sent may reach a handler or become a run.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import serialization
from tests.support.config_text import strong
from tests.support.issuer import IssuerKey, b64, issuer_key
from tests.support.processes import Answer, Fleet, http_call

from fairlead.protocol.reasons import Reason
from fairlead.runtime.request_signing import SigningKey, sign, signing_keys

ISSUER, AUDIENCE = "https://issuer.test/", "fairlead-attacks"
JWT_SECRET, HMAC_SECRET, PREVIOUS, RETIRED = (
    strong(f"attacks {name}") for name in ("jwt", "hmac", "previous", "retired")
)
HS = IssuerKey("", "HS256", bytes.fromhex(JWT_SECRET))
RS, ES, ED = (issuer_key(kind) for kind in ("RS256", "ES256", "EdDSA"))
CURRENT, OLD = signing_keys([bytes.fromhex(HMAC_SECRET), bytes.fromhex(RETIRED)])
DISPATCH, RUNS = "/api/dispatch", "/api/runs?limit=1"
ADD = json.dumps({"command": "demo:add", "args": {"key": "attacks", "amount": 1}, "tenant": "acme"}).encode()
_nonces = (f"attack-nonce-{number:08}" for number in itertools.count())


@dataclass
class Scene:
    """A fleet, and what attackers of every kind hold."""

    fleet: Fleet
    keys: dict[str, str] = field(default_factory=dict)
    run_of_another: str = ""

    def call(
        self, method: str, path: str, body: Any = None, key: str | None = None, **headers: str
    ) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["x-ops-key"] = self.keys[key]
        return http_call(self.fleet.ops_port, method, path, body, sent)

    def submit(
        self, signature: str, body: bytes = ADD, target: str = DISPATCH, method: str = "POST"
    ) -> Answer:
        return self.call(method, target, body, x_signature=signature)

    def bearer(self, token: str) -> Answer:
        return self.call("GET", RUNS, authorization=f"Bearer {token}")

    def raw(self, data: bytes) -> Answer:
        """Bytes as they are; the first answer."""
        with socket.create_connection(("127.0.0.1", self.fleet.ops_port), 10) as stream:
            stream.sendall(data)
            found = b""
            while more := stream.recv(65_536):
                found += more
        head, _, body = found.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        length = int(headers.get("content-length", len(body)))
        return Answer(int(lines[0].split()[1]), headers, body[:length])


@dataclass(frozen=True)
class Attack:
    """`origin`: who made the mistake first, or who asks for it."""

    name: str
    origin: str
    send: Callable[[Scene], Answer]
    reason: Reason


def fresh(
    body: bytes = ADD,
    target: str = DISPATCH,
    method: str = "POST",
    *,
    key: SigningKey = CURRENT,
    off_ms: int = 0,
    nonce: str = "",
) -> str:
    """A genuine signature, unless something is changed."""
    return sign(key, method, target, body, int(time.time() * 1000) + off_ms, nonce or next(_nonces))


def part(value: str, name: str, other: str) -> str:
    """A signature header with one part exchanged."""
    head, _, rest = value.partition(" ")
    parts = dict(each.split("=", 1) for each in rest.split(";"))
    return f"{head} " + ";".join(f"{key}={other if key == name else old}" for key, old in parts.items())


def claims(**more: Any) -> dict[str, Any]:
    return {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": time.time() + 300,
        "sub": "mallory",
        "role": "admin",
        **more,
    }


def parts(header: Mapping[str, Any], content: Mapping[str, Any], signature: bytes = b"") -> str:
    return ".".join(
        b64(each) for each in (json.dumps(header).encode(), json.dumps(content).encode(), signature)
    )


def twice(scene: Scene, send: Callable[[str], Answer], signature: str) -> Answer:
    """What was recorded, again."""
    send(signature)
    return send(signature)


def reordered() -> str:
    head, _, rest = fresh().partition(" ")
    return f"{head} " + ";".join(reversed(rest.split(";")))


def unkeyed() -> str:
    """A plain hash over secret and body in place of the MAC."""
    return part(fresh(), "sig", hashlib.sha256(bytes.fromhex(HMAC_SECRET) + ADD).hexdigest())


def body_alone() -> str:
    """An HMAC over the body and nothing else."""
    return part(fresh(), "sig", hmac.new(bytes.fromhex(HMAC_SECRET), ADD, hashlib.sha256).hexdigest())


def public_pem() -> bytes:
    return bytes(RS.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ))  # fmt: skip


def signed_body(body: bytes) -> Callable[[Scene], Answer]:
    """A body from somebody who may submit, and signed it."""
    return lambda scene: scene.call("POST", DISPATCH, body, key="admin", x_signature=fresh(body))


def head(*lines: str, body: bytes = b"") -> Callable[[Scene], Answer]:
    """A request by hand, with an admin's key: the head is what is wrong with it."""

    def send(scene: Scene) -> Answer:
        filled = "\r\n".join(lines).replace("KEY", scene.keys["admin"])
        return scene.raw(filled.encode("latin-1") + b"\r\n\r\n" + body)

    return send


_POST = "POST /api/nodes/lobby-1/drain HTTP/1.1"
_R = Reason

SIGNATURES = (
    Attack("nothing at all", "issue 5", lambda s: s.call("POST", DISPATCH, ADD), _R.UNAUTHENTICATED),
    Attack("a key, and no signature", "issue 5", lambda s: s.call("POST", DISPATCH, ADD, key="admin"), _R.SIGNATURE_MISSING),
    Attack("a guessed signature", "issue 5", lambda s: s.submit(part(fresh(), "sig", "0" * 64)), _R.SIGNATURE_INVALID),
    Attack("another secret", "issue 5", lambda s: s.submit(fresh(key=OLD)), _R.SIGNATURE_KEY_UNKNOWN),
    Attack("the secret before the last, after its time", "issue 5: an old key", lambda s: s.submit(fresh(key=OLD)),
           _R.SIGNATURE_KEY_UNKNOWN),
    Attack("another secret under our key's name", "key confusion",
           lambda s: s.submit(part(fresh(key=OLD), "keyId", CURRENT.key_id)), _R.SIGNATURE_INVALID),
    Attack("recorded and sent again", "ancestor hole 1; CVE-2022-22936",
           lambda s: twice(s, lambda x: s.call("GET", RUNS, x_signature=x), fresh(b"", RUNS, "GET")),
           _R.SECURITY_REPLAY_DETECTED),
    Attack("refused once, and sent again", "CVE-2024-38823",
           lambda s: twice(s, lambda x: s.call("POST", "/api/nodes/lobby-1/drain", b"", x_signature=x),
                           fresh(b"", "/api/nodes/lobby-1/drain")), _R.SECURITY_REPLAY_DETECTED),
    Attack("the nonce of another request", "issue 5",
           lambda s: (s.call("GET", RUNS, x_signature=fresh(b"", RUNS, "GET", nonce="n-taken-before-0001")),
                      s.submit(fresh(nonce="n-taken-before-0001")))[1], _R.SECURITY_REPLAY_DETECTED),
    Attack("another nonce on a recorded signature", "ancestor hole 1",
           lambda s: s.submit(part(fresh(), "nonce", "n" * 20)), _R.SIGNATURE_INVALID),
    Attack("a newer time on a recorded signature", "ancestor hole 1",
           lambda s: s.submit(part(fresh(off_ms=-400_000), "ts", str(int(time.time() * 1000)))), _R.SIGNATURE_INVALID),
    Attack("parts in another order", "issue 5: reordered", lambda s: s.submit(reordered()), _R.SIGNATURE_MALFORMED),
    Attack("a part twice", "issue 5", lambda s: s.submit(fresh() + ";nonce=" + "n" * 20), _R.SIGNATURE_MALFORMED),
    Attack("an endless header", "issue 5: oversized", lambda s: s.submit(fresh() + "0" * 4_000), _R.SIGNATURE_MALFORMED),
    Attack("an earlier version of the signature", "CVE-2025-62349: downgrade",
           lambda s: s.submit(fresh().replace("v2", "v1", 1)), _R.SIGNATURE_MALFORMED),
    Attack("under both of its names", "issue 5",
           lambda s: s.call("POST", DISPATCH, ADD, x_signature=fresh(), x_transbot_signature=fresh()), _R.SIGNATURE_MALFORMED),
    Attack("base64 where hex is meant", "trap: encodings that differ",
           lambda s: s.submit(part(fresh(), "sig", base64.b64encode(bytes(32)).decode())), _R.SIGNATURE_MALFORMED),
    Attack("a hash instead of a MAC", "trap: plain hash", lambda s: s.submit(unkeyed()), _R.SIGNATURE_INVALID),
    Attack("a MAC over the body alone", "trap: part of a message", lambda s: s.submit(body_alone()), _R.SIGNATURE_INVALID),
    Attack("signed for another method", "issue 5", lambda s: s.submit(fresh(method="PUT")), _R.SIGNATURE_INVALID),
    Attack("signed for another path", "issue 5", lambda s: s.submit(fresh(target="/api/dispatch/batch")), _R.SIGNATURE_INVALID),
    Attack("signed without the query", "issue 5", lambda s: s.submit(fresh(), target=DISPATCH + "?a=1"), _R.SIGNATURE_INVALID),
    Attack("signed for another tenant", "issue 5",
           lambda s: s.submit(fresh(), ADD.replace(b"acme", b"evil")), _R.SIGNATURE_INVALID),
    Attack("a space more in the body", "issue 5", lambda s: s.submit(fresh(), ADD + b" "), _R.SIGNATURE_INVALID),
    Attack("signed too long ago", "ancestor hole 1", lambda s: s.submit(fresh(off_ms=-301_000)), _R.SIGNATURE_TIMESTAMP_INVALID),
    Attack("signed ahead of time", "ancestor hole 1", lambda s: s.submit(fresh(off_ms=320_000)), _R.SIGNATURE_TIMESTAMP_INVALID),
    Attack("a time in seconds", "issue 5",
           lambda s: s.submit(sign(CURRENT, "POST", DISPATCH, ADD, int(time.time()), next(_nonces))),
           _R.SIGNATURE_TIMESTAMP_INVALID),
    Attack("a signature asks for more than it gives", "issue 5",
           lambda s: s.call("POST", "/api/operator-keys", b"{}", x_signature=fresh(b"{}", "/api/operator-keys")),
           _R.SCOPE_MISSING),
    Attack("a worker's signature for an operator's", "key confusion",
           lambda s: s.call("POST", DISPATCH, ADD, x_worker_signature="0" * 64), _R.UNAUTHENTICATED),
)  # fmt: skip

TOKENS = (
    Attack("alg none", "issue 5", lambda s: s.bearer(parts({"alg": "none"}, claims())), _R.JWT_ALGORITHM_REFUSED),
    Attack("alg none in other letters", "issue 5", lambda s: s.bearer(parts({"alg": "nOnE"}, claims())), _R.JWT_ALGORITHM_REFUSED),
    Attack("no signature", "issue 5", lambda s: s.bearer(parts({"alg": "HS256"}, claims())), _R.JWT_SIGNATURE_INVALID),
    Attack("a public RSA key as shared secret", "issue 5: RS/HS confusion",
           lambda s: s.bearer(IssuerKey("", "HS256", public_pem()).token(claims())), _R.JWT_SIGNATURE_INVALID),
    Attack("a public RSA key as shared secret, under its id", "issue 5: RS/HS confusion",
           lambda s: s.bearer(IssuerKey(RS.kid, "HS256", public_pem()).token(claims())), _R.JWT_SIGNATURE_INVALID),
    Attack("an algorithm that is not configured", "issue 5",
           lambda s: s.bearer(parts({"alg": "RS512", "kid": RS.kid}, claims(), b"x" * 256)), _R.JWT_ALGORITHM_REFUSED),
    Attack("an ECDSA signature of zeros", "CVE-2022-21449",
           lambda s: s.bearer(parts({"alg": "ES256", "kid": ES.kid}, claims(), bytes(64))), _R.JWT_SIGNATURE_INVALID),
    Attack("one key's algorithm with another key's id", "key confusion",
           lambda s: s.bearer(ED.token(claims(), {"alg": "EdDSA", "kid": RS.kid + "x"})), _R.JWT_KEY_UNKNOWN),
    Attack("a kid that is a path", "CVE-2020-11652", lambda s: s.bearer(ED.token(claims(), {"alg": "EdDSA", "kid": "../../dev/null"})),
           _R.JWT_KEY_UNKNOWN),
    Attack("an unknown kid", "issue 5", lambda s: s.bearer(issuer_key("EdDSA", "unknown").token(claims())), _R.JWT_KEY_UNKNOWN),
    Attack("expired", "issue 5", lambda s: s.bearer(ED.token(claims(exp=time.time() - 60))), _R.JWT_EXPIRED),
    Attack("not yet valid", "issue 5", lambda s: s.bearer(ED.token(claims(nbf=time.time() + 60))), _R.JWT_NOT_YET_VALID),
    Attack("never expires", "issue 5", lambda s: s.bearer(ED.token({k: v for k, v in claims().items() if k != "exp"})),
           _R.JWT_CLAIM_MISSING),
    Attack("another issuer", "issue 5", lambda s: s.bearer(ED.token(claims(iss=ISSUER.rstrip("/")))), _R.JWT_ISSUER_WRONG),
    Attack("meant for somebody else", "issue 5", lambda s: s.bearer(ED.token(claims(aud="another"))), _R.JWT_AUDIENCE_WRONG),
    Attack("meant for nobody", "issue 5", lambda s: s.bearer(ED.token({k: v for k, v in claims().items() if k != "aud"})),
           _R.JWT_CLAIM_MISSING),
    Attack("a role that there is not", "issue 5", lambda s: s.bearer(ED.token(claims(role="root"))), _R.JWT_CLAIM_INVALID),
    Attack("a claim twice", "issue 5: duplicate keys",
           lambda s: s.bearer(ED.token(json.dumps(claims(role="viewer"))[:-1].encode() + b',"role":"admin"}')),
           _R.JWT_DUPLICATE_NAMES),
    Attack("claims that nest", "issue 5", lambda s: s.bearer(ED.token(claims(x=[[[[[[[[[]]]]]]]]]))), _R.JWT_TOO_DEEP),
    Attack("a token of 12 kB", "issue 5: oversized", lambda s: s.bearer(ED.token(claims(pad="x" * 9_000))), _R.JWT_TOO_LARGE),
    Attack("a byte of the claims changed", "issue 5",
           lambda s: s.bearer(".".join((ED.token(claims()).split(".")[0], b64(json.dumps(claims(sub="root")).encode()),
                                        ED.token(claims()).split(".")[2]))), _R.JWT_SIGNATURE_INVALID),
    Attack("a token in the query", "issue 5", lambda s: s.call("GET", f"{RUNS}&access_token={ED.token(claims())}"),
           _R.UNAUTHENTICATED),
    Attack("a key beside a token", "issue 5",
           lambda s: s.call("GET", RUNS, key="admin", authorization=f"Bearer {ED.token(claims())}"), _R.CREDENTIALS_AMBIGUOUS),
)  # fmt: skip

KEYS = (
    Attack("an unknown key", "issue 5", lambda s: s.call("GET", RUNS, x_ops_key=strong("no key")), _R.UNAUTHENTICATED),
    Attack("a key that was revoked", "CVE-2022-22967", lambda s: s.call("GET", RUNS, key="revoked"), _R.OPERATOR_KEY_REVOKED),
    Attack("a key after its time", "issue 5", lambda s: s.call("GET", RUNS, key="expired"), _R.OPERATOR_KEY_EXPIRED),
    Attack("a pattern for a key", "issue 5", lambda s: s.call("GET", RUNS, x_ops_key="%"), _R.UNAUTHENTICATED),
    Attack("a key's id without its secret", "CVE-2013-4439",
           lambda s: s.call("GET", RUNS, x_ops_key=s.keys["admin"].rpartition("_")[0] + "_" + "A" * 43), _R.UNAUTHENTICATED),
    Attack("a wrong key where none is needed", "issue 5", lambda s: s.call("GET", "/status", x_ops_key="wrong"), _R.UNAUTHENTICATED),
    Attack("a viewer submits", "issue 5", lambda s: s.call("POST", DISPATCH, ADD, key="viewer", x_signature=fresh()),
           _R.SCOPE_MISSING),
    Attack("a viewer drains a node", "CVE-2020-11651", lambda s: s.call("POST", "/api/nodes/lobby-1/drain", key="viewer"),
           _R.SCOPE_MISSING),
    Attack("an operator makes a key", "issue 5", lambda s: s.call("POST", "/api/operator-keys", {"role": "admin"}, key="operator"),
           _R.SCOPE_MISSING),
    Attack("an admin of one tenant makes a key for all", "issue 5",
           lambda s: s.call("POST", "/api/operator-keys", {"role": "admin"}, key="acme"), _R.SCOPE_MISSING),
    Attack("another tenant's run is read", "issue 5", lambda s: s.call("GET", f"/api/runs/{s.run_of_another}", key="acme"),
           _R.SECURITY_READ_TENANT_MISMATCH),
    Attack("another tenant's run is cancelled", "issue 5",
           lambda s: s.call("POST", f"/api/runs/{s.run_of_another}/cancel", key="acme"), _R.SECURITY_TENANT_MISMATCH),
    Attack("a run for another tenant", "issue 5",
           lambda s: s.call("POST", DISPATCH, b := ADD.replace(b'"acme"', b'"evil"'), key="acme", x_signature=fresh(b)),
           _R.SECURITY_TENANT_MISMATCH),
    Attack("one tenant's admin looks at all", "issue 5", lambda s: s.call("GET", "/api/nodes", key="acme"),
           _R.SECURITY_READ_TENANT_MISMATCH),
    Attack("one tenant's admin pauses all", "issue 5",
           lambda s: s.call("PUT", "/api/controls/agents", {"tenant": "*", "paused": True}, key="acme"),
           _R.SECURITY_TENANT_MISMATCH),
    Attack("a permission's prefix without a dot", "trap: wildcard without a dot",
           lambda s: s.call("POST", "/api/operator-keys", {"role": "operator", "scopes": ["dispatch", "kick*"]}, key="admin"),
           _R.BODY_MALFORMED),
)  # fmt: skip

BODIES = (
    Attack("a key twice", "issue 5: duplicate keys", signed_body(ADD[:-1] + b', "tenant": "evil"}'), _R.BODY_MALFORMED),
    Attack("a key twice, once escaped", "issue 5: duplicate keys", signed_body(ADD[:-1] + b', "t\\u0065nant": "evil"}'),
           _R.BODY_MALFORMED),
    Attack("nesting without end", "issue 5", signed_body(b'{"command":"demo:add","args":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_001),
           _R.BODY_MALFORMED),
    Attack("lists without end", "issue 5", signed_body(b"[" * 100_000), _R.BODY_MALFORMED),
    Attack("a huge integer", "issue 5", signed_body(ADD.replace(b": 1}", b": 1" + b"0" * 400 + b"}")), _R.BODY_MALFORMED),
    Attack("an integer of a million digits", "issue 5", signed_body(ADD.replace(b": 1}", b": " + b"9" * 1_000_000 + b"}")),
           _R.BODY_MALFORMED),
    Attack("what is no number", "issue 5", signed_body(ADD.replace(b": 1}", b": NaN}")), _R.BODY_MALFORMED),
    Attack("invalid UTF-8", "issue 5", signed_body(ADD.replace(b"attacks", b"\xc0\xaf")), _R.BODY_MALFORMED),
    Attack("half a surrogate pair in UTF-8", "issue 5", signed_body(ADD.replace(b"attacks", b"\xed\xa0\x80")), _R.BODY_MALFORMED),
    Attack("half a surrogate pair, escaped", "issue 5", signed_body(ADD.replace(b"attacks", b"\\ud800")), _R.BODY_MALFORMED),
    Attack("a byte order mark", "issue 5", signed_body(b"\xef\xbb\xbf" + ADD), _R.BODY_MALFORMED),
    Attack("an identity of one's own", "CVE-2013-4439: self-asserted sender",
           signed_body(ADD[:-1] + b', "identity": {"principal": "root", "roles": ["admin"]}}'), _R.BODY_MALFORMED),
    Attack("a run id of one's own", "issue 5", signed_body(ADD[:-1] + b', "run_id": "r-1"}'), _R.BODY_MALFORMED),
    Attack("code for a command's name", "CVE-2020-11651", signed_body(ADD.replace(b"demo:add", b"__import__('os').system")),
           _R.COMMAND_UNKNOWN),
    Attack("a path for a command's name", "CVE-2020-11652", signed_body(ADD.replace(b"demo:add", b"../../etc/passwd")),
           _R.COMMAND_UNKNOWN),
    Attack("an argument too many", "issue 5", signed_body(ADD.replace(b'"amount": 1', b'"amount": 1, "fence": 9')),
           _R.ARGUMENTS_INVALID),
    Attack("an argument of another type", "issue 5", signed_body(ADD.replace(b": 1}", b': "1; DROP TABLE runs"}')),
           _R.ARGUMENTS_INVALID),
    Attack("a callback into the inside", "issue 5: SSRF", signed_body(ADD[:-1] + b', "callback_url": "http://169.254.169.254/"}'),
           _R.CALLBACK_URL_REFUSED),
    Attack("more than a body may hold", "issue 5: oversized",
           head(f"POST {DISPATCH} HTTP/1.1", "host: a", "x-ops-key: KEY", "content-length: 9000000", body=b'{"x": "'),
           _R.HTTP_BODY_TOO_LARGE),
    Attack("a batch of 1,001", "issue 5: oversized",
           lambda s: s.call("POST", "/api/dispatch/batch", b := b"[" + b",".join([ADD] * 1_001) + b"]", key="admin",
                            x_signature=fresh(b, "/api/dispatch/batch")), _R.BATCH_TOO_LARGE),
)  # fmt: skip

HEADS = (
    Attack("a header in a header", "issue 5: header injection", head(_POST, "host: a", "x-reason: a\rx-ops-key: KEY"),
           _R.HTTP_FRAMING_AMBIGUOUS),
    Attack("a header after a lone line feed", "issue 5: header injection", head(_POST, "host: a", "x-reason: a\nx-ops-key: KEY"),
           _R.HTTP_FRAMING_AMBIGUOUS),
    Attack("a folded header", "issue 5: header injection", head(_POST, "host: a", "x-reason: a", " x-ops-key: KEY"),
           _R.HTTP_FRAMING_AMBIGUOUS),
    Attack("a zero byte", "issue 5: header injection", head(_POST, "host: a", "x-ops-key: KEY\0"), _R.HTTP_HEAD_MALFORMED),
    Attack("a space before the colon", "issue 5: header injection", head(_POST, "host: a", "x-ops-key : KEY"),
           _R.HTTP_HEAD_MALFORMED),
    Attack("a key twice", "issue 5", head(_POST, "host: a", "connection: close", "x-ops-key: KEY", "x-ops-key: other"),
           _R.CREDENTIALS_AMBIGUOUS),
    Attack("two lengths", "request smuggling", head(_POST, "host: a", "x-ops-key: KEY", "content-length: 0", "content-length: 5"),
           _R.HTTP_FRAMING_AMBIGUOUS),
    Attack("a length and chunks", "request smuggling",
           head(_POST, "host: a", "x-ops-key: KEY", "content-length: 5", "transfer-encoding: chunked", body=b"0\r\n\r\n"),
           _R.HTTP_FRAMING_AMBIGUOUS),
    Attack("100 kB of headers", "issue 5: oversized", head(_POST, "host: a", *[f"x-{n}: {'y' * 1_000}" for n in range(100)]),
           _R.HTTP_HEAD_TOO_LARGE),
    Attack("a path in other letters", "issue 5", head("POST /API/NODES/lobby-1/drain HTTP/1.1", "host: a", "connection: close", "x-ops-key: KEY"),
           _R.ROUTE_UNKNOWN),
    Attack("a path with a slash more", "issue 5", head("POST //api/nodes/lobby-1/drain HTTP/1.1", "host: a", "connection: close", "x-ops-key: KEY"),
           _R.ROUTE_UNKNOWN),
    Attack("a way out of the path", "CVE-2020-11652",
           head("POST /health/../api/nodes/lobby-1/drain HTTP/1.1", "host: a", "connection: close"), _R.ROUTE_UNKNOWN),
    Attack("another method by header", "issue 5",
           head("PATCH /api/nodes/lobby-1/drain HTTP/1.1", "host: a", "connection: close", "x-http-method-override: POST", "x-ops-key: KEY"),
           _R.METHOD_NOT_ALLOWED),
)  # fmt: skip

CORPUS: dict[str, tuple[Attack, ...]] = {
    "signatures": SIGNATURES, "tokens": TOKENS, "keys": KEYS, "bodies": BODIES, "heads": HEADS,
}  # fmt: skip
