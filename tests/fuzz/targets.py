"""What is fuzzed without a server: everything that reads what somebody else wrote.

Each target has examples that are right, and judges what became of a broken one. What every target promises: no
exception, and nothing that was not made with a secret is believed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
from tests.attacks.http_smuggling import REPLIES, REQUESTS
from tests.fuzz.mutation import mutated
from tests.support import minecraft as mc
from tests.support.config_text import strong
from tests.support.forwarding import check_answer, check_request
from tests.support.issuer import IssuerKey, issuer_key, key_set

from fairlead.backend.rcon import Packet, RconFailed
from fairlead.backend.rcon import decode as decode_rcon
from fairlead.backend.rcon import encode as encode_rcon
from fairlead.protocol.envelope import ChannelLimits, Guard, Stamper
from fairlead.protocol.keys import Role
from fairlead.protocol.messages import Deliver, Identity, Notice
from fairlead.protocol.preamble import parse
from fairlead.protocol.proof import Proof, ProofJudge, ProofKind, proof_key, write
from fairlead.protocol.proxy_header import parse as parse_header
from fairlead.protocol.proxy_header import write_v1, write_v2
from fairlead.protocol.reasons import Refused, Reject
from fairlead.protocol.request_proof import RequestFacts, RequestJudge, RequestSigner, client_facts
from fairlead.protocol.trust import TOKEN_BYTES, TrustJudge, make, shared_trust_key
from fairlead.proxy.dispatch.submit import SubmitLimits, parse_batch, parse_one
from fairlead.proxy.edge.minecraft.host_token import NoToken, split
from fairlead.proxy.edge.minecraft.opening import Handshake, Login, Opening
from fairlead.proxy.edge.minecraft.packets import Malformed
from fairlead.proxy.edge.transfer_token import TransferToken, transfer_key
from fairlead.proxy.edge.transfer_token import judge as judge_transfer
from fairlead.proxy.edge.transfer_token import make as make_transfer
from fairlead.proxy.guard import tokens
from fairlead.proxy.guard.credentials import read as read_credentials
from fairlead.proxy.guard.key_set import KeySet, read_key_set
from fairlead.proxy.guard.operator_keys import OperatorKeys
from fairlead.proxy.store.seals import Seals
from fairlead.runtime.audit_chain import Row, Signer, line_of, lines_of, read_line, row_hash, verify
from fairlead.runtime.http.framing import split_head
from fairlead.runtime.http.head import HeadReader, RequestHead
from fairlead.runtime.request_signing import Signed, judge, sign, signing_keys
from fairlead.runtime.signing import judge_signature, worker_signature
from fairlead.runtime.strict_json import json_problem

NOW_MS = 1_800_000_000_000
SECRET = bytes.fromhex(strong("fuzz"))


class Wrong(AssertionError):
    """An invariant that does not hold."""


def hold(true: object, what: str) -> None:
    if not true:
        raise Wrong(what)


@dataclass(frozen=True)
class Target:
    """`check`: what must hold of some bytes. Raises where it does not."""

    name: str
    examples: Sequence[bytes]
    check: Callable[[bytes], None]

    def make(self, rng: random.Random) -> bytes:
        """One case, made from an example."""
        if rng.random() < 0.05:
            return rng.randbytes(rng.randint(0, 200))
        return mutated(rng.choice(self.examples), rng, self.examples)


# -- signature v2

(_KEY,) = signing_keys([SECRET])
_BODY = b'{"command": "demo:echo"}'
_SIGNATURE = sign(_KEY, "POST", "/api/dispatch", _BODY, NOW_MS, "n" * 20)


def _signature(data: bytes) -> None:
    value = data.decode("latin-1")
    found = judge([_KEY], [value], "POST", "/api/dispatch", _BODY, NOW_MS, 300_000)
    hold(
        isinstance(found, Reject) or value == _SIGNATURE,
        "another header than the one that was made is believed",
    )


def _signed_request(data: bytes) -> None:
    """method, target and body, parted by zero bytes."""
    parts = data.split(b"\0", 2)
    if len(parts) != 3:
        return
    method, target, body = parts[0].decode("latin-1"), parts[1].decode("latin-1"), parts[2]
    found = judge([_KEY], [_SIGNATURE], method, target, body, NOW_MS, 300_000)
    genuine = (method, target, body) == ("POST", "/api/dispatch", _BODY)
    hold(isinstance(found, Signed) is genuine, "the signature holds for another request")


def _worker(data: bytes) -> None:
    signature, _, body = data.partition(b"\0")
    value = signature.decode("latin-1")
    found = judge_signature([SECRET], [value], [str(NOW_MS // 1000)], body, NOW_MS, 300)
    genuine = worker_signature(SECRET, NOW_MS // 1000, body)
    hold(
        isinstance(found, Reject) or value.lower() == genuine,
        "a worker's signature that was not made is believed",
    )


# -- tokens

_HS = IssuerKey("", "HS256", SECRET)
_RS, _ES, _ED = (issuer_key(kind) for kind in ("RS256", "ES256", "EdDSA"))
_RULES = tokens.TokenRules(
    "https://i.test/", "fairlead", 30, "role", "tenant", "scope", "email", "subject_type", "read_scope", ""
)
_CLAIMS = {
    "iss": _RULES.issuer, "aud": ["fairlead"], "exp": NOW_MS // 1000 + 600, "sub": "alice", "role": "admin",
    "tenant": "acme", "scope": "read dispatch", "email": "a@acme.test",
}  # fmt: skip
_SET = read_key_set(key_set(_RS, _ES, _ED), ("RS256", "ES256", "EdDSA"))
_TOKENS = tuple(key.token(_CLAIMS).encode() for key in (_HS, _RS, _ES, _ED))
_SHARED = tokens.shared_key(SECRET)


def _token(data: bytes) -> None:
    unverified = tokens.read(data.decode("latin-1"))
    if isinstance(unverified, Reject):
        return
    assert isinstance(_SET, KeySet)
    held = _SHARED if unverified.algorithm == "HS256" else _SET.find(unverified.algorithm, unverified.key_id)
    claims = tokens.verify(unverified, [held] if held else [])
    hold(isinstance(claims, Reject) or data in _TOKENS, "a token that nobody signed is believed")
    if not isinstance(claims, Reject):
        hold(isinstance(tokens.identity_of(claims, _RULES, NOW_MS), Identity), "a good token is refused")


def _claims(data: bytes) -> None:
    """Whatever an issuer signs is read, or refused with a reason."""
    unverified = tokens.read(_HS.token(data))
    if not isinstance(unverified, Reject):
        claims = tokens.verify(unverified, [_SHARED])
        if not isinstance(claims, Reject):
            found = tokens.identity_of(claims, _RULES, NOW_MS)
            if isinstance(found, Identity):
                hold(
                    found.roles and set(found.roles) <= {"viewer", "operator", "admin"},
                    "a role that there is not",
                )


def _key_set(data: bytes) -> None:
    hold(
        isinstance(read_key_set(data, ("RS256", "ES256", "EdDSA")), KeySet | str), "neither keys nor a reason"
    )


def _credentials(data: bytes) -> None:
    values = [each.decode("latin-1") for each in data.split(b"\0")]
    read_credentials(lambda name: values if name in ("x-ops-key", "authorization") else values[:1])
    held = OperatorKeys([strong("an operator's key")])
    for value in values:
        found = held.identify(value, NOW_MS, 1.0)
        hold(isinstance(found, Reject) or value == strong("an operator's key"), "an unknown key is believed")


# -- what comes over links

_BOUNDS = ChannelLimits(payload_bytes_max=65_536, ttl_ms_max=10_000, skew_ms_max=5_000)
_STAMPED = Stamper(version=1, sender="node-1", audience="proxy-1", bounds=_BOUNDS).stamp(
    Notice("LINK_CLOSED", ""), NOW_MS
)
assert isinstance(_STAMPED, bytes)


def _envelope(data: bytes) -> None:
    guard = Guard(version=1, sender="node-1", role=Role.NODE, audience="proxy-1", bounds=_BOUNDS)
    found = guard.check(data, NOW_MS)
    if not isinstance(found, Reject):
        hold(found[0].sender == "node-1" and found[0].audience == "proxy-1", "another's envelope passed")
        hold(isinstance(guard.check(data, NOW_MS), Reject), "the same envelope passed twice")


def _preamble(data: bytes) -> None:
    parse(data)


_DELIVERY = Deliver(
    run_id="r-1", root_run_id="r-1", fence=3, command="demo:echo", descriptor_digest=b"d" * 32, args_json=b"{}",
    tenant="acme",
    deadline_at_ms=NOW_MS + 60_000, timeout_ms=5_000, accepted_at_ms=NOW_MS,
    identity=Identity("key:1", "human", ("operator",)),
)  # fmt: skip
_TRUST_KEY = shared_trust_key(SECRET, "node-1")
_TRUST = make(_TRUST_KEY, _DELIVERY, "node-1", "i-1", NOW_MS, 60_000)


def _trust(data: bytes) -> None:
    judge_ = TrustJudge([_TRUST_KEY], "node-1", "i-1", 60_000, 5_000)
    found = judge_.judge(msgspec.structs.replace(_DELIVERY, trust=data), NOW_MS)
    hold((found is None) is (data == _TRUST), "a token that was not made is believed")
    rest = data[TOKEN_BYTES:]
    if rest:  # the genuine token with another delivery
        other = msgspec.structs.replace(_DELIVERY, args_json=rest, trust=_TRUST)
        hold((judge_.judge(other, NOW_MS) is None) is (rest == b"{}"), "the token holds for other arguments")


_PROOF_KEY = proof_key(SECRET)
_PROOF = write(
    _PROOF_KEY, "node-1", ProofKind.TCP, NOW_MS, b"n" * 16, source=("192.0.2.1", 1), target=("192.0.2.2", 2),
    session_id="s-1",
)  # fmt: skip


def _proof(data: bytes) -> None:
    found = parse_header(data)
    if isinstance(found, tuple):
        header, size = found
        by = ProofJudge([_PROOF_KEY], "node-1", bytes(8), NOW_MS - 3_600_000)
        believed = isinstance(by.judge(header, data[:size], tuple(ProofKind), NOW_MS), Proof)
        hold(believed is (data[:size] == _PROOF), "a proof of proxy that was not made is believed")


_CLAIM = RequestSigner(SECRET).line(client_facts("192.0.2.1", 1, "s-1"), b"c-1", b"GET", b"/", b"")[19:-2]


def _claim(data: bytes) -> None:
    believed = isinstance(RequestJudge(SECRET).judge([data], b"GET", b"/", b""), RequestFacts)
    hold(believed is (data == _CLAIM), "a request's proof that was not made is believed")


_SEALS = Seals(SECRET)
_FIELDS = ("run-1", b"args", 7, None, "tenant")
_SEAL = _SEALS.seal("run", *_FIELDS)


def _seal(data: bytes) -> None:
    """A row in msgpack: whatever stands in it, the seal holds for the genuine one alone."""
    hold(_SEALS.holds("run", data, *_FIELDS) is (data == _SEAL), "a seal that was not made holds")
    try:
        fields = msgspec.msgpack.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return
    if isinstance(fields, list):
        same = msgspec.msgpack.encode(fields) == msgspec.msgpack.encode(list(_FIELDS))
        hold(_SEALS.holds("run", _SEAL, *fields) is same, "the seal of one row holds for another")


# -- HTTP and JSON

_HEADS = (
    b"POST /api/dispatch HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nx-ops-key: k\r\n\r\n",
    b"GET /a?b=c HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
)


def _head(data: bytes) -> None:
    found = split_head(data, 16_384)
    if isinstance(found, tuple):
        parsed = HeadReader().request(found[0])
        if isinstance(parsed, RequestHead):
            for _, name, value, _ in parsed.fields:
                hold(not {10, 13, 0} & set(name + value), "a line break or zero byte got into a header")


_REQUESTS = tuple(trick.raw for tricks in REQUESTS.values() for trick in tricks if len(trick.raw) < 2_000)
_ANSWERS = tuple(each.raw for each in REPLIES if len(each.raw) < 2_000)


def _forwarded_request(data: bytes) -> None:
    """Whatever goes on to a backend is one request, to two readers."""
    check_request(data)


def _forwarded_answer(data: bytes) -> None:
    """Whatever goes back to a client is one answer, to two readers."""
    for method in (b"GET", b"HEAD"):
        check_answer(data, method, trailers=method == b"GET")


_JSON = tuple(
    json.dumps(each).encode()
    for each in (
        {"command": "a:b", "args": {"x": [1, 2.5, "é", None, True]}, "tenant": "acme", "priority": 3},
        [{"command": "a:b"}, {"command": "c:d", "args": {"deep": [[[[{}]]]]}}],
        {"items": [{"command": "a:b", "deadline_ms": 18446744073709551615}]},
    )
)
_LIMITS = SubmitLimits(65_536, 100, 60_000, 3_600_000, True)


def _json(data: bytes) -> None:
    """What passes has one reading: two decoders take the same from it."""
    problem = json_problem(data)
    for reader in (lambda: parse_one(data), lambda: parse_batch(data, _LIMITS)):
        try:
            reader()
        except Refused:
            pass
        else:
            hold(not problem, f"taken, though {problem}")
    if problem:
        return
    mine = json.loads(data)
    try:
        theirs = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError):
        return
    hold(mine == theirs, "two decoders read different things")


# -- the audit trail, as it is read elsewhere


_SIGNER = Signer(SECRET)


def _trail() -> tuple[list[Row], bytes]:
    rows: list[Row] = []
    previous = ""
    for seq in range(1, 4):
        row = Row(
            seq, previous, f"e-{seq}", NOW_MS + seq, "node_drain", "key:1", "key:1", "10.0.0.1", "acme", "lobby-1",
            "INC-1", "ok", 1, 1, 0, '{"a":1}', "", "", "c-1",
        )  # fmt: skip
        previous = row_hash(row)
        rows.append(msgspec.structs.replace(row, hash=previous))
    checkpoint = _SIGNER.checkpoint("fleet", 3, previous, NOW_MS + 9)
    return rows, b"".join(line_of(each) for each in (*rows, checkpoint))


_ROWS, _TRAIL = _trail()


def _audit(data: bytes) -> None:
    lines = lines_of(data)
    found = verify(lines, [_SIGNER.public_key], expect_seq=3)
    if not found.problems:
        rows = [each for line in lines if isinstance(each := read_line(line), Row)]
        hold(rows == _ROWS, "a trail that was changed holds together")


# -- the first bytes of a game client


_GAMES = [
    mc.join("Alice", "play.example.org\0FML2\0"), mc.join(intent=3) + b"rest", mc.handshake(intent=1) + mc.ping(),
    mc.handshake(protocol=760) + mc.frame(0, mc.string("Alice") + b"\1" + bytes(8) + mc.string(b"k") * 2 + b"\0"),
    mc.legacy_ping_1_6(), b"\xfe\x01", b"\x02\x4e",
]  # fmt: skip


def _game(data: bytes) -> None:
    """Whole or byte by byte it is read alike, and what goes on to a node is what came."""
    whole, pieces, found = Opening(), Opening(), None
    try:
        wanted = whole.feed(data) if data else None
    except Malformed:
        wanted = "malformed"
    try:
        for index in range(len(data)):
            found = pieces.feed(data[index : index + 1])
            if found is not None:
                break
    except Malformed:
        found = "malformed"
    hold(found == wanted, f"cut into bytes it means something else: {found}, {wanted}")
    if isinstance(wanted, Login):
        said = wanted.handshake.packet() + wanted.login_start
        hold(data == said + whole.rest, "the node would hear something else")
        hold(0 < len(wanted.name) <= 16, "a name that is none")
    if isinstance(wanted, Login | Handshake):
        handshake = wanted if isinstance(wanted, Handshake) else wanted.handshake
        hold(all("!" <= each <= "~" for each in handshake.address.host), "a host that routing must not see")
        try:
            split(handshake.address.host)
        except NoToken:
            pass  # as good as any answer


_TRANSFER_KEY = transfer_key(SECRET)
_TRANSFER = make_transfer(
    _TRANSFER_KEY,
    TransferToken(
        "01a2143e-7bcf-7ad1-b198-58ca3f7599bc", "208a3cf9.01a2143e-7bb5-7269-8ae3-3a0e9d1e02e2", "b-2", NOW_MS
    ),
    "ada",
)  # fmt: skip


def _transfer(data: bytes) -> None:
    believed = isinstance(judge_transfer([_TRANSFER_KEY], data, "ada", NOW_MS), TransferToken)
    hold(believed is (data == _TRANSFER), "a transfer's token that was not made is believed")


def _rcon(data: bytes) -> None:
    try:
        found = decode_rcon(data)
    except RconFailed:
        return
    if found is not None:
        hold(
            encode_rcon(found[0])[:-2] + data[len(data) - len(found[1]) - 2 :] == data,
            "a packet is another one",
        )


TARGETS: dict[str, Target] = {
    each.name: each
    for each in (
        Target("signature", [_SIGNATURE.encode()], _signature),
        Target("signed request", [b"POST\0/api/dispatch\0" + _BODY], _signed_request),
        Target("worker signature", [worker_signature(SECRET, NOW_MS // 1000, _BODY).encode() + b"\0" + _BODY], _worker),
        Target("token", _TOKENS, _token),
        Target("claims", [json.dumps(_CLAIMS).encode()], _claims),
        Target("key set", [key_set(_RS, _ES, _ED)], _key_set),
        Target("credentials", [strong("an operator's key").encode(),
                               b"flk_0123456789abcdef_" + b"A" * 43, b"Bearer a.b.c"],
               _credentials),
        Target("envelope", [_STAMPED], _envelope),
        Target("preamble", [b"FLD1" + bytes(32), bytes(64)], _preamble),
        Target("trust token", [_TRUST, _TRUST + b"{}"], _trust),
        Target("proof of proxy", [_PROOF, write_v1(("::1", 1), ("::2", 2)), write_v2(None, None, is_local=True)],
               _proof),
        Target("request proof", [_CLAIM], _claim),
        Target("seal", [_SEAL, msgspec.msgpack.encode(list(_FIELDS))], _seal),
        Target("head", _HEADS, _head),
        Target("forwarded request", _REQUESTS, _forwarded_request),
        Target("forwarded answer", _ANSWERS, _forwarded_answer),
        Target("json", _JSON, _json),
        Target("audit trail", [_TRAIL], _audit),
        Target("game client", _GAMES, _game),
        Target("transfer token", [_TRANSFER], _transfer),
        Target("rcon", [encode_rcon(Packet(1, 2, b"transfer h 1 p")), encode_rcon(Packet(-1, 2, b""))], _rcon),
    )
}  # fmt: skip
