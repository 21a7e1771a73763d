"""What decides of transfers: tokens, refusals in their order, and where each transfer stands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.edge.sessions import SessionRow
from fairlead.proxy.edge.transfer_token import TOKEN_BYTES_MAX, TransferToken, judge, make, transfer_key
from fairlead.proxy.edge.transfers import (
    HISTORY_MAX,
    BackendFacts,
    Surroundings,
    Transfer,
    Transfers,
    TransferSettings,
    TransferState,
    refusal,
)

NOW_MS = 1_800_000_000_000
KEY, OTHER_KEY = transfer_key(b"a" * 32), transfer_key(b"b" * 32)
UUID = "01a2143e-7bcf-7ad1-b198-58ca3f7599bc"
SESSION = "208a3cf9.01a2143e-7bb5-7269-8ae3-3a0e9d1e02e2"
TOKEN = TransferToken(UUID, SESSION, "lobby-2", NOW_MS + 30_000)
ROW = SessionRow(
    id=SESSION, kind="minecraft", listener="game", peer="192.0.2.1", since_ms=NOW_MS, state="PLAYING",
    backend="lobby-1", node="node-1", bound="", route="", player_name="ada", player_uuid="", protocol=766,
    previous_session="", transfer_id="", bytes_in=0, bytes_out=0,
)  # fmt: skip
AROUND = Surroundings(
    True,
    {
        "lobby-1": BackendFacts("lobby-1", "node-1", "ONLINE"),
        "lobby-2": BackendFacts("lobby-2", "n2", "ONLINE"),
    },
)


def reason_of(found: Any) -> Any:
    return found.reason if isinstance(found, Reject) else found


# -- tokens


def test_a_token_says_what_was_put_in_and_is_believed_under_either_key() -> None:
    raw = make(KEY, TOKEN, "Ada")
    assert judge([KEY], raw, "ada", NOW_MS) == TOKEN
    assert judge([OTHER_KEY, KEY], raw, "ADA", NOW_MS) == TOKEN
    assert judge([KEY], raw, "ada", NOW_MS + 30_000) == TOKEN
    assert TOKEN.tag == "208a3cf9"


@pytest.mark.parametrize(
    ("keys", "player", "at_ms", "words"),
    [
        ([OTHER_KEY], "ada", NOW_MS, "signature"),
        ([], "ada", NOW_MS, "signature"),
        ([KEY], "eve", NOW_MS, "another player's"),
        ([KEY], "ada", NOW_MS + 30_001, "expired"),
    ],
)
def test_a_token_is_refused_with_its_cause(keys: list[bytes], player: str, at_ms: int, words: str) -> None:
    found = judge(keys, make(KEY, TOKEN, "ada"), player, at_ms)
    assert isinstance(found, Reject)
    assert (found.reason, words in found.detail) == (Reason.TRANSFER_TOKEN_REJECTED, True)


@given(st.binary(max_size=200))
def test_no_bytes_pass_for_a_token(raw: bytes) -> None:
    assert isinstance(judge([KEY], raw, "ada", NOW_MS), Reject)


@given(st.integers(0, 8 * 90 - 1))
def test_no_bit_of_a_token_can_be_changed(bit: int) -> None:
    raw = bytearray(make(KEY, TOKEN, "ada"))
    index = (bit // 8) % len(raw)
    raw[index] ^= 1 << bit % 8
    assert isinstance(judge([KEY], bytes(raw), "ada", NOW_MS), Reject)
    assert isinstance(judge([KEY], bytes(raw[:-1]), "ada", NOW_MS), Reject)


def test_a_token_fits_a_host_name_whatever_the_backend_is_called() -> None:
    from fairlead.proxy.edge.minecraft.host_token import host_with, split

    longest = make(KEY, replace(TOKEN, target="x" * 64), "ada")
    assert len(longest) == TOKEN_BYTES_MAX
    host = host_with(longest, "play.example.org")
    assert split(host) == (longest, "play.example.org")
    with pytest.raises(ValueError, match="does not fit"):
        make(KEY, replace(TOKEN, target="x" * 65), "ada")


def test_a_session_of_another_shape_is_left_out() -> None:
    found = judge([KEY], make(KEY, replace(TOKEN, session="s-1"), "ada"), "ada", NOW_MS)
    assert isinstance(found, TransferToken)
    assert found.session == "00000000-0000-0000-0000-000000000000"


# -- what may begin


def test_the_first_reason_is_the_one_that_is_told() -> None:
    """Each change takes the first obstacle away; the ancestor's order."""
    row = replace(ROW, state="CONNECTING", kind="tcp")
    around = Surroundings(False, {}, node_linked=False, node_refers=False)
    older, well = facts("lobby-2", "ONLINE", 1), {"lobby-2": facts("lobby-2", "ONLINE", 766)}
    steps: list[tuple[Reason | None, Any]] = [
        (Reason.CONTROL_PLANE_UNAVAILABLE, lambda: (row, replace(around, control=True))),
        (Reason.PLAYER_NOT_READY, lambda: (replace(row, state="PLAYING"), around)),
        (Reason.BACKEND_NOT_FOUND, lambda: (row, replace(around, backends={"lobby-2": facts("lobby-2", "OFFLINE")}))),
        (Reason.BACKEND_UNAVAILABLE, lambda: (row, replace(around, backends={"lobby-2": facts("lobby-2", "UNKNOWN")}))),
        (Reason.BACKEND_STATUS_UNKNOWN, lambda: (row, replace(around, backends={"lobby-2": older}))),
        (Reason.BACKEND_VERSION_MISMATCH, lambda: (row, replace(around, backends=well))),
        (Reason.TRANSFER_UNSUPPORTED, lambda: (replace(row, kind="minecraft", player_name=""), around)),
        (Reason.TRANSFER_UNSUPPORTED, lambda: (replace(row, player_name="ada"), around)),
        (Reason.REQUEST_SEND_FAILED, lambda: (row, replace(around, node_linked=True))),
        (Reason.TRANSFER_UNSUPPORTED, lambda: (row, replace(around, node_refers=True))),
        (None, lambda: (row, around)),
    ]  # fmt: skip
    for reason, further in steps:
        assert reason_of(refusal(row, "lobby-2", around)) is reason
        row, around = further()


def facts(name: str, state: Any, protocol: int = 0) -> BackendFacts:
    return BackendFacts(name, f"node-of-{name}", state, protocol)


def test_the_backend_it_is_on_and_one_that_drains() -> None:
    assert reason_of(refusal(ROW, "lobby-1", AROUND)) is Reason.ALREADY_CONNECTED
    moved = replace(ROW, kind="http", bound="lobby-2")
    assert reason_of(refusal(moved, "lobby-2", AROUND)) is Reason.ALREADY_CONNECTED, (
        "from its next request on"
    )
    assert refusal(moved, "lobby-1", AROUND) is None
    draining = replace(AROUND, backends={"lobby-2": facts("lobby-2", "DRAINING")})
    assert reason_of(refusal(ROW, "lobby-2", draining)) is Reason.BACKEND_UNAVAILABLE
    assert (
        reason_of(refusal(replace(ROW, state="TRANSFERRING"), "lobby-2", AROUND)) is Reason.PLAYER_NOT_READY
    )
    for state in ("PLAYING", "AUTHENTICATED"):
        assert refusal(replace(ROW, kind="http", state=state), "lobby-2", AROUND) is None
    assert (
        reason_of(refusal(replace(ROW, state="AUTHENTICATED"), "lobby-2", AROUND)) is Reason.PLAYER_NOT_READY
    )


# -- where each stands


class Table:
    """Transfers, with a clock."""

    def __init__(self, pending_max: int = 3, tag: str = "208a3cf9") -> None:
        self.all = Transfers(TransferSettings(timeout_s=30, pending_max=pending_max), tag)
        self.ids = iter(f"01a2143e-7bcf-7ad1-b198-{number:012x}" for number in range(10_000))

    def begin(self, row: SessionRow = ROW, now_s: float = 0.0) -> Transfer:
        made = self.all.begin(next(self.ids), row, "lobby-2", "ops", "", now_s, NOW_MS)
        assert isinstance(made, Transfer)
        return made

    def token(self, made: Transfer) -> TransferToken:
        return self.all.token_of(made)


def test_as_many_as_may_be_under_way_and_no_more() -> None:
    table = Table(pending_max=2)
    first, _ = table.begin(), table.begin()
    refused = table.all.begin("x", ROW, "lobby-2", "ops", "", 0.0, NOW_MS)
    assert reason_of(refused) is Reason.TRANSFER_LIMIT
    table.all.fail(first, Reason.REFERRAL_REJECTED, "", NOW_MS)
    table.begin()


def test_every_way_to_an_end() -> None:
    table = Table()
    made = table.begin()
    assert (
        reason_of(table.all.referred(made.id, "another-node", True, "", NOW_MS)) is Reason.FOREIGN_STATEMENT
    )
    assert reason_of(table.all.referred("nothing", "node-1", True, "", NOW_MS)) is Reason.FOREIGN_STATEMENT
    table.all.referred(made.id, "node-1", True, "", NOW_MS + 5)
    assert made.state is TransferState.REFERRED
    assert table.all.redeem(table.token(made), NOW_MS + 9) is made
    again = table.all.redeem(table.token(made), NOW_MS + 9)
    assert reason_of(again) is Reason.TRANSFER_TOKEN_REJECTED, "while its client is on its way, too"
    table.all.referred(made.id, "node-1", False, "too late", NOW_MS + 10)
    assert made.state is TransferState.ARRIVING, (
        "a client that is here was referred, whatever its node says then"
    )
    table.all.complete(made, "new", NOW_MS + 20)
    assert (made.state, made.marks_ms) == (
        TransferState.COMPLETED, {"referred": 5, "arriving": 9, "completed": 20},
    )  # fmt: skip
    table.all.fail(made, Reason.TRANSFER_TIMEOUT, "", NOW_MS)
    assert made.state is TransferState.COMPLETED, "an end is an end"
    assert reason_of(table.all.redeem(table.token(made), NOW_MS)) is Reason.TRANSFER_TOKEN_REJECTED
    assert table.all.of_session("new") is table.all.of_session(SESSION) is made
    rejected = table.begin()
    table.all.referred(rejected.id, "node-1", False, "no", NOW_MS)
    assert (rejected.reason, table.all.pending) == ("REFERRAL_REJECTED", {})


def test_a_client_may_be_faster_than_its_nodes_answer() -> None:
    table = Table()
    made = table.begin()
    assert table.all.redeem(table.token(made), NOW_MS) is made
    table.all.referred(made.id, "node-1", True, "", NOW_MS)
    assert made.state is TransferState.ARRIVING


def test_each_ends_at_its_deadline_and_says_where_it_stood() -> None:
    table = Table()
    asked, referred, arriving = table.begin(), table.begin(now_s=1), table.begin(now_s=2)
    table.all.referred(referred.id, "node-1", True, "", NOW_MS)
    table.all.redeem(table.token(arriving), NOW_MS)
    assert (table.all.next_deadline_s, table.all.expire(29.9, NOW_MS)) == (30.0, [])
    assert table.all.expire(30.0, NOW_MS) == [asked]
    assert table.all.expire(40.0, NOW_MS) == [referred, arriving]
    assert [
        "did not answer" in asked.detail,
        "did not come back" in referred.detail,
        "reach" in arriving.detail,
    ] == [True] * 3
    assert table.all.next_deadline_s == float("inf")


def test_a_token_of_another_proxy_is_good_once_while_there_is_room_to_remember_it() -> None:
    theirs, ours = Table(), Table(pending_max=2, tag="00000001")
    tokens = [theirs.token(theirs.begin()) for _ in range(3)]
    assert [ours.all.redeem(token, NOW_MS) for token in tokens[:2]] == [None, None]
    assert reason_of(ours.all.redeem(tokens[0], NOW_MS)) is Reason.TRANSFER_TOKEN_REJECTED
    assert reason_of(ours.all.redeem(tokens[2], NOW_MS)) is Reason.TRANSFER_LIMIT, (
        "refused, nothing forgotten"
    )
    late = replace(tokens[2], expires_at_ms=NOW_MS + 90_000)
    assert ours.all.redeem(late, NOW_MS + 31_000) is None


def test_a_token_from_before_a_restart_opens_nothing() -> None:
    before, after = Table(), Table()
    found = after.all.redeem(before.token(before.begin()), NOW_MS)
    assert isinstance(found, Reject)
    assert "before this proxy was started" in found.detail


def test_who_can_bring_nothing_is_known_by_name_and_address_once() -> None:
    table = Table()
    made = table.begin()
    assert table.all.remembered("ada", "192.0.2.2", NOW_MS) is None
    assert table.all.remembered("eve", "192.0.2.1", NOW_MS) is None
    assert table.all.remembered("ADA", "192.0.2.1", NOW_MS) is made
    assert table.all.remembered("ada", "192.0.2.1", NOW_MS) is None


def test_what_is_over_is_kept_up_to_a_bound() -> None:
    table = Table()
    for _ in range(HISTORY_MAX + 5):
        table.all.complete(table.begin(), "", NOW_MS)
    assert (len(table.all.history), len(table.all.pending)) == (HISTORY_MAX, 0)
    assert table.all.find(table.all.history[0].id) is table.all.history[0]
