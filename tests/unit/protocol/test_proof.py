"""Proof of proxy: what is believed, each cause for which it is not, and that a token opens one gate, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.protocol import request_proof
from fairlead.protocol.keys import Role, derive
from fairlead.protocol.proof import (
    MAC_BYTES,
    NO_BOOT,
    TOKEN_FIELD,
    Cause,
    Proof,
    ProofJudge,
    ProofKey,
    ProofKind,
    Unproven,
    proof_key,
    request_key,
    write,
)
from fairlead.protocol.proxy_header import Endpoint, parse, write_v2
from fairlead.protocol.reasons import Reason
from fairlead.protocol.request_proof import RequestFacts, RequestJudge, RequestSigner, client_facts

SECRET = bytes(range(32))
NOW_MS = 1_700_000_000_000
TTL_MS, SKEW_MS = 10_000, 5_000
BOOT = b"boot-no1"
CLIENT, SERVER = ("192.0.2.7", 40_001), ("198.51.100.1", 25_565)
KINDS = (ProofKind.TCP, ProofKind.CHECK)


def key_of(node: str, secret: bytes = SECRET) -> ProofKey:
    return proof_key(derive(secret, Role.NODE, node, 0).psk)


KEY = key_of("lobby-1")


def judge(*keys: ProofKey, nonces_max: int = 100, started_at_ms: int = NOW_MS - 3_600_000) -> ProofJudge:
    return ProofJudge(
        keys or (KEY,), "lobby-1", BOOT, started_at_ms,
        ttl_ms_max=TTL_MS, skew_ms_max=SKEW_MS, nonces_max=nonces_max,
    )  # fmt: skip


@dataclass(frozen=True)
class Draft:
    """A header to be, good unless something is changed."""

    key: ProofKey = KEY
    node: str = "lobby-1"
    kind: ProofKind = ProofKind.TCP
    issued_at_ms: int = NOW_MS
    nonce: bytes = b"n" * 16
    source: Endpoint | None = CLIENT
    session_id: str = "s-1"
    boot: bytes = BOOT
    ttl_ms: int = TTL_MS

    def raw(self) -> bytes:
        return write(
            self.key, self.node, self.kind, self.issued_at_ms, self.nonce, source=self.source, target=SERVER,
            session_id=self.session_id, boot=self.boot, ttl_ms=self.ttl_ms,
        )  # fmt: skip


def judged(raw: bytes, by: ProofJudge, now_ms: int = NOW_MS) -> Proof | Unproven:
    found = parse(raw)
    assert isinstance(found, tuple), found
    header, size = found
    return by.judge(header, raw[:size], KINDS, now_ms)


def cause(raw: bytes, by: ProofJudge | None = None, now_ms: int = NOW_MS) -> Cause | None:
    found = judged(raw, by or judge(), now_ms)
    return found.cause if isinstance(found, Unproven) else None


def test_a_good_header_says_whose_the_connection_is() -> None:
    found = judged(Draft().raw() + b"first bytes", judge())
    assert isinstance(found, Proof)
    assert (found.kind, found.source, found.target, found.session_id) == (
        ProofKind.TCP,
        CLIENT,
        SERVER,
        "s-1",
    )
    assert found.request_key == request_key(KEY, b"n" * 16)
    assert "request_key" not in repr(found)
    assert "key=" not in repr(KEY)


def retyped(raw: bytes) -> bytes:
    """The token in a field of another type."""
    return raw.replace(bytes((TOKEN_FIELD, 0)), bytes((TOKEN_FIELD + 1, 0)), 1)


def tokened(change: Callable[[bytes], bytes], after: tuple[tuple[int, bytes], ...] = ()) -> bytes:
    found = parse(Draft().raw())
    assert isinstance(found, tuple)
    tlvs = tuple((kind, change(value) if kind == TOKEN_FIELD else value) for kind, value in found[0].tlvs)
    return write_v2(CLIENT, SERVER, tlvs + after)


REFUSED = [
    (Cause.MISSING, write_v2(CLIENT, SERVER)),
    (Cause.MISSING, retyped(Draft().raw())),
    (Cause.MALFORMED, tokened(lambda token: token[:-1])),
    (Cause.MALFORMED, tokened(lambda token: token + b"\0")),
    (Cause.MALFORMED, tokened(lambda token: b"\x02" + token[1:])),
    (Cause.MALFORMED, tokened(lambda token: b"")),
    (
        Cause.MALFORMED,
        tokened(lambda token: token, ((0xE2, b"x"),)),
    ),  # not the last: something is not covered
    (Cause.WRONG_NODE, Draft(node="lobby-2", key=key_of("lobby-2")).raw()),
    (Cause.UNKNOWN_KEY, Draft(key=key_of("lobby-2")).raw()),
    (Cause.UNKNOWN_KEY, Draft(key=key_of("lobby-1", bytes(32))).raw()),
    (Cause.BAD_MAC, Draft(key=replace(key_of("lobby-2"), key_id=KEY.key_id)).raw()),
    (Cause.BAD_MAC, Draft().raw().replace(b"\xc0\x00\x02\x07", b"\xc0\x00\x02\x08", 1)),  # another client
    (Cause.BAD_MAC, Draft().raw().replace(b"s-1", b"s-2", 1)),
    (Cause.BAD_MAC, tokened(lambda token: token[:22] + b"\xff" * 4 + token[26:])),  # stretched
    (Cause.WRONG_KIND, Draft(kind=ProofKind.HTTP).raw()),
    (Cause.NOT_YET_VALID, Draft(issued_at_ms=NOW_MS + SKEW_MS + 1).raw()),
    (Cause.EXPIRED, Draft(issued_at_ms=NOW_MS - TTL_MS - SKEW_MS - 1).raw()),
    (
        Cause.EXPIRED,
        Draft(issued_at_ms=NOW_MS - TTL_MS - SKEW_MS - 1, ttl_ms=3_600_000).raw(),
    ),  # more than we grant
    (Cause.EXPIRED, Draft(issued_at_ms=NOW_MS - SKEW_MS - 1_001, ttl_ms=1_000).raw()),
]


@pytest.mark.parametrize(("expected", "raw"), REFUSED)
def test_each_cause(expected: Cause, raw: bytes) -> None:
    by = judge()
    found = judged(raw, by)
    assert isinstance(found, Unproven)
    assert found.cause is expected
    assert found.reject.reason is Reason.PROXY_TOKEN_REJECTED
    assert found.reject.detail.startswith(f"{expected}: ")
    assert by.nonces == 0  # only what holds takes room


@pytest.mark.parametrize("issued_at_ms", [NOW_MS + SKEW_MS, NOW_MS - TTL_MS - SKEW_MS])
def test_the_borders_of_validity_are_believed(issued_at_ms: int) -> None:
    assert cause(Draft(issued_at_ms=issued_at_ms).raw()) is None


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_byte_can_be_changed(at: int, change: int) -> None:
    raw = bytearray(Draft().raw())
    raw[at % len(raw)] ^= change
    found = parse(bytes(raw))
    if isinstance(found, tuple):
        assert isinstance(judge().judge(found[0], bytes(raw[: found[1]]), KINDS, NOW_MS), Unproven)


def test_a_token_is_believed_once_for_as_long_as_it_is_valid() -> None:
    by, raw = judge(), Draft(issued_at_ms=NOW_MS + SKEW_MS).raw()  # of a proxy whose clock is ahead
    assert cause(raw, by) is None
    for later_ms in (0, 1, TTL_MS, TTL_MS + 2 * SKEW_MS):
        assert cause(raw, by, NOW_MS + later_ms) is Cause.REPLAYED
    assert cause(raw, by, NOW_MS + TTL_MS + 2 * SKEW_MS + 1) is Cause.EXPIRED


def test_a_full_memory_refuses_and_forgets_nobody() -> None:
    by = judge(nonces_max=3)
    raws = [Draft(nonce=bytes([n]) * 16).raw() for n in range(4)]
    assert [cause(raw, by) for raw in raws] == [None, None, None, Cause.FULL]
    assert [cause(raw, by) for raw in raws[:3]] == [Cause.REPLAYED] * 3
    later_ms = NOW_MS + TTL_MS + 2 * SKEW_MS + 1
    assert cause(Draft(nonce=b"z" * 16, issued_at_ms=later_ms).raw(), by, later_ms) is None
    assert by.nonces == 1


def test_a_clock_that_is_set_back_lets_nothing_in_twice() -> None:
    by = judge()
    assert cause(Draft().raw(), by) is None
    ahead_ms = NOW_MS + TTL_MS + 2 * SKEW_MS + 1
    assert (
        cause(Draft(nonce=b"z" * 16, issued_at_ms=ahead_ms).raw(), by, ahead_ms) is None
    )  # forgets the first
    assert cause(Draft().raw(), by) is Cause.CANNOT_JUDGE
    assert (
        cause(Draft(nonce=b"y" * 16, issued_at_ms=NOW_MS + SKEW_MS + 1).raw(), by, NOW_MS + SKEW_MS + 1)
        is None
    )


@pytest.mark.parametrize("boot", [NO_BOOT, b"boot-no0"])
def test_after_a_restart_only_what_cannot_have_been_used_is_judged(boot: bytes) -> None:
    by = judge(started_at_ms=NOW_MS - 1)
    assert cause(Draft(boot=boot).raw(), by) is Cause.CANNOT_JUDGE
    assert cause(Draft(boot=boot, issued_at_ms=NOW_MS - 1 + SKEW_MS).raw(), by) is Cause.CANNOT_JUDGE
    assert cause(Draft().raw(), by) is None  # made for this run of the gate: no other can have seen it
    later_ms = NOW_MS + SKEW_MS
    assert cause(Draft(boot=boot, issued_at_ms=later_ms, nonce=b"z" * 16).raw(), by, later_ms) is None


def test_both_keys_are_believed_while_they_rotate() -> None:
    new = key_of("lobby-1", b"other secret " * 3)
    by = judge(new, KEY)
    assert cause(Draft(key=new).raw(), by) is None
    assert cause(Draft(nonce=b"z" * 16).raw(), by) is None
    by.rekey([new], NOW_MS)
    assert cause(Draft(nonce=b"y" * 16).raw(), by) is None  # it was on the way
    late_ms = NOW_MS + TTL_MS + SKEW_MS
    assert cause(Draft(nonce=b"x" * 16, issued_at_ms=late_ms).raw(), by, late_ms) is Cause.UNKNOWN_KEY
    assert cause(Draft(key=new).raw(), by) is Cause.REPLAYED  # what was used stays used


# -- requests

FACTS = client_facts("192.0.2.7", 40_001, "s-1", True, "shop.example", "ab" * 32)
FORWARDED = b"x-forwarded-for: 192.0.2.7\r\n"


def signed(signer: RequestSigner, method: bytes = b"GET", target: bytes = b"/a?b") -> bytes:
    line = signer.line(FACTS, b"c-1", method, target, FORWARDED)
    assert line.endswith(b"\r\n")
    name, _, value = line[:-2].partition(b": ")
    assert name == request_proof.HEADER
    return value


def pair() -> tuple[RequestSigner, RequestJudge]:
    return RequestSigner(SECRET), RequestJudge(SECRET)


def test_a_good_request_says_whose_it_is() -> None:
    signer, by = pair()
    expected = RequestFacts("192.0.2.7", 40_001, "s-1", "c-1", True, "shop.example", "ab" * 32)
    for _ in range(3):
        assert by.judge([signed(signer)], b"GET", b"/a?b", FORWARDED) == expected


def test_what_a_client_chose_cannot_break_the_form() -> None:
    facts = client_facts("fe80::1%eth0", 1, "a b", True, "x y/\r\n", "")
    assert facts == b"fe80::1 1 - tls/-/-"
    assert client_facts("", 0, "") == b"- 0 - -"
    signer, by = pair()
    line = signer.line(facts, b"", b"GET", b"/", b"")
    assert isinstance(by.judge([line[19:-2]], b"GET", b"/", b""), RequestFacts)


def test_requests_hold_in_their_place_only() -> None:
    signer, by = pair()
    first, second, third = (signed(signer) for _ in range(3))

    def why(
        value: bytes, method: bytes = b"GET", target: bytes = b"/a?b", forwarded: bytes = FORWARDED
    ) -> Cause | None:
        found = by.judge([value], method, target, forwarded)
        return found.cause if isinstance(found, Unproven) else None

    assert why(second) is Cause.REPLAYED  # the first is left out
    assert why(first) is None
    assert why(first) is Cause.REPLAYED
    assert why(third) is Cause.REPLAYED
    assert why(second, method=b"POST") is Cause.BAD_MAC
    assert why(second, target=b"/admin") is Cause.BAD_MAC
    assert why(second, forwarded=b"x-forwarded-for: 10.0.0.1\r\n") is Cause.BAD_MAC
    assert why(second.replace(b"192.0.2.7", b"192.0.2.8")) is Cause.BAD_MAC
    assert why(second[:-1] + (b"0" if second[-1:] != b"0" else b"1")) is Cause.BAD_MAC
    assert why(signed(RequestSigner(bytes(32)))) is Cause.BAD_MAC  # of another connection
    assert why(second[:-MAC_BYTES]) is Cause.MALFORMED
    assert why(b"v2" + second[2:]) is Cause.MALFORMED
    assert why(b"") is Cause.MALFORMED
    for values, expected in (([], Cause.MISSING), ([second, second], Cause.MALFORMED)):
        found = by.judge(values, b"GET", b"/a?b", FORWARDED)
        assert isinstance(found, Unproven)
        assert found.cause is expected
    assert why(second) is None
