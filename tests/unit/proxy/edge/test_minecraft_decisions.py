"""What the game's listener decides without a socket: the status, words, tokens in names, who waits and who loops."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import minecraft as mc

from fairlead.protocol.reasons import Reason
from fairlead.proxy.edge.minecraft.host_token import TOKEN_BYTES_MAX, NoToken, host_with, labels_of, split
from fairlead.proxy.edge.minecraft.packets import Malformed
from fairlead.proxy.edge.minecraft.players import Players
from fairlead.proxy.edge.minecraft.remembered import RememberedPlayers
from fairlead.proxy.edge.minecraft.status import (
    FAVICON_BYTES_MAX,
    StatusPage,
    favicon_url,
    read_status,
)
from fairlead.proxy.edge.minecraft.waiting_room import LoopBreaker, WaitingRoom
from fairlead.proxy.edge.minecraft.words import words

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (64).to_bytes(4, "big") * 2 + bytes(40)


# -- status


def page(**changes: object) -> StatusPage:
    values: dict[str, object] = {
        "motd": "Hi", "offline_motd": "Away", "version_name": "1.21", "protocol_min": 764, "protocol_max": 772,
        "players_max": 50,
    }  # fmt: skip
    return StatusPage(**{**values, **changes})  # type: ignore[arg-type]


def test_the_status_says_what_is_configured_and_the_clients_own_protocol() -> None:
    shown = json.loads(page().text(767, True, 3))
    assert shown == {
        "version": {"name": "1.21", "protocol": 767},
        "players": {"max": 50, "online": 3},
        "description": {"text": "Hi"},
    }
    assert json.loads(page().text(47, False, 0))["version"]["protocol"] == 772
    assert json.loads(page().text(47, False, 0))["description"] == {"text": "Away"}
    component = '{"text":"Hi","color":"gold","extra":[" there"]}'
    assert json.loads(page(motd=component).text(767, True, 0))["description"]["color"] == "gold"
    assert page(motd=component).plain_motd(True) == "Hi there"
    assert json.loads(page(players_max=0).text(767, True, 7))["players"]["max"] == 8


def test_some_who_play_are_shown_where_that_is_asked_for() -> None:
    players = Players()
    for number in range(20):
        players.joined(f"s{number}", f"P{number}", "")
    players.left("s0")
    players.left("s0")
    shown = json.loads(page().text(767, True, players.online, players.some()))["players"]
    assert (shown["online"], len(shown["sample"]), shown["sample"][0]["name"]) == (19, 12, "P1")


def test_a_favicon_is_a_small_png_of_64_pixels() -> None:
    url = favicon_url(PNG)
    assert url.startswith("data:image/png;base64,")
    assert len(page(favicon=url).text(767, True, 0)) < 32_767
    for bad, why in (
        (b"GIF89a" + bytes(60), "not a PNG"),
        (PNG[:20], "not a PNG"),
        (PNG.replace((64).to_bytes(4, "big"), (65).to_bytes(4, "big"), 1), "65 x 64"),
        (PNG + bytes(FAVICON_BYTES_MAX), "more than"),
    ):
        with pytest.raises(ValueError, match=why):
            favicon_url(bad)


def test_a_nodes_status_is_passed_on_only_if_it_is_one() -> None:
    packet = mc.frame(0x00, mc.string('{"description":"x"}'))
    for cut in range(len(packet)):
        assert read_status(packet[:cut]) is None
    assert read_status(packet + b"more") == packet
    for bad in (
        mc.frame(0x01, mc.string("{}")),
        mc.frame(0x00, mc.string("[]")),
        mc.frame(0x00, mc.string("nonsense")),
        mc.frame(0x00, mc.string("{}") + b"x"),
        mc.frame(0x00, mc.string("[" * 30_000)),
        mc.varint(1 << 20),
        b"HTTP/1.1 400 Bad Request",
    ):
        with pytest.raises(Malformed):
            read_status(bad)


def test_every_kick_says_what_to_do_and_names_its_reason() -> None:
    for reason in Reason:
        text = words(reason, "id-1")
        assert text.endswith(f"{reason.value} id-1")
        assert "node" not in text.partition("\n")[0]


# -- tokens in host names


@given(st.binary(min_size=1, max_size=TOKEN_BYTES_MAX), st.sampled_from(["example.org", "a.b.example.org."]))
def test_a_token_survives_a_host_name(token: bytes, domain: str) -> None:
    if len(labels_of(token)) + 1 + len(domain.strip(".")) > 253:
        return
    host = host_with(token, domain)
    assert len(host) <= 253
    assert all(0 < len(label) <= 63 for label in host.split("."))
    assert host == host.lower()
    assert split(host) == (token, domain.strip("."))


@given(st.text(alphabet="fl123456789-abz.", max_size=80))
def test_a_host_is_a_token_or_none_or_refused(host: str) -> None:
    try:
        token, domain = split(host)
    except NoToken:
        return
    assert host.endswith(domain)
    assert bool(token) == (host != domain)


@pytest.mark.parametrize("host", ["fl2-abc", "fl1-.example.org", "fl1-0189.example.org", "fl1-a.example.org"])
def test_what_begins_like_a_token_and_is_none_is_refused(host: str) -> None:
    with pytest.raises(NoToken):
        split(host)


def test_a_token_or_domain_that_does_not_fit_is_not_made() -> None:
    for token in (b"", bytes(TOKEN_BYTES_MAX + 1)):
        with pytest.raises(ValueError):
            labels_of(token)
    with pytest.raises(ValueError, match="a host of"):
        host_with(bytes(TOKEN_BYTES_MAX), "x" * 60 + ".example.org")
    assert split("flag.example.org") == (b"", "flag.example.org")


# -- who belongs where


def test_a_player_is_remembered_for_a_while_and_the_oldest_makes_room() -> None:
    table = RememberedPlayers(2)
    table.remember("Alice", "a", "n1", 10)
    assert table.backend_for("alice", "a", 9) == "n1"
    assert table.backend_for("alice", "b", 9) == ""  # the name from elsewhere is somebody else
    assert table.backend_for("alice", "a", 10) == ""
    for name in ("A", "B", "C"):
        table.remember(name, "a", "n1", 100)
    assert [table.backend_for(name, "a", 9) for name in "ABC"] == ["", "n1", "n1"]
    table.forget("b", "a")
    table.forget("b", "a")
    assert len(table) == 1
    RememberedPlayers(0).remember("A", "a", "n", 1)


# -- the waiting room


def test_places_are_bounded_and_given_back() -> None:
    room = WaitingRoom(2, 20, 5, 60)
    assert room.is_open
    assert [room.enter(), room.enter()] == [None, None]
    refused = room.enter()
    assert refused is not None
    assert refused.reason is Reason.WAITING_ROOM_FULL
    room.leave()
    assert room.enter() is None
    assert not WaitingRoom(0, 20, 5, 60).is_open
    assert not WaitingRoom(2, 0, 5, 60).is_open


def test_a_node_that_was_away_takes_players_at_a_pace() -> None:
    room = WaitingRoom(100, 20, 4, 60)
    assert [room.turn("n1", 0, 20) for _ in range(50)] == [0.0] * 50  # it was not away
    room.take_easy("n1", 0)
    assert [room.turn("n1", 1, 21) for _ in range(4)] == [0.0, 0.25, 0.5, 0.75]
    assert room.turn("n2", 1, 21) == 0.0  # another node's queue is its own
    assert [room.turn("n1", 1, 2) for _ in range(3)] == [
        1.0,
        None,
        None,
    ]  # nobody waits for longer than it may
    assert room.turn("n1", 1, 21) == 1.25  # and those who do not wait take no turn
    assert room.turn("n1", 100, 120) == 0.0  # well for long enough: no pace any more
    assert [room.turn("n1", 100, 120) for _ in range(50)] == [0.0] * 50


@given(st.lists(st.tuples(st.floats(0, 2), st.booleans()), max_size=60))
def test_never_more_turns_in_a_second_than_configured(steps: list[tuple[float, bool]]) -> None:
    room, now, turns = WaitingRoom(1000, 20, 10, 1_000), 0.0, []
    room.take_easy("n", now)
    for wait, again in steps:
        now += wait
        if again:
            room.take_easy("n", now)
        delay = room.turn("n", now, now + 20)
        if delay is not None:
            turns.append(now + delay)
    assert turns == sorted(turns)
    assert all(later - earlier >= 0.1 - 1e-9 for earlier, later in pairwise(turns))


def test_pacing_can_be_turned_off() -> None:
    room = WaitingRoom(10, 20, 0, 60)
    room.take_easy("n", 0)
    assert [room.turn("n", 0, 0) for _ in range(50)] == [0.0] * 50


# -- the loop breaker


def test_who_is_thrown_out_again_and_again_is_led_elsewhere_for_a_while() -> None:
    loops = LoopBreaker(3, 60, 100)
    for now in (0, 10, 20):
        assert loops.barred("alice", now) == set()
        loops.thrown_out("alice", "n1", now)
    loops.thrown_out("alice", "n2", 21)
    assert loops.barred("alice", 22) == {"n1"}
    assert loops.barred("bob", 22) == set()
    assert loops.barred("alice", 60) == set()  # the first of the three is over
    assert loops.barred("alice", 100) == set()
    assert len(loops) == 0


def test_the_loop_breaker_is_bounded_and_can_be_turned_off() -> None:
    loops = LoopBreaker(1, 60, 10)
    for number in range(100):
        loops.thrown_out(f"p{number}", "n", 0)
    assert len(loops) == 10
    assert loops.barred("p99", 1) == {"n"}
    for number in range(100):
        loops.thrown_out("p99", f"n{number}", 0)
    assert len(loops.barred("p99", 1)) <= 4
    loops.thrown_out("late", "n", 1_000)
    assert len(loops) < 10
    off = LoopBreaker(0, 60, 10)
    off.thrown_out("a", "n", 0)
    assert off.barred("a", 0) == set()
