"""Who calls: operator keys, tokens and signatures against real processes, and every reason with which one is refused.

One proxy with an issuer of tokens beside it, over real TLS; a second one whose issuer is away and that insists on
signatures; and two on one PostgreSQL, where a key that is revoked at one is worthless at the other.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.support.config_text import strong
from tests.support.ctl import cli, ctl, ctl_json
from tests.support.issuer import IssuerKey, b64, issuer_key, key_set
from tests.support.postgres import Databases
from tests.support.processes import PROXY, Answer, Fleet, free_port, http_call, until
from tests.support.provocations import OF_CALLERS, Provocations, refused
from tests.support.tls import certificate

from fairlead.protocol.messages import Identity
from fairlead.protocol.reasons import Reason
from fairlead.proxy.guard.access import Scope, may
from fairlead.proxy.ops.endpoints import ENDPOINTS, Endpoint
from fairlead.runtime.request_signing import SigningKey, sign, signing_keys

pytestmark = pytest.mark.e2e

ISSUER, AUDIENCE = "https://issuer.test/", "fairlead-e2e"
JWT_SECRET, HMAC_SECRET, FOREIGN_SECRET = strong("e2e jwt"), strong("e2e hmac"), strong("e2e foreign")
HS = IssuerKey("", "HS256", bytes.fromhex(JWT_SECRET))
RS, ES, ED = (issuer_key(kind) for kind in ("RS256", "ES256", "EdDSA"))
ROTATED = issuer_key("EdDSA", "rotated")
SIGNING, FOREIGN = signing_keys([bytes.fromhex(HMAC_SECRET), bytes.fromhex(FOREIGN_SECRET)])
KEYS = "/api/operator-keys"
OTHER = "proxy-b"

_here = Provocations()
provokes = _here.provokes


@pytest.fixture(autouse=True)
def _remember(request: pytest.FixtureRequest) -> None:
    _here.tests_run.add(request.node.name)


# -- an issuer


class Issuer:
    """Publishes keys over TLS, on a thread of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        serving, _ = certificate(folder, "localhost")
        self.certificate = folder / "cert.pem"
        self.document = key_set(RS, ES, ED)
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("content-length", str(len(issuer.document)))
                self.end_headers()
                self.wfile.write(issuer.document)

            def log_message(self, *_: Any) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
        self._server.socket = serving.wrap_socket(self._server.socket, server_side=True)
        self.url = f"https://localhost:{self._server.server_address[1]}/jwks.json"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuer]:
    with closing(Issuer(tmp_path_factory.mktemp("issuer"))) as made:
        yield made


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Iterator[Fleet]:
    made = Fleet(
        tmp_path_factory.mktemp("callers"), nodes=("lobby-1",),
        proxy={
            "jwt": {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": issuer.url},
            "dispatch": {"integrity_mode": "observe"},
        },
        environ={
            "SSL_CERT_FILE": str(issuer.certificate), "JWT_HS256_SECRET": JWT_SECRET,
            "DISPATCH_HMAC_SECRET": HMAC_SECRET,
        },
    )  # fmt: skip
    with closing(made.start()):
        yield made


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(
        tmp_path_factory.mktemp("strict"), nodes=("lobby-1",),
        proxy={
            "jwt": {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": f"https://localhost:{free_port()}/"},
            "reliability": {"ops_require_non_public_auth": True},
        },
        environ={"DISPATCH_HMAC_SECRET": HMAC_SECRET},
    )  # fmt: skip
    with closing(made.start()):
        yield made


def claims(**more: Any) -> dict[str, Any]:
    base = {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 300, "sub": "alice", "role": "viewer"}
    return {**base, **more}


def bearer(
    fleet: Fleet, token: str, method: str = "GET", path: str = "/api/runs", body: Any = None
) -> Answer:
    return fleet.ops(method, path, body, {"authorization": f"Bearer {token}"}, key=None)


def make_key(fleet: Fleet, role: str, **more: Any) -> Any:
    answer = fleet.ops("POST", KEYS, {"role": role, **more})
    assert answer.status == 201, answer
    return answer.json()


# -- roles


def call_as(fleet: Fleet, endpoint: Endpoint, key: str | None) -> Answer:
    """Something that does nothing even where it is allowed: ids that nobody has, bodies that are none."""
    path = endpoint.path.replace("{id}", "nobody-1")
    body = b"[]" if endpoint.method in ("POST", "PUT") else None
    return fleet.ops(endpoint.method, path, body, key=key)


NEEDS_A_CALLER = [each for each in ENDPOINTS if each.scope not in (Scope.OPEN, Scope.SIGNED)]


@pytest.fixture(scope="module")
def role_keys(fleet: Fleet) -> dict[str, str]:
    return {role: make_key(fleet, role)["key"] for role in ("viewer", "operator", "admin")}


@pytest.mark.parametrize("role", ["viewer", "operator", "admin"])
def test_each_role_may_what_the_table_says_and_nothing_else(
    fleet: Fleet, role_keys: dict[str, str], role: str
) -> None:
    for endpoint in NEEDS_A_CALLER:
        answer = call_as(fleet, endpoint, role_keys[role])
        where = f"{role}: {endpoint.method} {endpoint.path}: {answer}"
        if may(Identity("x", roles=(role,)), endpoint.scope):
            assert answer.status not in (401, 403), where
        else:
            assert (answer.status, answer.reason) == (403, "SCOPE_MISSING"), where


def test_without_a_key_there_is_nothing_but_what_is_open(fleet: Fleet) -> None:
    for endpoint in NEEDS_A_CALLER:
        status = call_as(fleet, endpoint, None).status
        assert status in (200, 503) if endpoint.open_read else status == 401, endpoint


def test_where_everybody_must_say_who_they_are_only_health_is_open(strict: Fleet) -> None:
    for endpoint in NEEDS_A_CALLER:
        assert call_as(strict, endpoint, None).status == 401, endpoint
    assert strict.ops("GET", "/health/live", key=None).status == 200


@pytest.mark.parametrize("writes", [False, True])
def test_in_development_anybody_may_look_and_write_where_that_is_said_too(
    tmp_path: Path, writes: bool
) -> None:
    opened = {"ops_require_operator_key": False, "ops_allow_demo_write": writes}
    with closing(Fleet(tmp_path, nodes=("lobby-1",), proxy={"reliability": opened}).start()) as made:
        assert made.ops("GET", "/api/runs", key=None).status == 200
        body = {"command": "demo:echo", "args": {"text": "x"}}
        for answer in (
            made.ops("POST", "/api/dispatch", body, key=None),
            made.ops("POST", "/api/nodes/lobby-1/drain", key=None),
            http_call(made.http, "POST", "/api/dispatch", body),
        ):
            assert answer.status in (200, 202) if writes else answer.reason == "UNAUTHENTICATED", answer
        refused(made.ops("POST", KEYS, {"role": "admin"}, key=None), Reason.UNAUTHENTICATED)
        assert made.ops("POST", KEYS, {"role": "viewer"}).status == 201, "a key is known here too"


def test_scopes_narrow_what_a_role_allows(fleet: Fleet) -> None:
    key = make_key(fleet, "operator", scopes=["read"])["key"]
    assert fleet.ops("GET", "/api/runs", key=key).status == 200
    with provokes(fleet, Reason.SCOPE_MISSING):
        refused(fleet.ops("POST", "/api/dispatch", {"command": "demo:echo"}, key=key), Reason.SCOPE_MISSING)


def test_nobody_gives_more_than_they_have(fleet: Fleet) -> None:
    narrow = make_key(fleet, "admin", scopes=["admin", "read"], tenant="acme")["key"]
    for asked in (
        {"role": "admin", "tenant": "acme"},
        {"role": "operator", "scopes": ["dispatch"], "tenant": "acme"},
        {"role": "viewer", "scopes": ["read"]},
        {"role": "viewer", "scopes": ["read"], "tenant": "other"},
    ):
        refused(fleet.ops("POST", KEYS, asked, key=narrow), Reason.SCOPE_MISSING)
    own = fleet.ops("POST", KEYS, {"role": "viewer", "scopes": ["read"], "tenant": "acme"}, key=narrow)
    assert (own.status, own.json()["read_scope"]) == (201, "tenant")
    foreign = make_key(fleet, "viewer")["id"]
    refused(fleet.ops("POST", f"{KEYS}/{foreign}/revoke", key=narrow), Reason.OPERATOR_KEY_UNKNOWN)
    listed = fleet.ops("GET", KEYS, key=narrow).json()["keys"]
    assert {each["tenant"] for each in listed} == {"acme"}


@pytest.mark.parametrize("body", [
    {}, {"role": "root"}, {"role": "viewer", "scopes": ["dispatch"]}, {"role": "viewer", "scopes": ["read", "read"]},
    {"role": "viewer", "scopes": ["*"]}, {"role": "viewer", "tenant": "*"}, {"role": "viewer", "tenant": "a b"},
    {"role": "viewer", "read_scope": "all"}, {"role": "viewer", "read_scope": "tenant"},
    {"role": "viewer", "subject_type": "god"}, {"role": "viewer", "note": "a\nb"},
    {"role": "viewer", "note": "a" * 201},
    {"role": "viewer", "valid_s": -1}, {"role": "viewer", "valid_s": 10**12}, {"role": "viewer", "valid_s": "1"},
    {"role": "viewer", "hash": "x"}, {"role": ["viewer"]},
], ids=str)  # fmt: skip
def test_a_key_that_makes_no_sense_is_not_made(fleet: Fleet, body: dict[str, Any]) -> None:
    before = len(fleet.ops("GET", KEYS).json()["keys"])
    refused(fleet.ops("POST", KEYS, body), Reason.BODY_MALFORMED)
    assert len(fleet.ops("GET", KEYS).json()["keys"]) == before


# -- the life of a key


def test_a_key_from_its_making_to_its_revocation(fleet: Fleet) -> None:
    made = make_key(fleet, "operator", note="for the pipeline", subject_type="agent", valid_s=3600)
    key, key_id = made["key"], made["id"]
    assert key.startswith(f"flk_{key_id}_")
    assert fleet.ops("GET", "/api/runs", key=key).status == 200
    body = {"command": "demo:echo", "args": {"text": "x"}}
    run = fleet.ops("POST", "/api/dispatch", body, {"prefer": "wait=10"}, key=key).json()
    assert run["status"] == "COMPLETED"
    public = http_call(fleet.http, "POST", "/api/dispatch", body, {"x-ops-key": key})
    assert public.status == 202, public

    def row() -> Any:
        return next(each for each in ctl_json(fleet, "keys")["keys"] if each["id"] == key_id)

    until(lambda: row()["last_used_at_ms"], "its use is written down", 15)
    assert (row()["note"], row()["subject_type"], row()["revoked_at_ms"]) == (
        "for the pipeline",
        "agent",
        None,
    )
    assert "key" not in row()
    assert "hash" not in row()
    said = ctl(fleet, "keys", "revoke", key_id)
    assert said.status == 0, said
    with provokes(fleet, Reason.OPERATOR_KEY_REVOKED, times=2):
        for path in (
            "/api/runs",
            "/status",
        ):  # what is open from loopback is not open to a key that does not hold
            refused(fleet.ops("GET", path, key=key), Reason.OPERATOR_KEY_REVOKED)
    events = fleet.ops("GET", "/api/ops/reliability/audit?limit=200").json()["events"]
    of_key = [each["action"] for each in events if each["scope"] == key_id]
    assert of_key == ["operator_key_revoke", "operator_key_create"]
    secret = key.rpartition("_")[2]
    assert secret not in json.dumps(events) + fleet.tails(2_000) + fleet.ops("GET", "/status").body.decode()


def test_a_key_is_stored_as_its_hash_and_outlives_a_restart(fleet: Fleet) -> None:
    kept, taken = make_key(fleet, "viewer")["key"], make_key(fleet, "viewer")
    assert fleet.ops("POST", f"{KEYS}/{taken['id']}/revoke").status == 200
    fleet.kill(PROXY)
    stored = b"".join(path.read_bytes() for path in fleet.folder.glob("fairlead.db*"))
    assert kept.rpartition("_")[2].encode() not in stored
    fleet.restart(PROXY)
    until(lambda: fleet.ops("GET", "/health/ready").status == 200, "it serves again", 20)
    fleet.wait_ready()
    assert fleet.ops("GET", "/api/runs", key=kept).status == 200
    refused(fleet.ops("GET", "/api/runs", key=taken["key"]), Reason.OPERATOR_KEY_REVOKED)


def test_a_key_ends_by_itself(fleet: Fleet) -> None:
    made = make_key(fleet, "viewer", valid_s=1)
    until(lambda: fleet.ops("GET", "/api/runs", key=made["key"]).status == 401, "it ended")
    with provokes(fleet, Reason.OPERATOR_KEY_EXPIRED):
        refused(fleet.ops("GET", "/api/runs", key=made["key"]), Reason.OPERATOR_KEY_EXPIRED)


def test_keys_are_rotated_without_a_call_that_fails(fleet: Fleet) -> None:
    old = make_key(fleet, "viewer")
    statuses: list[int] = []
    holder, stop = [old["key"]], threading.Event()

    def ask() -> None:
        while not stop.is_set():
            statuses.append(fleet.ops("GET", "/api/runs?limit=1", key=holder[0]).status)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        holder[0] = make_key(fleet, "viewer")["key"]
        until(lambda: len(statuses) > 20, "it was asked meanwhile")
        done = len(statuses)
        until(lambda: len(statuses) > done + 1, "nothing with the old one is under way")
        assert fleet.ops("POST", f"{KEYS}/{old['id']}/revoke").status == 200
        done = len(statuses)
        until(lambda: len(statuses) > done + 20, "and asked since")
    finally:
        stop.set()
        thread.join(10)
    assert set(statuses) == {200}


def test_the_command_line_makes_lists_and_revokes(fleet: Fleet) -> None:
    made = ctl(
        fleet, "keys", "create", "--role", "viewer", "--scope", "read", "--valid", "90d", "--note", "on call"
    )
    assert made.status == 0, made
    key = made.out.strip()
    assert "not shown again" in made.err
    assert ctl(fleet, "runs", key=key).status == 0
    said = ctl(fleet, "keys", "list", key=key)
    assert (said.status, "SCOPE_MISSING" in said.err) == (1, True)
    listed = ctl(fleet, "keys", "list")
    key_id = key.split("_")[1]
    assert any(key_id in line and "on call" in line for line in listed.out.splitlines())
    assert ctl(fleet, "keys", "revoke", key_id).out.startswith(f"revoked {key_id}")
    with provokes(fleet, Reason.OPERATOR_KEY_UNKNOWN):
        said = ctl(fleet, "keys", "revoke", "0" * 16)
        assert (said.status, "OPERATOR_KEY_UNKNOWN" in said.err) == (1, True)
    assert ctl(fleet, "keys", "create", "--role", "viewer", "--valid", "soon").status == 1


# -- what is claimed


@pytest.mark.parametrize("headers", [
    {"x-ops-key": "nobody-s-key-of-any-length-at-all"}, {"x-ops-key": ""},
    {"x-ops-key": "flk_0000000000000000_" + "A" * 43}, {"authorization": "Basic dTpw"}, {"authorization": "Bearer"},
], ids=str)  # fmt: skip
def test_a_claim_that_does_not_hold_is_never_nobodys(fleet: Fleet, headers: dict[str, str]) -> None:
    """Somebody without credentials may read /status here; somebody with wrong ones may not."""
    with provokes(fleet, Reason.UNAUTHENTICATED):
        refused(fleet.ops("GET", "/status", headers=headers, key=None), Reason.UNAUTHENTICATED)


def test_a_caller_who_is_named_twice(fleet: Fleet) -> None:
    with provokes(fleet, Reason.CREDENTIALS_AMBIGUOUS):
        answer = fleet.ops("GET", "/status", headers={"authorization": f"Bearer {ED.token(claims())}"})
        refused(answer, Reason.CREDENTIALS_AMBIGUOUS)


# -- tokens


@pytest.mark.parametrize("key", [HS, RS, ES, ED], ids=lambda key: key.alg)
def test_a_token_of_each_kind_says_who_calls(fleet: Fleet, key: IssuerKey) -> None:
    assert bearer(fleet, key.token(claims())).status == 200
    refused(bearer(fleet, key.token(claims()), "POST", f"{KEYS}/x/revoke"), Reason.SCOPE_MISSING)
    body = {"command": "demo:echo", "args": {"text": "x"}}
    run = bearer(fleet, key.token(claims(role="operator")), "POST", "/api/dispatch", body)
    assert run.status == 202, run


def test_a_token_of_an_admin_makes_keys_and_is_named_in_the_audit_trail(fleet: Fleet) -> None:
    made = bearer(
        fleet, ED.token(claims(role="admin", email="alice@acme.test")), "POST", KEYS, {"role": "viewer"}
    )
    assert made.status == 201, made
    assert made.json()["created_by"] == "jwt:alice"
    event = fleet.ops("GET", "/api/ops/reliability/audit?limit=1").json()["events"][0]
    assert (event["principal"], event["auth"], event["address"]) == ("jwt:alice", "jwt", "127.0.0.1")


def test_a_key_that_the_issuer_publishes_later_is_found(fleet: Fleet, issuer: Issuer) -> None:
    refused(bearer(fleet, ROTATED.token(claims())), Reason.JWT_KEY_UNKNOWN)
    issuer.document = key_set(RS, ES, ED, ROTATED)
    until(lambda: bearer(fleet, ROTATED.token(claims())).status == 200, "it asked the issuer again", 20)
    assert bearer(fleet, RS.token(claims())).status == 200


def unsigned() -> str:
    return ".".join((b64(b'{"alg":"none"}'), b64(json.dumps(claims()).encode()), ""))


BAD_TOKENS: dict[Reason, Any] = {
    Reason.JWT_MALFORMED: lambda: "a.b",
    Reason.JWT_TOO_LARGE: lambda: ED.token(claims(pad="x" * 8_000)),
    Reason.JWT_DUPLICATE_NAMES: lambda: ED.token(json.dumps(claims())[:-1].encode() + b',"role":"admin"}'),
    Reason.JWT_TOO_DEEP: lambda: ED.token(claims(x=[[[[[[[[[]]]]]]]]])),
    Reason.JWT_ALGORITHM_REFUSED: unsigned,
    Reason.JWT_KEY_UNKNOWN: lambda: issuer_key("EdDSA", "unknown").token(claims()),
    Reason.JWT_SIGNATURE_INVALID: lambda: IssuerKey("", "HS256", b"another").token(claims()),
    Reason.JWT_EXPIRED: lambda: ED.token(claims(exp=time.time() - 60)),
    Reason.JWT_NOT_YET_VALID: lambda: ED.token(claims(nbf=time.time() + 60)),
    Reason.JWT_ISSUER_WRONG: lambda: ED.token(claims(iss="https://else.test/")),
    Reason.JWT_AUDIENCE_WRONG: lambda: ED.token(claims(aud="else")),
    Reason.JWT_CLAIM_MISSING: lambda: ED.token(claims(role=None) | {"aud": None}),
    Reason.JWT_CLAIM_INVALID: lambda: ED.token(claims(role="root")),
}


@pytest.mark.parametrize("reason", BAD_TOKENS, ids=lambda reason: reason.value)
def test_a_token_is_refused(fleet: Fleet, reason: Reason) -> None:
    with provokes(fleet, reason):
        refused(bearer(fleet, BAD_TOKENS[reason](), path="/status"), reason)


def test_a_token_whose_issuer_is_away(strict: Fleet) -> None:
    with provokes(strict, Reason.JWKS_UNAVAILABLE, serves=lambda: alive(strict)):
        answer = refused(bearer(strict, ED.token(claims())), Reason.JWKS_UNAVAILABLE)
        assert answer.status == 503
    with provokes(strict, Reason.JWT_ALGORITHM_REFUSED, serves=lambda: alive(strict)):
        refused(bearer(strict, HS.token(claims())), Reason.JWT_ALGORITHM_REFUSED)
    assert strict.ops("GET", "/status").json()["callers"]["jwks"]["failure"]


def alive(fleet: Fleet) -> None:
    """Others are served: whoever has a key."""
    assert fleet.ops("GET", "/api/runs").status == 200


# -- signatures

_nonces = iter(f"{number:032x}" for number in range(1, 10_000))


def signature(
    method: str, target: str, body: bytes = b"", *, key: SigningKey = SIGNING, at_ms: int = 0, nonce: str = ""
) -> str:
    now_ms = int(time.time() * 1000)
    return sign(key, method, target, body, at_ms or now_ms, nonce or next(_nonces))


def signed_get(
    fleet: Fleet, value: str, target: str = "/api/runs?limit=1", name: str = "x-signature"
) -> Answer:
    return fleet.ops("GET", target, headers={name: value}, key=None)


BODY = json.dumps({"command": "demo:echo", "args": {"text": "signed"}}).encode()


@pytest.mark.parametrize("name", ["x-signature", "X-Transbot-Signature"])
def test_a_signature_alone_submits_and_reads_what_it_submitted(fleet: Fleet, name: str) -> None:
    headers = {name: signature("POST", "/api/dispatch", BODY), "prefer": "wait=10"}
    run = fleet.ops("POST", "/api/dispatch", BODY, headers, key=None)
    assert (run.status, run.json()["status"]) == (200, "COMPLETED"), run
    path = f"/api/runs/{run.json()['run_id']}"
    assert signed_get(fleet, signature("GET", path), path, name).status == 200
    drain = signature("POST", "/api/nodes/lobby-1/drain")
    answer = fleet.ops("POST", "/api/nodes/lobby-1/drain", headers={name: drain}, key=None)
    refused(answer, Reason.SCOPE_MISSING)


GET = ("GET", "/api/runs?limit=1")
BAD_SIGNATURES: dict[Reason, Any] = {
    Reason.SIGNATURE_MALFORMED: lambda: "v1 whatever",
    Reason.SIGNATURE_KEY_UNKNOWN: lambda: signature(*GET, key=FOREIGN),
    Reason.SIGNATURE_INVALID: lambda: signature("GET", "/api/runs?limit=2"),
    Reason.SIGNATURE_TIMESTAMP_INVALID: lambda: signature(*GET, at_ms=1_700_000_000_000),
}


@pytest.mark.parametrize("reason", BAD_SIGNATURES, ids=lambda reason: reason.value)
def test_a_signature_is_refused(fleet: Fleet, reason: Reason) -> None:
    with provokes(fleet, reason):
        refused(signed_get(fleet, BAD_SIGNATURES[reason]()), reason)


def test_a_signature_under_both_names(fleet: Fleet) -> None:
    headers = {"x-signature": signature(*GET), "x-transbot-signature": signature(*GET)}
    refused(fleet.ops(*GET, headers=headers, key=None), Reason.SIGNATURE_MALFORMED)


def test_a_recorded_request_is_taken_once(fleet: Fleet) -> None:
    recorded = signature(*GET)
    assert signed_get(fleet, recorded).status == 200
    refused(signed_get(fleet, recorded), Reason.SECURITY_REPLAY_DETECTED)


def test_where_signatures_are_enforced_a_key_alone_submits_nothing(strict: Fleet) -> None:
    with provokes(strict, Reason.SIGNATURE_MISSING, serves=lambda: alive(strict)):
        refused(strict.ops("POST", "/api/dispatch", BODY), Reason.SIGNATURE_MISSING)
    headers = {"x-signature": signature("POST", "/api/dispatch", BODY)}
    assert strict.ops("POST", "/api/dispatch", BODY, headers).status == 202


# -- `fairlead sign`


def run_curl(line: str, environ: dict[str, str]) -> tuple[int, Any]:
    done = subprocess.run(
        ["bash", "-c", f"{line} -w '\\n%{{http_code}}'"], env={"PATH": "/usr/bin:/bin", **environ},
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body)


def test_what_sign_prints_is_what_curl_sends(fleet: Fleet, tmp_path: Path) -> None:
    port = fleet.ops_port
    file = tmp_path / "it's a body.json"
    file.write_bytes(BODY)
    awkward = json.dumps({"command": "demo:echo", "args": {"text": 'it\'s "$HOME" `x` @ \\ é {a,b} [1-2]\n'}})
    secret = {"DISPATCH_HMAC_SECRET": HMAC_SECRET, "FAIRLEAD_OPS_KEY": ""}
    url = f"http://127.0.0.1:{port}/api/dispatch"
    said = cli(
        fleet,
        (["sign", "-c", "acme", "-m", "25", "-k", "INC-1", "-d", "-v"], {"TRANSBOT_HMAC_SECRET": HMAC_SECRET}),
        (["sign", "--url", url, "--body", f"@{file}"], secret),
        (["sign", "--url", url, "--body", awkward, "--transbot"], secret),
        (["sign", "--url", f"http://127.0.0.1:{port}/api/runs?limit=1&tenant=a%20{{b}}", "--method", "get"], secret),
    )  # fmt: skip
    assert [each.status for each in said] == [0, 0, 0, 0], said
    lines = [each.out.strip().splitlines()[-1] for each in said]
    assert HMAC_SECRET not in "".join(each.out + each.err for each in said)
    assert fleet.ops_key not in said[0].out
    status, answer = run_curl(lines[0], {"FAIRLEAD_OPS_KEY": fleet.ops_key})
    assert (status, answer["dryRun"]) == (200, True), answer
    assert [run_curl(line, {})[0] for line in lines[1:]] == [202, 202, 200]
    assert said[2].out.startswith("x-transbot-signature: v2 ")
    status, answer = run_curl(lines[1], {})
    assert (status, answer["reason"]) == (409, "security_replay_detected"), "a line holds for one call"


def test_sign_says_what_is_missing(fleet: Fleet) -> None:
    secret = {"DISPATCH_HMAC_SECRET": HMAC_SECRET}
    said = cli(
        fleet,
        (["sign", "-m", "1"], {}),
        (["sign", "-m", "1"], {"DISPATCH_HMAC_SECRET": "secret"}),
        (["sign", "-m", "1"], {**secret, "TRANSBOT_HMAC_SECRET": FOREIGN_SECRET}),
        (["sign"], secret | {"TRANSBOT_HMAC_SECRET": ""}),
        (["sign", "-m", "1", "--body", "{}"], secret),
        (["sign", "--body", "{}", "--url", "http://h/a b"], secret),
        (["sign", "--body", "{}", "--url", "http://h/a#b"], secret),
        (["sign", "--body", "{}", "--method", "TRACE"], secret),
        (["sign", "--body", "@/nowhere"], secret),
    )  # fmt: skip
    for each in said:
        assert (each.status, each.out, each.err.startswith("fairlead sign: ")) == (1, "", True), each
    only = cli(fleet, (["sign", "--body", "{}", "--only-signature"], secret))[0]
    assert only.out.startswith("v2 keyId=")
    assert shlex.split(only.out) == only.out.split()


# -- two proxies


@contextmanager
def two_proxies(folder: Path, postgres: Databases) -> Iterator[Fleet]:
    url = postgres.create_database()
    made = Fleet(folder, nodes=("lobby-1",), more_proxies=(OTHER,), proxy={"store": {"url": url}})
    try:
        with closing(made.start()):
            yield made
    finally:
        postgres.drop_database(url)


def test_a_key_revoked_at_one_proxy_is_worthless_at_the_other(tmp_path: Path, postgres: Databases) -> None:
    with two_proxies(tmp_path, postgres) as fleet:
        made = make_key(fleet, "viewer")
        key = made["key"]
        until(
            lambda: fleet.ops("GET", "/api/runs", key=key, at=OTHER).status == 200,
            "the other one knows it",
            5,
        )
        assert fleet.ops("POST", f"{KEYS}/{made['id']}/revoke", at=OTHER).status == 200
        refused(fleet.ops("GET", "/api/runs", key=key, at=OTHER), Reason.OPERATOR_KEY_REVOKED)
        until(lambda: fleet.ops("GET", "/api/runs", key=key, at=PROXY).status == 401, "and this one", 5)
        refused(fleet.ops("GET", "/api/runs", key=key, at=PROXY), Reason.OPERATOR_KEY_REVOKED)


# -- the end


def test_every_reason_that_is_owed_here_was_provoked(request: pytest.FixtureRequest) -> None:
    ours = {item.name for item in request.session.items if item.path == Path(__file__)}
    if ours != _here.tests_run:
        pytest.skip("only with the whole file")
    missing = sorted(each.value for each in OF_CALLERS - _here.reasons)
    assert not missing, f"not provoked: {', '.join(missing)}"
