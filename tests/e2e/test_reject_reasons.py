"""Every reason that a socket can provoke, provoked over a socket against real processes.

Each provocation is judged by the same four marks: its counter in /metrics rises by exactly as much as was done, the
log names it, whoever did it is told (where there is somebody to tell), and others go on being served. The last
test compares what was provoked with the table of reasons, without those that `provocations` names for other files.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.processes import PROXY, Fleet, http_call, until
from tests.support.provocations import (
    ELSEWHERE,
    OF_APPROVALS,
    OF_CALLERS,
    OF_CLIENTS,
    OF_GAMES,
    OF_GUARDS,
    OF_ROUTING,
    OF_RUNS,
    OF_TLS,
    OF_TRANSFERS,
    Provocations,
    refused,
)
from tests.support.raw_peer import (
    Closed,
    RawLink,
    RawPeer,
    RawProxy,
    deliver,
    dial,
    node_key,
    now_ms,
    position,
    prefixed,
    snapshot,
    welcome,
)
from tests.support.trust import trusted

from fairlead.protocol import messages as m
from fairlead.protocol.keys import Role
from fairlead.protocol.reasons import TRAITS, Reason, traits
from fairlead.protocol.registry import Descriptor, Item, Position, canonical_item, decode_item
from fairlead.protocol.trust import TOKEN_BYTES

pytestmark = pytest.mark.e2e

PREVIOUS_SECRET = "9f1c6b3a7d2e48f05a6b9c1d3e7f2048a1b5c9d3e7f1a2b4c6d8e0f1a3b5c7d9"

NOT_BY_A_SOCKET = {
    Reason.LINK_CLOSED: "a planned end is no refusal: it is logged and shown, not counted",
    Reason.STORE_UNAVAILABLE: "needs a disk that fails",
    Reason.BACKEND_NONE_AVAILABLE: "a listener without a backend is refused with the configuration",
    Reason.HANDLER_KILLS_NODE: "three deaths of a node: test_poison.py",
    Reason.INTERNAL_ERROR: "a defect by definition; asserted to stay at zero",
}

_here = Provocations()
provokes, _provoked = _here.provokes, _here.reasons


@pytest.fixture(autouse=True)
def _remember(request: pytest.FixtureRequest) -> None:
    _here.tests_run.add(request.node.name)


# -- the main fleet: a proxy, two demo nodes, one node whose commands end badly


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(
        tmp_path_factory.mktemp("fleet"),
        lab=True,
        proxy={
            "dispatch": {"public": True, "batch_items_max": 5, "args_bytes_max": 2_048},
            "messaging": {"node_timeout_millis": 3_000},
        },
    )
    with closing(made.start()):
        yield made


_identities = iter(f"raw-{number}" for number in range(1, 10_000))


@contextmanager
def peer(fleet: Fleet, identity: str = "", *, secret: str = "", **more: Any) -> Iterator[RawPeer]:
    """A hand-made node that has only connected."""
    identity = identity or next(_identities)
    role = more.get("role", Role.NODE)
    key = more.pop("key", None) or node_key(secret or fleet.secret, identity, role=role)
    made = RawPeer(fleet.control, identity, key, **more)
    with made:
        yield made


@contextmanager
def introduced(fleet: Fleet, identity: str = "", **more: Any) -> Iterator[RawPeer]:
    """A hand-made node with a link. It says goodbye if the test has not ended it."""
    with peer(fleet, identity) as made:
        made.introduce(**more)
        yield made


BEAT = m.Heartbeat(1, 0, 0, 0, Position())


# -- handshake


@pytest.mark.parametrize(
    "opening",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"fairlead\x00\x00\x01" + bytes(8) + b"\x05raw-1",
        b"fairlead\x02\x01\x01" + bytes(8) + b"\x05raw-1",
        b"fairlead\x01\x01\x07" + bytes(8) + b"\x05raw-1",
        b"fairlead\x01\x01\x04" + bytes(8) + b"\x05raw-1",
        b"fairlead\x01\x01\x01" + bytes(8) + b"\x00",
        b"fairlead\x01\x01\x01" + bytes(8) + b"\x05RAW-1",
        b"fairlead\x01\x01\x01" + bytes(8) + b"\xff" + b"a" * 255,
        bytes(range(256)) * 16,
    ],
)
def test_what_is_no_preamble_is_refused(fleet: Fleet, opening: bytes) -> None:
    with provokes(fleet, Reason.HANDSHAKE_MALFORMED), dial(fleet.control) as sock:
        sock.sendall(opening)
        assert _rest_of(sock) == b"", "a stranger is told nothing"


def test_a_first_message_of_a_wrong_length_is_refused(fleet: Fleet) -> None:
    with peer(fleet) as one, provokes(fleet, Reason.HANDSHAKE_MALFORMED):
        clear = one.opening[:-50]
        one.send_bytes(clear + (60_000).to_bytes(2, "big"))
        assert one.rest() == []


def test_a_key_that_is_neither_current_nor_previous(fleet: Fleet) -> None:
    with peer(fleet, secret="ab" * 16 + PREVIOUS_SECRET[:32]) as one:
        with provokes(fleet, Reason.HANDSHAKE_KEY_UNKNOWN):
            one.send_bytes(one.opening)
            assert one.rest() == []


def test_a_claimed_key_that_is_not_held(fleet: Fleet) -> None:
    with peer(fleet, "lobby-1", psk=bytes(range(32))) as one, provokes(fleet, Reason.HANDSHAKE_AUTH_FAILED):
        one.send_bytes(one.opening)
        assert one.rest() == []
    assert fleet.node_state("lobby-1")["state"] == "ONLINE"


def test_a_changed_byte_of_the_preamble_fails_the_handshake(fleet: Fleet) -> None:
    with peer(fleet) as one, provokes(fleet, Reason.HANDSHAKE_AUTH_FAILED):
        one.send_bytes(one.opening[:9] + b"\x05" + one.opening[10:])  # the highest version
        assert one.rest() == []


def test_a_proof_that_does_not_authenticate_makes_no_link(fleet: Fleet) -> None:
    with peer(fleet) as one, provokes(fleet, Reason.HANDSHAKE_AUTH_FAILED):
        one.shake()
        one.send_bytes(prefixed(bytes(40)))
        assert [each.reason for each in one.rest()] == ["HANDSHAKE_AUTH_FAILED"]
    assert fleet.ops("GET", f"/api/nodes/{one.us}").status == 404


@pytest.mark.parametrize("part", ["nothing", "preamble", "first message", "no proof"])
def test_closing_before_the_handshake_is_finished(fleet: Fleet, part: str) -> None:
    with peer(fleet) as one, provokes(fleet, Reason.HANDSHAKE_CLOSED):
        match part:
            case "preamble":
                one.send_bytes(one.opening[:20])
            case "first message":
                one.send_bytes(one.opening[:-1])
            case "no proof":
                one.shake()
        one.disconnect()
    assert fleet.ops("GET", f"/api/nodes/{one.us}").status == 404


def test_a_recorded_first_message_makes_no_link(fleet: Fleet) -> None:
    with introduced(fleet) as one:
        with provokes(fleet, Reason.HANDSHAKE_REPLAYED), dial(fleet.control) as sock:
            sock.sendall(one.sent)  # the whole recording, HELLO included
            assert _rest_of(sock) == b""
        one.say(BEAT)
        one.expect(m.HeartbeatAck)  # and the honest link goes on


def test_an_identity_that_is_not_listed(fleet: Fleet) -> None:
    with peer(fleet, "nobody-1") as one, provokes(fleet, Reason.IDENTITY_NOT_LISTED):
        one.send_bytes(one.opening)
        assert one.rest() == []
    assert fleet.ops("GET", "/api/nodes/nobody-1").status == 404, "a claim fills no table"


def test_a_role_that_is_not_served(fleet: Fleet) -> None:
    with peer(fleet, role=Role.EDGE) as one, provokes(fleet, Reason.ROLE_NOT_SERVED):
        one.send_bytes(one.opening)
        assert one.rest() == []


def test_no_common_version_is_told_inside_the_encrypted_verdict(fleet: Fleet) -> None:
    with peer(fleet, wire=(7, 9)) as one, provokes(fleet, Reason.VERSION_MISMATCH):
        reason, version, detail, proxy = one.shake()
        assert (reason, version, proxy) == ("VERSION_MISMATCH", 0, "proxy")
        assert "7..9" in detail
        assert one.rest() == []


def test_a_second_incarnation_is_refused_while_the_first_lives(fleet: Fleet) -> None:
    with introduced(fleet) as first:
        with peer(fleet, first.us) as second, provokes(fleet, Reason.INCARNATION_CONFLICT):
            second.shake()
            second.say(second.hello(incarnation="another"))
            assert [each.reason for each in second.rest()] == ["INCARNATION_CONFLICT"]
        first.say(BEAT)
        first.expect(m.HeartbeatAck)


def test_a_revoked_identity_loses_its_link_and_its_key(fleet: Fleet) -> None:
    with introduced(fleet) as one:
        with provokes(fleet, Reason.IDENTITY_REVOKED):
            answer = fleet.ops("POST", f"/api/nodes/{one.us}/revoke")
            assert answer.json() == {"id": one.us, "key_epoch": 1}
            assert one.rest()[-1].reason == "IDENTITY_REVOKED"
    with peer(fleet, one.us) as again, provokes(fleet, Reason.IDENTITY_REVOKED):
        again.send_bytes(again.opening)
        assert again.rest() == []
    with peer(fleet, one.us, key=node_key(fleet.secret, one.us, epoch=1)) as renewed:
        assert renewed.introduce().proxy_id == "proxy"


def test_an_identity_can_be_revoked_before_it_was_ever_seen(fleet: Fleet) -> None:
    """A stolen key must not stay good because its node happens to be away."""
    identity = next(_identities)
    answer = fleet.ops("POST", f"/api/nodes/{identity}/revoke")
    assert (answer.status, answer.json()) == (200, {"id": identity, "key_epoch": 1})
    with peer(fleet, identity) as one, provokes(fleet, Reason.IDENTITY_REVOKED):
        one.send_bytes(one.opening)
        assert one.rest() == []


# -- a link: refusals that it survives


def _wide() -> bytes:
    """An envelope body of which the packet is within bounds and the payload is not."""
    return b"\x91\xc6" + (65_600).to_bytes(4, "big") + bytes(65_600)


def _replay(one: RawPeer, message: m.Message) -> None:
    one.say(BEAT)
    one.say(message, nonce=one.nonce)


_HOUR_MS = 3_600_000
SURVIVED: list[tuple[Reason, int, Callable[[RawPeer], None]]] = [
    (Reason.VERSION_MISMATCH, 2, lambda one: (one.say(BEAT, version=2), one.say(BEAT, version=200))),
    (Reason.UNEXPECTED_SENDER, 1, lambda one: one.say(BEAT, sender="lobby-1")),
    (Reason.WRONG_AUDIENCE, 1, lambda one: one.say(BEAT, audience="lobby-1")),
    (
        Reason.INVALID_TIMESTAMP,
        4,
        lambda one: (
            one.say(BEAT, issued_at_ms=now_ms() - _HOUR_MS),
            one.say(BEAT, issued_at_ms=now_ms() + _HOUR_MS),
            one.say(BEAT, ttl_ms=0),
            one.say(BEAT, ttl_ms=10_001),
        ),
    ),
    (Reason.PAYLOAD_TOO_LARGE, 1, lambda one: one.send_envelopes(one.envelope(3, _wide()))),
    (Reason.REPLAYED_ENVELOPE, 1, lambda one: _replay(one, BEAT)),
    (Reason.REPLAYED_REQUEST, 1, lambda one: _replay(one, m.RegistryRequest(Position()))),
    (Reason.UNSUPPORTED_TYPE, 2, lambda one: (one.say_body(99, []), one.say_body(0, []))),
    (Reason.UNAUTHORIZED_TYPE, 2, lambda one: (one.say(welcome()), one.say(one.hello()))),
    (Reason.MALFORMED_PAYLOAD, 2, lambda one: (one.say_body(3, ["x"]), one.say_body(31, [1, 2]))),
]


@pytest.mark.parametrize(("reason", "times", "act"), SURVIVED, ids=[row[0].value for row in SURVIVED])
def test_a_refused_message_is_told_and_the_link_goes_on(
    fleet: Fleet, reason: Reason, times: int, act: Callable[[RawPeer], None]
) -> None:
    with introduced(fleet) as one:
        with provokes(fleet, reason, times=times):
            act(one)
            for _ in range(times):
                assert one.expect(m.Notice).reason == reason
        one.say(BEAT)
        one.expect(m.HeartbeatAck)
        assert fleet.node_state(one.us)["rejects"] == {reason.value: times}


MALFORMED = {
    "no array": b"\xc3",
    "too few": b"\x93\x01\x03\xa1x",
    "a float": b"\x99\x01\xcb@\x08\x00\x00\x00\x00\x00\x00" + b"\xa1a\xa1b\x01\x01\x01\xa0\x90",
    "an extension": b"\x99\x01\x03\xa1a\xa1b\x01\x01\x01\xa0\x91\xd4\x01\x00",
    "a boolean for a number": b"\x99\x01\xc3\xa1a\xa1b\x01\x01\x01\xa0\x90",
    "a key twice": b"\x99\x01\x03\xa1a\xa1b\x01\x01\x01\xa0\x91\x82\xa1k\x01\xa1k\x02",
    "too deep": b"\x99\x01\x03\xa1a\xa1b\x01\x01\x01\xa0" + b"\x91" * 5_000 + b"\x90",
    "cut off": b"\x99\x01\x03\xa1a\xa1b\x01\x01\x01\xa0\xdd\xff\xff\xff\xff",
    "no UTF-8": b"\x99\x01\x03\xa1\xff\xa1b\x01\x01\x01\xa0\x90",
    "more behind": b"\x99\x01\x03\xa1a\xa1b\x01\x01\x01\xa0\x90\x90",
    "nothing": b"",
}


def test_what_is_no_envelope_is_refused(fleet: Fleet) -> None:
    with introduced(fleet) as one, provokes(fleet, Reason.MALFORMED_ENVELOPE, times=len(MALFORMED)):
        one.send_envelopes(*MALFORMED.values())
        assert [one.expect(m.Notice).reason for _ in MALFORMED] == ["MALFORMED_ENVELOPE"] * len(MALFORMED)


def test_a_message_before_hello_is_not_acted_upon(fleet: Fleet) -> None:
    with peer(fleet) as one, provokes(fleet, Reason.UNAUTHORIZED_TYPE):
        one.shake()
        one.say(m.Announce((canonical_item(Descriptor("raw:early")).canonical,)))
        assert one.expect(m.Notice).reason == "UNAUTHORIZED_TYPE"
    names = [each["name"] for each in fleet.ops("GET", "/api/commands").json()["commands"]]
    assert "raw:early" not in names


def test_a_statement_about_the_run_of_another_node(fleet: Fleet) -> None:
    run_id = fleet.dispatch("demo:sleep", target="lobby-1", wait_s=0, ms=300).json()["run_id"]
    with introduced(fleet) as one, provokes(fleet, Reason.FOREIGN_STATEMENT, times=2):
        one.say(m.Result(run_id, 1, True, b'"forged"', "", "", 1, 2))
        one.say(m.DeliveryRefused(run_id, 1, "NODE_DRAINING", "forged"))
        assert [one.expect(m.Notice).reason for _ in range(2)] == ["FOREIGN_STATEMENT"] * 2
    run = until(lambda: _ended(fleet, run_id), "the run ends", more=fleet.tails)
    assert (run["status"], run["node_id"]) == ("COMPLETED", "lobby-1")
    assert run["result"]["slept_ms"] == 300


def test_a_refusal_for_a_reason_that_nobody_knows(fleet: Fleet) -> None:
    with introduced(fleet) as one, provokes(fleet, Reason.UNKNOWN_REASON):
        one.say(m.RegistryNack(Position("f", 1, 1), Position(), "NO_SUCH_REASON", "raw:x", "because"))
    assert fleet.node_state(one.us)["registry"]["last_nack"]["reason"] == "UNKNOWN_REASON"


def test_every_report_is_acknowledged_however_many_come_at_once(fleet: Fleet) -> None:
    """Of runs that are unknown here, too: else the node would keep them for ever."""
    ids = {f"{number:08}".ljust(128, "\N{GRINNING FACE}") for number in range(600)}
    acknowledged: set[str] = set()
    with introduced(fleet) as one:
        one.say(*(m.Result(each, 1, False, b"", "HANDLER_FAILED", "", 1, 2) for each in sorted(ids)))
        while acknowledged != ids:
            acknowledged |= {run_id for run_id, _ in one.expect(m.ResultAck).runs}


def test_notices_of_a_peer_cannot_flood_the_log(fleet: Fleet) -> None:
    def lines() -> int:
        return sum("refused_by_node" in line for line in fleet.processes[PROXY].log().splitlines())

    before, size = lines(), len(fleet.processes[PROXY].log())
    with introduced(fleet) as one:
        one.say(*(m.Notice("VERSION_MISMATCH", "x" * 2_000) for _ in range(500)))
        one.say(BEAT)
        one.expect(m.HeartbeatAck)
    fleet.serves()
    assert lines() - before <= 20
    assert len(fleet.processes[PROXY].log()) - size < 100_000


# -- a link: what ends it


def test_a_frame_that_does_not_authenticate(fleet: Fleet) -> None:
    with introduced(fleet) as one, provokes(fleet, Reason.DECRYPT_FAILED):
        frame = bytearray(one.frame(0, bytes(40)))
        frame[20] ^= 1
        one.send_bytes(bytes(frame))
        assert [each.reason for each in one.rest()] == ["DECRYPT_FAILED"]


def test_a_replayed_frame(fleet: Fleet) -> None:
    with introduced(fleet) as one, provokes(fleet, Reason.DECRYPT_FAILED):
        before = len(one.sent)
        one.say(BEAT)
        one.send_bytes(one.sent[before:])
        assert [type(each) for each in one.rest()] == [m.HeartbeatAck, Closed]


def test_an_envelope_of_gigabytes_is_refused_by_its_length(fleet: Fleet) -> None:
    with introduced(fleet) as one, provokes(fleet, Reason.PACKET_TOO_LARGE):
        one.send_bytes(one.frame(0, (1 << 31).to_bytes(4, "big")))
        assert [each.reason for each in one.rest()] == ["PACKET_TOO_LARGE"]


def test_a_frame_of_an_unknown_kind(fleet: Fleet) -> None:
    with introduced(fleet) as one, provokes(fleet, Reason.MALFORMED_ENVELOPE):
        one.send_bytes(one.frame(9, b""))
        assert [each.reason for each in one.rest()] == ["MALFORMED_ENVELOPE"]


def test_a_peer_that_goes_on_misbehaving_is_let_go(fleet: Fleet) -> None:
    with introduced(fleet) as one:
        with provokes(fleet, Reason.LINK_MISBEHAVED):
            one.say(*(BEAT for _ in range(101)), sender="lobby-1")
            assert one.rest()[-1].reason == "LINK_MISBEHAVED"


def test_a_connection_that_just_ends(fleet: Fleet) -> None:
    with introduced(fleet) as one, provokes(fleet, Reason.LINK_TRUNCATED):
        one.disconnect()
    assert fleet.node_state(one.us)["last_end"]["reason"] == "LINK_TRUNCATED"


def test_a_link_that_never_introduced_itself_ends_as_visibly(fleet: Fleet) -> None:
    with peer(fleet) as one, provokes(fleet, Reason.LINK_TRUNCATED):
        one.shake()
        one.say(m.Notice("", "the proof that makes it a link"))
        one.disconnect()


def test_a_planned_end_is_no_refusal(fleet: Fleet) -> None:
    with introduced(fleet) as one:
        one.close()
        assert one.rest() == []
    until(lambda: fleet.node_state(one.us)["state"] == "OFFLINE", "it said goodbye")
    assert fleet.node_state(one.us)["last_end"]["reason"] == "LINK_CLOSED"
    assert fleet.rejects(Reason.LINK_CLOSED) == 0
    until(lambda: f" link_closed node={one.us} " in fleet.processes[PROXY].log(), "a log line")


def test_flags_and_rollouts_that_are_not_there_or_in_each_others_way(fleet: Fleet) -> None:
    with provokes(fleet, Reason.FLAG_UNKNOWN):
        refused(fleet.ops("DELETE", "/api/flags/nobodys"), Reason.FLAG_UNKNOWN)
    with provokes(fleet, Reason.ROLLOUT_UNKNOWN):
        refused(fleet.ops("POST", "/api/rollouts/none/promote", {}), Reason.ROLLOUT_UNKNOWN)
    plan = {
        "name": "t", "kind": "command", "command": "t:one", "candidate": "t:two", "gates": [],
        "steps": [{"percent": 100}],
    }  # fmt: skip
    begun = fleet.ops("POST", "/api/rollouts", plan).json()["id"]
    with provokes(fleet, Reason.ROLLOUT_CONFLICT):
        refused(fleet.ops("POST", "/api/rollouts", plan), Reason.ROLLOUT_CONFLICT)
    assert fleet.ops("POST", f"/api/rollouts/{begun}/abort", {}).json()["state"] == "rolled_back"


def test_a_peer_cannot_make_the_proxy_count_what_did_not_happen(fleet: Fleet) -> None:
    """VERSION_MISMATCH moves gates, and the kill switch pages somebody: not on the word of one node."""
    forged = (Reason.VERSION_MISMATCH, Reason.DISPATCH_KILL_SWITCH)
    before = {each: fleet.rejects(each) for each in forged}
    with provokes(fleet, Reason.LINK_ENDED_BY_PEER, times=len(forged)):
        for reason in forged:
            with introduced(fleet) as one:
                one.close(reason.value, "forged")
                assert one.rest() == []
    assert {each: fleet.rejects(each) for each in forged} == before
    assert "VERSION_MISMATCH: forged" in "".join(fleet.refusals_logged(Reason.LINK_ENDED_BY_PEER))


def test_a_newer_link_of_the_same_process_takes_over(fleet: Fleet) -> None:
    with introduced(fleet) as older:
        with provokes(fleet, Reason.LINK_DISPLACED), peer(fleet, older.us) as newer:
            newer.introduce()
            assert [each.reason for each in older.rest()] == ["LINK_DISPLACED"]
            newer.say(BEAT)
            newer.expect(m.HeartbeatAck)
            assert fleet.node_state(older.us)["state"] == "ONLINE"
            newer.close()
            newer.rest()


def test_silent_peers(fleet: Fleet) -> None:
    """All at once, because each takes as long as its deadline."""
    with ExitStack() as stack:
        stack.enter_context(provokes(fleet, Reason.HANDSHAKE_TIMEOUT, times=4))
        stack.enter_context(provokes(fleet, Reason.LINK_IDLE_TIMEOUT))
        idle = stack.enter_context(introduced(fleet))
        silent = stack.enter_context(dial(fleet.control))
        slow = stack.enter_context(peer(fleet))
        slow.send_bytes(slow.opening[:9])
        half = stack.enter_context(peer(fleet))
        half.send_bytes(half.opening[:-3])
        unproven = stack.enter_context(peer(fleet))
        unproven.shake()
        assert _rest_of(silent) == b""
        assert slow.rest() == half.rest() == unproven.rest() == []
        assert idle.rest()[-1] == Closed("LINK_IDLE_TIMEOUT", "")


def test_a_link_that_is_silent_before_hello_is_counted_too(fleet: Fleet) -> None:
    with peer(fleet) as one, provokes(fleet, Reason.LINK_IDLE_TIMEOUT):
        one.shake()
        one.say(m.Notice("", "the proof that makes it a link"))
        assert one.rest()[-1] == Closed("LINK_IDLE_TIMEOUT", "")


# -- registry


def _big(name: str, **more: Any) -> Descriptor:
    text = "\N{GRINNING FACE}" * 1_024
    return Descriptor(name, description=text, usage=text, permission=text, **more)


def test_announcements_are_judged_one_by_one(fleet: Fleet) -> None:
    expected = {
        "demo:mine": Reason.NAMESPACE_NOT_GRANTED,
        "raw:standing": Reason.DESCRIPTOR_CONFLICT,
        "raw:old": Reason.DESCRIPTOR_STALE,
        "?": Reason.DESCRIPTOR_INVALID,
    }
    with introduced(fleet) as one:
        first = one.announce(Descriptor("raw:standing"), Descriptor("raw:old", version=3))
        assert set(first.accepted) == {"raw:standing", "raw:old"}
        with provokes(fleet, *expected.values()):
            told = one.announce(
                Descriptor("demo:mine"), Descriptor("raw:standing", effect="idempotent"),
                Descriptor("raw:old", version=2), b"\xc1", Descriptor("raw:good"),
            )  # fmt: skip
        assert told.accepted == ("raw:good",)
        assert {name: reason for name, reason, _ in told.refused} == expected
    seen = {each["command"]: each["reason"] for each in fleet.node_state(one.us)["announce_refused"]}
    assert seen == expected


INVALID = {
    "upper case": Descriptor("raw:UPPER"),
    "a loop of itself": Descriptor("raw:proxy", runs_on="proxy"),
    "no such effect": Descriptor("raw:effect", effect="twice"),
    "version": Descriptor("raw:version", version=0),
    "not canonical": b"\x9c" + b"\xd9\x05raw:x" + canonical_item(Descriptor("raw:x")).canonical[7:],
    "empty": b"",
    "nested": b"\x91" * 10_000,
    "large": _big("raw:large", aliases=tuple(f"a{number:063}" for number in range(64))),
}


def test_invalid_descriptors(fleet: Fleet) -> None:
    with introduced(fleet) as one, provokes(fleet, Reason.DESCRIPTOR_INVALID, times=len(INVALID)):
        told = one.announce(*INVALID.values())
        assert told.accepted == ()
        assert [reason for _, reason, _ in told.refused] == ["DESCRIPTOR_INVALID"] * len(INVALID)


def test_a_node_refuses_what_the_proxy_offers_and_both_say_so(fleet: Fleet) -> None:
    with introduced(fleet) as one, provokes(fleet, Reason.REGISTRY_DIGEST_MISMATCH):
        one.say(m.RegistryRequest(Position(), True))
        begin = one.expect(m.SnapshotBegin)
        one.say(m.RegistryNack(begin.position, Position(), "REGISTRY_DIGEST_MISMATCH", "raw:x", "differs"))
        nack = until(
            lambda: fleet.node_state(one.us)["registry"]["last_nack"],
            "the refusal is shown",
            more=fleet.tails,
        )
        assert (nack["reason"], nack["detail"]) == ("REGISTRY_DIGEST_MISMATCH", "differs")


# -- dispatch and operators

RUN = {"command": "demo:echo", "args": {"text": "x"}}
POSTS: list[tuple[Reason, str, Any, dict[str, str]]] = [
    (Reason.BODY_MALFORMED, "dispatch", b"{", {}),
    (Reason.BODY_MALFORMED, "dispatch", b"", {}),
    (Reason.BODY_MALFORMED, "dispatch", b"\xff\xfe", {}),
    (Reason.BODY_MALFORMED, "dispatch", b"[" * 20_000, {}),
    (Reason.BODY_MALFORMED, "dispatch", b'{"command": "demo:echo", "args": {"text": "\\ud800"}}', {}),
    (Reason.BODY_MALFORMED, "dispatch", {**RUN, "no such key": 1}, {}),
    (Reason.BODY_MALFORMED, "dispatch", {**RUN, "args": ["x"]}, {}),
    (Reason.BODY_MALFORMED, "dispatch", {**RUN, "deadline_ms": 1.5}, {}),
    (Reason.BODY_MALFORMED, "dispatch", {**RUN, "tenant": "../other"}, {}),
    (Reason.BODY_MALFORMED, "dispatch/batch", [], {}),
    (Reason.BODY_TOO_LARGE, "dispatch", {**RUN, "args": {"text": "x" * 3_000}}, {}),
    (Reason.BATCH_TOO_LARGE, "dispatch/batch", [RUN] * 6, {}),
    (Reason.COMMAND_UNKNOWN, "dispatch", {"command": "demo:nothing"}, {}),
    (Reason.COMMAND_UNKNOWN, "dispatch", {"command": ""}, {}),
    (Reason.ARGUMENTS_INVALID, "dispatch", {**RUN, "args": {"text": 1}}, {}),
    (Reason.ARGUMENTS_INVALID, "dispatch", {"command": "demo:add", "args": {"key": "k", "amount": "3"}}, {}),
    (Reason.ARGUMENTS_INVALID, "dispatch", {"command": "demo:add", "args": {"nobody": None}}, {}),
    (Reason.TARGET_UNKNOWN, "dispatch", {**RUN, "target": "nobody"}, {}),
    (Reason.TARGET_INVALID, "dispatch", {**RUN, "target": "role=lobby,spare"}, {}),
    (Reason.DEADLINE_INVALID, "dispatch", {**RUN, "deadline_ms": 0}, {}),
    (Reason.DEADLINE_INVALID, "dispatch", {**RUN, "deadline_ms": 10**15}, {}),
    (Reason.IDEMPOTENCY_KEY_INVALID, "dispatch", RUN, {"idempotency-key": "x" * 201}),
    (
        Reason.IDEMPOTENCY_KEY_INVALID,
        "dispatch",
        {**RUN, "idempotency_key": "one"},
        {"idempotency-key": "two"},
    ),
]


@pytest.mark.parametrize(("reason", "path", "body", "headers"), POSTS)
def test_a_submission_that_is_refused(
    fleet: Fleet, reason: Reason, path: str, body: Any, headers: dict[str, str]
) -> None:
    with provokes(fleet, reason):
        refused(fleet.ops("POST", f"/api/{path}", body, headers), reason)


def test_the_items_of_a_batch_are_refused_one_by_one(fleet: Fleet) -> None:
    items = [RUN, {"command": "demo:nothing"}, {**RUN, "args": {"text": 1}}, 7]
    expected = [None, "COMMAND_UNKNOWN", "ARGUMENTS_INVALID", "BODY_MALFORMED"]
    with provokes(fleet, *(Reason(each) for each in expected if each)):
        answer = fleet.ops("POST", "/api/dispatch/batch", items, {"prefer": "wait=10"})
        told = answer.json()["items"]
        assert [each.get("reason") for each in told] == expected
        assert [each["status"] for each in told] == ["COMPLETED", *["REFUSED"] * 3]
        assert [each.get("http_status") for each in told] == [None, 404, 422, 400]


def test_an_idempotency_key_belongs_to_one_request(fleet: Fleet) -> None:
    first = fleet.dispatch("demo:echo", text="one", idempotency_key="key-1").json()
    again = fleet.dispatch("demo:echo", text="one", idempotency_key="key-1")
    assert again.json()["run_id"] == first["run_id"]
    assert again.headers["idempotent-replayed"] == "true"
    with provokes(fleet, Reason.IDEMPOTENCY_KEY_REUSED):
        answer = fleet.dispatch("demo:echo", text="two", idempotency_key="key-1")
        assert first["run_id"] in refused(answer, Reason.IDEMPOTENCY_KEY_REUSED).json()["detail"]


CALLS: list[tuple[Reason, str, str, str | None]] = [
    (Reason.UNAUTHENTICATED, "GET", "/api/nodes", None),
    (Reason.UNAUTHENTICATED, "POST", "/api/dispatch", None),
    (Reason.UNAUTHENTICATED, "POST", "/api/nodes/lobby-1/revoke", None),
    (Reason.UNAUTHENTICATED, "GET", "/status", "wrong" * 10),
    (Reason.UNAUTHENTICATED, "GET", "/metrics", "k\xe9y"),
    (Reason.ROUTE_UNKNOWN, "GET", "/nothing", ""),
    (Reason.ROUTE_UNKNOWN, "GET", "/api/nodes/a/b/c", ""),
    (Reason.ROUTE_UNKNOWN, "GET", "//health", ""),
    (Reason.ROUTE_UNKNOWN, "GET", "/api/nodes/", ""),
    (Reason.METHOD_NOT_ALLOWED, "PUT", "/health", ""),
    (Reason.METHOD_NOT_ALLOWED, "GET", "/api/dispatch", ""),
    (Reason.QUERY_INVALID, "GET", "/api/runs?limit=many", ""),
    (Reason.QUERY_INVALID, "GET", "/api/runs?limit=0", ""),
    (Reason.QUERY_INVALID, "GET", "/api/runs?limit=1&limit=2", ""),
    (Reason.QUERY_INVALID, "GET", "/api/runs?status=done", ""),
    (Reason.QUERY_INVALID, "GET", "/api/runs?no-such=1", ""),
    (Reason.QUERY_INVALID, "GET", "/api/runs?tenant=%ff", ""),
    (Reason.RUN_UNKNOWN, "GET", "/api/runs/nothing", ""),
    (Reason.RUN_UNKNOWN, "GET", "/api/runs/%00'%22;--", ""),
    (Reason.NODE_UNKNOWN, "GET", "/api/nodes/nobody", ""),
    (Reason.NODE_UNKNOWN, "POST", "/api/nodes/nobody/drain", ""),
    (Reason.NODE_UNKNOWN, "POST", "/api/nodes/nobody/revoke", ""),
    (Reason.NODE_UNKNOWN, "POST", "/api/nodes/nobody/resync", ""),
    (Reason.COMMAND_UNKNOWN, "DELETE", "/api/commands/raw:nothing", ""),
]


@pytest.mark.parametrize(("reason", "method", "path", "key"), CALLS)
def test_an_operators_call_that_is_refused(
    fleet: Fleet, reason: Reason, method: str, path: str, key: str | None
) -> None:
    with provokes(fleet, reason):
        answer = refused(fleet.ops(method, path, key=key), reason)
        assert (reason is Reason.METHOD_NOT_ALLOWED) == ("allow" in answer.headers)


def test_a_node_that_has_no_link_now(fleet: Fleet) -> None:
    with introduced(fleet) as one:
        one.close()
        one.rest()
    until(lambda: not fleet.node_state(one.us)["connected"], "the link has ended")
    with provokes(fleet, Reason.NODE_NOT_CONNECTED):
        refused(fleet.ops("POST", f"/api/nodes/{one.us}/resync"), Reason.NODE_NOT_CONNECTED)


def test_the_clients_port_serves_dispatch_only_with_a_key(fleet: Fleet) -> None:
    with provokes(fleet, Reason.UNAUTHENTICATED, times=2):
        refused(fleet.client("/api/dispatch", "POST", body=RUN), Reason.UNAUTHENTICATED)
        refused(fleet.client("/api/runs/x", headers={"x-ops-key": "wrong" * 10}), Reason.UNAUTHENTICATED)
    answer = fleet.client("/api/dispatch", "POST", body=RUN, headers={"x-ops-key": fleet.ops_key})
    assert answer.status == 202


# -- how runs end

RUNS: list[tuple[Reason, str, dict[str, Any]]] = [
    (Reason.HANDLER_FAILED, "demo:fail", {"message": "for good"}),
    (Reason.HANDLER_FAILED_TRANSIENT, "demo:fail", {"transient": True}),
    (Reason.HANDLER_TIMEOUT, "lab:slow", {}),
    (Reason.OUTCOME_UNKNOWN, "lab:slow-once", {}),
    (Reason.RESULT_INVALID, "lab:invalid", {}),
    (Reason.RESULT_TOO_LARGE, "lab:big", {"size": 70_000}),
]


def _ended_count(fleet: Fleet, status: str, reason: Reason) -> int:
    try:
        return int(fleet.metric("fairlead_runs_ended_total", status=status, reason=reason.value))
    except KeyError:
        return 0


@pytest.mark.parametrize(("reason", "command", "args"), RUNS, ids=[row[0].value for row in RUNS])
def test_a_run_that_fails_says_why(fleet: Fleet, reason: Reason, command: str, args: dict[str, Any]) -> None:
    before = _ended_count(fleet, "FAILED", reason)
    ended = fleet.dispatch(command, **args).json()
    assert (ended["status"], ended["reason"]) == ("FAILED", reason)
    run = fleet.ops("GET", f"/api/runs/{ended['run_id']}").json()
    assert run["reason"] == reason
    assert any(step.get("reason") == reason for step in run["timeline"])
    assert _ended_count(fleet, "FAILED", reason) == before + 1
    fleet.serves()
    _provoked.add(reason)


@pytest.mark.parametrize(("reason", "command", "args"), RUNS, ids=[row[0].value for row in RUNS])
def test_a_run_that_fails_is_counted_and_logged_as_every_refusal(
    fleet: Fleet, reason: Reason, command: str, args: dict[str, Any]
) -> None:
    with provokes(fleet, reason):
        fleet.dispatch(command, **args)


def test_one_target_of_several_that_fails(fleet: Fleet) -> None:
    before = _ended_count(fleet, "FAILED", Reason.CHILD_FAILED)
    run_id = fleet.dispatch("demo:fail", target="all").json()["run_id"]
    run = fleet.ops("GET", f"/api/runs/{run_id}").json()
    assert (run["status"], run["reason"]) == ("FAILED", "CHILD_FAILED")
    assert {each["node"]: each["reason"] for each in run["children"]} == {
        "lobby-1": "HANDLER_FAILED", "lobby-2": "HANDLER_FAILED",
    }  # fmt: skip
    assert _ended_count(fleet, "FAILED", Reason.CHILD_FAILED) == before + 1
    _provoked.add(Reason.CHILD_FAILED)


def test_a_run_that_no_node_takes_in_time(fleet: Fleet) -> None:
    assert fleet.ops("POST", "/api/nodes/lobby-1/pause").json()["paused"] is True
    try:
        with provokes(fleet, Reason.DEADLINE_EXCEEDED):
            ended = fleet.dispatch("demo:echo", target="lobby-1", deadline_ms=100, text="late").json()
            assert (ended["status"], ended["reason"]) == ("EXPIRED", "DEADLINE_EXCEEDED")
    finally:
        fleet.ops("POST", "/api/nodes/lobby-1/resume")
    assert _ended_count(fleet, "EXPIRED", Reason.DEADLINE_EXCEEDED) == 1


def test_a_peer_that_takes_nothing_is_let_go(fleet: Fleet) -> None:
    """It asks for the registry again and again and never reads: what waits for it is bounded."""
    names = [f"raw:big-{number}" for number in range(30)]
    with introduced(fleet) as one:
        for name in names:
            assert one.announce(_big(name)).accepted == (name,)
        with provokes(fleet, Reason.LINK_WRITE_TIMEOUT):
            request = m.RegistryRequest(Position(), True)
            try:
                for _ in range(450):  # twice what may wait, and what the kernel takes
                    one.say(request)
            except ConnectionError:
                pass  # let go in the middle
    for name in names:
        assert fleet.ops("DELETE", f"/api/commands/{name}").status == 200


def _ended(fleet: Fleet, run_id: str) -> Any:
    run = fleet.ops("GET", f"/api/runs/{run_id}").json()
    return run if run["status"] not in ("PENDING", "RUNNING") else None


def _rest_of(sock: socket.socket) -> bytes:
    """What the other side sends until it ends the connection, in order or by a reset."""
    found = b""
    try:
        while data := sock.recv(65_536):
            found += data
    except ConnectionError:
        pass
    return found


# -- the strict fleet: low limits, short times, and a backend that the test scripts


class ScriptedBackend:
    """A server that does what the path says."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._live: list[socket.socket] = []
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        for sock in self._live:
            sock.close()

    def _run(self) -> None:
        with ExitStack() as stack:
            while True:
                try:
                    sock, _ = self._listener.accept()
                except OSError:
                    return
                thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
                thread.start()
                stack.callback(thread.join, 5)
                stack.callback(_shut, sock)

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                head = b""
                while b"\r\n\r\n" not in head:
                    data = sock.recv(65_536)
                    if not data:
                        return
                    head += data
                self._act(sock, head.split(b" ")[1])
            except OSError:
                pass

    def _act(self, sock: socket.socket, path: bytes) -> None:
        match path:
            case b"/silent":
                sock.recv(1)
            case b"/gone":
                pass
            case b"/half":
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")
            case b"/garbage":
                sock.sendall(b"\x00\x01\x02 not HTTP\r\n\r\n")
            case b"/smuggled":
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc")
            case b"/big":
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 67108864\r\n\r\n")
                for _ in range(1_024):
                    sock.sendall(bytes(65_536))
            case _:
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
                sock.recv(1)


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # It has ended.


CONNECTIONS_MAX, PER_IP_MAX = 90, 60


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with closing(ScriptedBackend()) as backend:
        made = Fleet(
            tmp_path_factory.mktemp("strict"),
            nodes=("lobby-1",),
            backends={"scripted": backend.port},
            proxy={
                "limits": {
                    "head_timeout_s": 2, "body_idle_timeout_s": 1, "write_timeout_s": 1, "head_bytes_max": 2_048,
                    "upstream_response_timeout_s": 1, "tcp_idle_timeout_s": 1, "http_body_bytes_max": 1_000,
                    "connections_max": CONNECTIONS_MAX,
                },
                "rate_limits": {
                    "handshake_concurrent_max": 6, "handshake_concurrent_per_address_max": 3,
                    "connection_per_ip_max": PER_IP_MAX, "connection_per_ip_window_millis": 1_000,
                },
                "messaging": {"handshake_timeout_millis": 5_000},
                "dispatch": {"pending_max": 2, "body_bytes_max": 4_096, "args_bytes_max": 1_024},
            },
            environ={
                "SECURITY_PROXY_SECRET_PREVIOUS": PREVIOUS_SECRET,
                "SECURITY_PROXY_SECRET_PREVIOUS_EXPIRES_AT": "2020-01-31T12:00:00Z",
            },
        )  # fmt: skip
        with closing(made.start()):
            yield made


def test_the_previous_key_after_its_overlap(strict: Fleet) -> None:
    with peer(strict, secret=PREVIOUS_SECRET) as one, provokes(strict, Reason.PREVIOUS_KEY_EXPIRED):
        one.send_bytes(one.opening)
        assert one.rest() == []


def test_too_many_handshakes_at_once(strict: Fleet) -> None:
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(dial(strict.control, "127.0.0.21"))
        with provokes(strict, Reason.HANDSHAKE_ADDRESS_LIMIT), dial(strict.control, "127.0.0.21") as more:
            assert _rest_of(more) == b""
        for _ in range(3):
            stack.enter_context(dial(strict.control, "127.0.0.22"))
        with provokes(strict, Reason.HANDSHAKE_LIMIT), dial(strict.control, "127.0.0.23") as more:
            assert _rest_of(more) == b""
    with introduced(strict) as one:  # those who left gave their places back
        one.say(BEAT)
        one.expect(m.HeartbeatAck)


def test_a_full_outbox(strict: Fleet) -> None:
    strict.ops("POST", "/api/nodes/lobby-1/pause")
    runs = [strict.dispatch("demo:echo", wait_s=0, text="waits").json()["run_id"] for _ in range(2)]
    resume = lambda: strict.ops("POST", "/api/nodes/lobby-1/resume")  # noqa: E731
    with provokes(strict, Reason.QUEUE_FULL, times=2, serves=lambda: resume()):
        refused(strict.dispatch("demo:echo", wait_s=0, text="no room"), Reason.QUEUE_FULL)
        batch = strict.ops("POST", "/api/dispatch/batch", [RUN])
        refused(batch, Reason.QUEUE_FULL)
    for run_id in runs:
        run = until(lambda run_id=run_id: _ended(strict, run_id), "what was accepted ends", more=strict.tails)
        assert run["status"] == "COMPLETED"
    strict.serves()


UPGRADE = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
CHUNKED_1001 = (
    b"POST /silent HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n"
    + bytes(1_001)
    + b"\r\n"
)
HEADS: list[tuple[Reason, bytes]] = [
    (Reason.HTTP_HEAD_MALFORMED, b"\x16\x03\x01\x00\xa5"),
    (Reason.HTTP_HEAD_MALFORMED, b"GET / HTTP/1.1\r\n\r\n"),
    (Reason.HTTP_HEAD_MALFORMED, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    (Reason.HTTP_HEAD_MALFORMED, b"GET x HTTP/1.1\r\nHost: a\r\n\r\n"),
    (Reason.HTTP_HEAD_MALFORMED, b"GET / HTTP/1.1\r\nHost: a\r\nx: \x00\r\n\r\n"),
    (Reason.HTTP_HEAD_TOO_LARGE, b"GET / HTTP/1.1\r\nHost: a\r\nx: " + b"y" * 3_000),
    (Reason.HTTP_HEAD_TOO_LARGE, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x: y\r\n" * 150 + b"\r\n"),
    (Reason.HTTP_FRAMING_AMBIGUOUS, b"GET / HTTP/1.1\nHost: a\n\n"),
    (Reason.HTTP_FRAMING_AMBIGUOUS, b"GET / HTTP/1.1\r\nHost: a\r\nx: 1\r\n 2\r\n\r\n"),
    (
        Reason.HTTP_FRAMING_AMBIGUOUS,
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    ),
    (
        Reason.HTTP_FRAMING_AMBIGUOUS,
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    ),
    (Reason.HTTP_FRAMING_AMBIGUOUS, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc"),
    (Reason.HTTP_TARGET_TOO_LONG, b"GET /" + b"y" * 3_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    (
        Reason.HTTP_LOOP,
        b"OPTIONS / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + b"Via: 1.1 fairlead\r\n" * 5 + b"\r\n",
    ),
    (Reason.HTTP_MISDIRECTED, b"GET https://a/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
    (Reason.HTTP_UPGRADE_INVALID, UPGRADE + b"Sec-WebSocket-Version: 13\r\n\r\n"),
    (Reason.HTTP_UPGRADE_VERSION_UNSUPPORTED, UPGRADE + b"Sec-WebSocket-Version: 8\r\n\r\n"),
    (Reason.HTTP_VERSION_UNSUPPORTED, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    (Reason.HTTP_METHOD_UNSUPPORTED, b"TRACE / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
    (Reason.HTTP_METHOD_UNSUPPORTED, b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nConnection: close\r\n\r\n"),
    (Reason.HTTP_EXPECTATION_UNSUPPORTED, b"GET / HTTP/1.1\r\nHost: a\r\nExpect: more\r\n\r\n"),
    (
        Reason.HTTP_BODY_MALFORMED,
        b"POST /silent HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ),
    (Reason.HTTP_BODY_TOO_LARGE, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n"),
    (Reason.HTTP_BODY_TOO_LARGE, CHUNKED_1001),
    (Reason.HTTP_BODY_TOO_LARGE, CHUNKED_1001 + b"0\r\n\r\n"),
    (Reason.BACKEND_CLOSED_EARLY, b"GET /gone HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
    (Reason.BACKEND_RESPONSE_MALFORMED, b"GET /garbage HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
    (Reason.BACKEND_RESPONSE_MALFORMED, b"GET /smuggled HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
]


@pytest.mark.parametrize(("reason", "request_bytes"), HEADS)
def test_a_request_that_is_refused(strict: Fleet, reason: Reason, request_bytes: bytes) -> None:
    with provokes(strict, reason), dial(strict.http, "127.0.0.31") as sock:
        sock.sendall(request_bytes)
        answer = _rest_of(sock)
        assert answer.startswith(b"HTTP/1.1 %d " % traits(reason).status), answer
        assert b'"reason":"%b"' % reason.value.encode() in answer
        assert answer.count(b"\r\nHTTP/1.1 ") == 0, "one answer, and then the end"


def test_an_answer_cut_off_by_the_backend_is_cut_off_for_the_client(strict: Fleet) -> None:
    with provokes(strict, Reason.BACKEND_CLOSED_EARLY), dial(strict.http, "127.0.0.32") as sock:
        sock.sendall(b"GET /half HTTP/1.1\r\nHost: a\r\n\r\n")
        with pytest.raises(ConnectionResetError):  # nobody may take it for an end
            while sock.recv(65_536):
                pass


def test_a_client_that_goes_away_in_the_middle(strict: Fleet) -> None:
    with provokes(strict, Reason.CLIENT_GONE, times=2, logged=False):
        for part in (b"GET / HT", b"POST /silent HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc"):
            with dial(strict.http, "127.0.0.33") as sock:
                sock.sendall(part)


def test_slow_clients_and_backends(strict: Fleet) -> None:
    """All at once, because each takes as long as its deadline."""
    timeouts: dict[Reason, bytes] = {
        Reason.HTTP_HEAD_TIMEOUT: b"GET / HTTP/1.1\r\nHost:",
        Reason.HTTP_BODY_TIMEOUT: b"POST /silent HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc",
        Reason.BACKEND_TIMEOUT: b"GET /silent HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    }
    with ExitStack() as stack:
        stack.enter_context(
            provokes(strict, *timeouts, Reason.CLIENT_WRITE_TIMEOUT, Reason.RELAY_IDLE_TIMEOUT)
        )
        socks = {each: stack.enter_context(dial(strict.http, "127.0.0.34")) for each in timeouts}
        for reason, sent in timeouts.items():
            socks[reason].sendall(sent)
        game = stack.enter_context(dial(strict.game, "127.0.0.34"))
        stuck = stack.enter_context(dial(strict.http, "127.0.0.34"))
        stuck.sendall(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
        for reason, sock in socks.items():
            answer = _rest_of(sock)
            assert answer.startswith(b"HTTP/1.1 %d " % traits(reason).status), answer
            assert reason.value.encode() in answer
        assert _rest_of(game).startswith(b"welcome to lobby-1")


def _sessions(fleet: Fleet) -> int:
    return int(fleet.metric("fairlead_edge_sessions", listener="http"))


def test_too_many_new_connections_of_one_address(strict: Fleet) -> None:
    until(lambda: _sessions(strict) == 0, "earlier clients have left")
    with ExitStack() as stack, provokes(strict, Reason.CONNECTION_RATE_LIMIT):
        for _ in range(PER_IP_MAX):
            stack.enter_context(dial(strict.http, "127.0.0.41"))
        until(lambda: _sessions(strict) == PER_IP_MAX, "all of them are in", more=strict.tails)
        with dial(strict.http, "127.0.0.41") as one_more:
            answer = _rest_of(one_more)
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"\r\nretry-after: 1\r\n" in answer


def test_too_many_connections_at_once(strict: Fleet) -> None:
    until(lambda: _sessions(strict) == 0, "earlier clients have left")
    with ExitStack() as stack:

        def others_leave() -> None:
            stack.close()
            until(lambda: strict.client().status == 200, "places are given back", more=strict.tails)
            strict.serves()

        with provokes(strict, Reason.CONNECTION_LIMIT, serves=others_leave):
            for number in range(CONNECTIONS_MAX):
                stack.enter_context(dial(strict.http, f"127.0.0.{42 + number % 2}"))
            until(lambda: _sessions(strict) == CONNECTIONS_MAX, "all of them are in", more=strict.tails)
            with dial(strict.http, "127.0.0.44") as one_more:
                assert _rest_of(one_more).startswith(b"HTTP/1.1 503 ")


# -- a proxy that accepts no commands, before a backend that does not answer


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with ExitStack() as stack:
        # A listener whose queue is full: connecting to it hangs.
        deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = deaf.getsockname()
        for _ in range(4):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(address)
        made = Fleet(
            tmp_path_factory.mktemp("stopped"),
            nodes=(),
            backends={"deaf": address[1]},
            proxy={
                "rate_limits": {"connection_per_ip_max": 100_000, "routing_concurrent_max": 1},
                "limits": {"upstream_connect_timeout_s": 1},
            },
            environ={"DISPATCH_KILL_SWITCH": "true"},
        )
        with closing(made.start()):
            yield made


def test_the_kill_switch(stopped: Fleet) -> None:
    live = lambda: stopped.ops("GET", "/health/live").json()["status"] == "alive"  # noqa: E731
    with provokes(stopped, Reason.DISPATCH_KILL_SWITCH, times=2, serves=live):
        refused(stopped.ops("POST", "/api/dispatch", RUN), Reason.DISPATCH_KILL_SWITCH)
        refused(stopped.ops("POST", "/api/dispatch/batch", [RUN]), Reason.DISPATCH_KILL_SWITCH)
    check = stopped.ops("GET", "/health").json()["checks"]["dispatch"]
    assert (check["state"], check["reason"]) == ("warn", "DISPATCH_KILL_SWITCH")


def test_an_answer_that_would_be_too_large_is_not_sent(stopped: Fleet) -> None:
    """An announcement can be answered with more than it has itself."""
    good = [Descriptor(f"raw:{number:064}", timeout_ms=1) for number in range(628)]
    bad = [canonical_item(Descriptor(f"{number:02}" + "\x01" * 45)).canonical for number in range(99)]
    live = lambda: stopped.ops("GET", "/health/live").json()["status"] == "alive"  # noqa: E731
    with introduced(stopped) as one:
        with provokes(stopped, Reason.OUTBOUND_PAYLOAD_TOO_LARGE, serves=live):
            one.say(m.Announce((*bad, *(canonical_item(each).canonical for each in good))))
        one.say(BEAT)
        one.expect(m.HeartbeatAck)
    offered = [each["name"] for each in stopped.ops("GET", "/api/commands").json()["commands"]]
    assert sum(name.startswith("raw:") for name in offered) == len(good)


def test_a_backend_that_cannot_be_reached_and_a_full_router(stopped: Fleet) -> None:
    with provokes(stopped, Reason.BACKEND_UNREACHABLE, Reason.ROUTING_LIMIT, serves=lambda: None):
        with dial(stopped.http) as first:
            first.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            until(
                lambda: stopped.ops("GET", "/status").json()["sessions"]["routing"] == 1, "it is being routed"
            )
            refused(stopped.client("/"), Reason.ROUTING_LIMIT)
            assert b"BACKEND_UNREACHABLE" in _rest_of(first)


# -- a node before a proxy that lies


class Lied:
    """One real node, the hand-made proxy that it dials, and the registry it has been given."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.name = fleet, "lobby-1"
        self.proxy = RawProxy(fleet.control, fleet.secret, self.name)
        self.items: dict[str, Item] = {}
        self.held = Position()

    @contextmanager
    def link(self, synchronize: bool = True, **more: Any) -> Iterator[RawLink]:
        """A welcomed link, its registry one generation further than the last one."""
        link, hello = self.proxy.link()
        with link:
            link.say(welcome(**more))
            for raw in link.expect(m.Announce).descriptors:
                item = decode_item(raw)
                assert isinstance(item, Item)
                self.items[item.descriptor.name] = item
            self.held = link.expect(m.RegistryRequest).held
            assert hello.registry == self.held
            if synchronize:
                self.apply(link, list(self.items.values()))
            yield link
            link.close()
            link.rest()

    def apply(self, link: RawLink, items: Sequence[Item]) -> None:
        at = position(self.held.generation + 1, items)
        link.say(*snapshot(at, items))
        assert link.expect(m.RegistryAck).position == at
        self.held = at

    def serves(self, link: RawLink) -> Callable[[], None]:
        """The node still executes what it is given."""

        def check() -> None:
            run_id = f"run-{time.monotonic_ns()}"
            link.say(deliver(self.items["demo:echo"], run_id, args_json=b'{"text":"still here"}'))
            while (result := link.expect(m.Result)).run_id != run_id:
                pass
            assert result.completed, result
            assert b"still here" in result.value_json

        return check

    @contextmanager
    def provokes(self, link: RawLink, *reasons: Reason, times: int = 1) -> Iterator[None]:
        with provokes(self.fleet, *reasons, times=times, process=self.name, serves=self.serves(link)):
            yield


@pytest.fixture(scope="module")
def lied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lied]:
    fleet = Fleet(
        tmp_path_factory.mktemp("lied"),
        nodes=("lobby-1",),
        node={"worker": {"max_concurrent_tasks": 1, "max_queue_size": 1}, "reconnect_max_millis": 60},
    )
    with closing(fleet):
        made = Lied(fleet)
        with closing(made.proxy):
            fleet.processes["lobby-1"].start()
            yield made


def test_a_node_without_a_proxy_says_so_and_dials_again(tmp_path: Path) -> None:
    with closing(Fleet(tmp_path, nodes=("lobby-1",))) as fleet:
        fleet.processes["lobby-1"].start()
        until(
            lambda: fleet.rejects(Reason.PROXY_UNREACHABLE, "lobby-1") >= 2, "it dialled twice",
            more=fleet.tails,
        )  # fmt: skip
        assert fleet.refusals_logged(Reason.PROXY_UNREACHABLE, "lobby-1")
        _provoked.add(Reason.PROXY_UNREACHABLE)
        fleet.processes[PROXY].start()
        fleet.wait_ready()
        fleet.serves()


def test_a_node_refuses_commands_before_it_is_synchronized(lied: Lied) -> None:
    with lied.link(synchronize=False) as link:
        health = until(lambda: _node_health(lied), "the node answers", more=lied.fleet.tails)
        assert health["checks"]["registry"]["reason"] == "REGISTRY_NOT_SYNCHRONIZED"
        with provokes(lied.fleet, Reason.REGISTRY_NOT_SYNCHRONIZED, process=lied.name, serves=lambda: None):
            link.say(deliver(lied.items["demo:echo"], "too-early"))
            refusal = link.expect(m.DeliveryRefused, run_ids=["too-early"])
            assert refusal.reason == "REGISTRY_NOT_SYNCHRONIZED"
        lied.apply(link, list(lied.items.values()))
        lied.serves(link)()


def _node_health(lied: Lied) -> Any:
    return http_call(lied.fleet.processes[lied.name].health_port, "GET", "/health").json()


def _nacked(lied: Lied, link: RawLink, reason: Reason, *offered: m.Message) -> None:
    """The node refuses what is offered, says so, and keeps what it holds."""
    with lied.provokes(link, reason):
        link.say(*offered)
        nack = link.expect(m.RegistryNack)
        assert (nack.reason, nack.held) == (reason, lied.held)


def test_a_node_refuses_registries_that_are_not_next(lied: Lied) -> None:
    with lied.link() as link:
        items, held = list(lied.items.values()), lied.held
        older = position(held.generation - 1, items)
        _nacked(lied, link, Reason.REGISTRY_STALE_GENERATION, *snapshot(older, items))
        earlier_epoch = position(held.generation + 9, items, epoch=0)
        _nacked(lied, link, Reason.REGISTRY_STALE_GENERATION, *snapshot(earlier_epoch, items))
        other = position(held.generation + 1, items, fleet="other")
        _nacked(lied, link, Reason.REGISTRY_WRONG_FLEET, *snapshot(other, items))
        after = position(held.generation + 1, items)
        gap = m.RegistryDelta(older, after, (), ())
        _nacked(lied, link, Reason.REGISTRY_GAP, gap)
        false = Position(held.fleet_id, held.epoch, held.generation + 1, bytes(32))
        _nacked(lied, link, Reason.REGISTRY_DIGEST_MISMATCH, *snapshot(false, items))
        _nacked(lied, link, Reason.REGISTRY_DIGEST_MISMATCH, m.RegistryDelta(held, false, (), ()))


def test_a_node_refuses_registries_that_are_broken(lied: Lied) -> None:
    with lied.link() as link:
        items = list(lied.items.values())
        after = position(lied.held.generation + 1, items)
        begin, chunk, end = snapshot(after, items)
        assert isinstance(chunk, m.SnapshotChunk)
        skipped = m.SnapshotChunk(after.generation, 1, chunk.items[1:])
        _nacked(lied, link, Reason.REGISTRY_CHUNK_INVALID, begin, skipped)
        _nacked(lied, link, Reason.REGISTRY_CHUNK_INVALID, begin, end)
        _nacked(lied, link, Reason.REGISTRY_CHUNK_INVALID, begin, chunk, chunk)
        _nacked(lied, link, Reason.REGISTRY_TOO_LARGE, m.SnapshotBegin(after, 10_001, 1))
        _nacked(lied, link, Reason.REGISTRY_TOO_LARGE, m.SnapshotBegin(after, 1, 1 << 40))
        broken = m.SnapshotChunk(after.generation, 0, (b"\xc1",))
        _nacked(lied, link, Reason.DESCRIPTOR_INVALID, begin, broken)


def test_a_registry_message_that_was_seen_before(lied: Lied) -> None:
    with lied.link() as link, lied.provokes(link, Reason.REPLAYED_SNAPSHOT):
        link.say(m.RegistryUpToDate(lied.held), nonce=1)
        assert link.expect(m.Notice).reason == "REPLAYED_SNAPSHOT"


def test_a_node_judges_every_delivery(lied: Lied) -> None:
    stranger = canonical_item(Descriptor("demo:stranger", effect="idempotent"))
    with lied.link(synchronize=False) as link:
        lied.apply(link, [*lied.items.values(), stranger])
        echo = lied.items["demo:echo"]
        other = canonical_item(Descriptor("demo:echo", version=2))
        for reason, delivery in (
            (Reason.DESCRIPTOR_MISMATCH, deliver(other, "mismatch")),
            (Reason.HANDLER_MISSING, deliver(stranger, "missing")),
            (Reason.DEADLINE_EXCEEDED, deliver(echo, "late", deadline_at_ms=now_ms() - 1)),
        ):
            with lied.provokes(link, reason):
                link.say(delivery)
                assert link.expect(m.DeliveryRefused, run_ids=[delivery.run_id]).reason == reason
        with lied.provokes(link, Reason.SECURITY_MISSING_IDENTITY_ENVELOPE):
            link.say(deliver(echo, "nameless", identity=None))
            result = link.expect(m.Result, run_ids=["nameless"])
            assert (result.completed, result.reason) == (False, "security_missing_identity_envelope")


def test_a_node_believes_no_delivery_that_its_proxy_did_not_mean(lied: Lied) -> None:
    with lied.link() as link:
        echo, key = lied.items["demo:echo"], link.trust_key
        assert key is not None
        ours = deliver(echo, "ours")
        for reason, delivery in (
            (Reason.SECURITY_MISSING_INTERNAL_TRUST_CONTEXT, deliver(echo, "bare")),
            (Reason.SECURITY_TRUST_TOKEN_INVALID, deliver(echo, "wrong", trust=bytes(TOKEN_BYTES))),
            (
                Reason.SECURITY_TRUST_TOKEN_INVALID,
                msgspec.structs.replace(
                    trusted(ours, key, link.them, link.incarnation, now_ms()), run_id="not-ours"
                ),
            ),
        ):
            with lied.provokes(link, reason):
                link.trust_key = None
                link.say(delivery)
                link.trust_key = key
                result = link.expect(m.Result, run_ids=[delivery.run_id])
                assert (result.completed, result.reason) == (False, reason)
        with lied.provokes(link, Reason.SECURITY_TRUST_TOKEN_EXPIRED):
            late = deliver(echo, "late-token")
            link.say(trusted(late, key, link.them, link.incarnation, now_ms() - 3_600_000))
            refusal = link.expect(m.DeliveryRefused, run_ids=["late-token"])
            assert refusal.reason == "security_trust_token_expired"


def test_an_attempt_that_a_newer_one_has_replaced(lied: Lied) -> None:
    with lied.link() as link:
        link.say(deliver(lied.items["demo:echo"], "fenced", fence=5))
        assert link.expect(m.Result, run_ids=["fenced"]).fence == 5
        with lied.provokes(link, Reason.FENCE_STALE):
            link.say(deliver(lied.items["demo:echo"], "fenced", fence=4))
            assert link.expect(m.DeliveryRefused, run_ids=["fenced"]).reason == "FENCE_STALE"


def test_more_deliveries_than_the_credit(lied: Lied) -> None:
    """Capacity is two. What is too much is refused durably; what was taken is executed."""
    with lied.link() as link:
        sleep = lied.items["demo:sleep"]
        held = [deliver(sleep, f"held-{number}", args_json=b'{"ms":400}') for number in range(2)]
        link.say(*held)
        until(
            lambda: sum(_node_health(lied)["queue"][each] for each in ("running", "waiting")) == 2,
            "it is full",
        )
        with provokes(
            lied.fleet, Reason.INGRESS_BACKPRESSURE, times=3, process=lied.name, serves=lambda: None
        ):
            for number in range(3):
                link.say(deliver(sleep, f"surplus-{number}", args_json=b'{"ms":0}'))
                refusal = link.expect(m.DeliveryRefused, run_ids=[f"surplus-{number}"])
                assert refusal.reason == "INGRESS_BACKPRESSURE"
        ids = {each.run_id for each in held}
        assert {link.expect(m.Result, run_ids=ids).run_id for _ in held} == ids
        lied.serves(link)()


@pytest.mark.parametrize(
    ("reason", "paused", "draining"),
    [(Reason.BRIDGE_PAUSED, True, False), (Reason.NODE_DRAINING, False, True)],
)
def test_what_operators_decided_holds_on_the_node_too(
    lied: Lied, reason: Reason, paused: bool, draining: bool
) -> None:
    with lied.link() as link:

        def resumed() -> None:
            link.say(m.NodeControl(False, False))
            lied.serves(link)()

        with provokes(lied.fleet, reason, process=lied.name, serves=resumed):
            link.say(m.NodeControl(paused, draining))
            link.say(deliver(lied.items["demo:echo"], f"while-{reason}"))
            assert link.expect(m.DeliveryRefused, run_ids=[f"while-{reason}"]).reason == reason


@pytest.mark.parametrize(("paused", "draining"), [(True, False), (False, True)])
def test_what_was_taken_back_while_the_node_was_away_is_taken_back(
    lied: Lied, paused: bool, draining: bool
) -> None:
    with lied.link() as link:
        link.say(m.NodeControl(paused, draining))
        until(lambda: _node_health(lied)["status"] in ("DEGRADED", "DRAINING"), "it has heard of it")
    try:
        with lied.link(paused=False, draining=False) as link:
            lied.serves(link)()
            until(lambda: _node_health(lied)["status"] == "READY", "the node is as the proxy says it is")
    finally:
        with lied.link() as link:
            link.say(m.NodeControl(False, False))
            lied.serves(link)()


@pytest.mark.parametrize(
    "reason", [Reason.VERSION_MISMATCH, Reason.UNEXPECTED_SENDER, Reason.HANDSHAKE_AUTH_FAILED]
)
def test_a_proxy_that_the_node_does_not_accept(lied: Lied, reason: Reason) -> None:
    more: dict[str, Any] = {
        Reason.VERSION_MISMATCH: {"verdict": ("VERSION_MISMATCH", 0, "too old")},
        Reason.UNEXPECTED_SENDER: {"proxy_id": "another"},
        Reason.HANDSHAKE_AUTH_FAILED: {"psk": bytes(range(32))},
    }[reason]
    with provokes(lied.fleet, reason, process=lied.name, serves=lambda: None):
        with lied.proxy.shake(lied.proxy.accept(), **more) as link:
            assert link.sock.recv(65_536) == b"", "the node says nothing to a proxy it does not accept"
    with lied.link() as link:
        lied.serves(link)()


def test_a_frame_of_the_proxy_that_does_not_authenticate(lied: Lied) -> None:
    with provokes(lied.fleet, Reason.DECRYPT_FAILED, process=lied.name, serves=lambda: None):
        link, _ = lied.proxy.link()
        with link:
            link.say(welcome())
            link.send_bytes(prefixed(bytes(40)))
            assert link.rest()[-1].reason == "DECRYPT_FAILED"
    with lied.link() as link:
        lied.serves(link)()


# -- the end


def test_a_draining_proxy_takes_no_commands_and_lets_its_clients_finish(strict: Fleet) -> None:
    with dial(strict.game, "127.0.0.51") as game:
        assert game.recv(100).startswith(b"welcome")
        with provokes(strict, Reason.DISPATCH_DRAINING, serves=lambda: game.sendall(b"still here\n")):
            strict.signal(PROXY, signal.SIGTERM)
            until(lambda: strict.ops("GET", "/health").json()["status"] == "DRAINING", "it drains")
            refused(strict.dispatch("demo:echo", text="too late"), Reason.DISPATCH_DRAINING)
        assert game.recv(100) == b"lobby-1: still here\n"
    assert strict.processes[PROXY].wait() == 0


def test_nothing_failed_that_should_not_have(fleet: Fleet, strict: Fleet, stopped: Fleet, lied: Lied) -> None:
    for each in (fleet, strict, stopped, lied.fleet):
        for process in each.processes.values():
            for word in ("Traceback", "INTERNAL_ERROR", " crashed "):
                assert word not in process.log(), f"{process.name}: {word}\n{each.tails()}"


def test_every_reason_that_a_socket_can_provoke_was_provoked(request: pytest.FixtureRequest) -> None:
    ours = [item for item in request.session.items if item.path == Path(__file__)]
    if {item.name for item in ours} != _here.tests_run or len(ours) < 150:
        pytest.skip("only with the whole file")
    wanted = (
        set(TRAITS)
        - set(NOT_BY_A_SOCKET)
        - OF_RUNS
        - OF_APPROVALS
        - OF_CALLERS
        - OF_CLIENTS
        - OF_GUARDS
        - OF_GAMES
        - OF_ROUTING
        - OF_TLS
        - OF_TRANSFERS
        - set(ELSEWHERE)
    )
    missing = sorted(each.value for each in wanted - _provoked)
    assert not missing, f"not provoked: {', '.join(missing)}"
    assert {each.value for each in _provoked & set(NOT_BY_A_SOCKET)} == set(), (
        "listed as out of reach, wrongly"
    )
