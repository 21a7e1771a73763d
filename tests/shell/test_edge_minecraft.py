"""Minecraft through the edge, over loopback sockets, with nodes that are scripts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from tests.support import minecraft as mc
from tests.support.edge_harness import Harness, Peer, Script, running_edge

from fairlead.protocol.reasons import Reason, Reject
from fairlead.proxy.edge.minecraft.host_token import host_with
from fairlead.proxy.edge.sessions import Session
from fairlead.proxy.edge.settings import EdgeLimits, GameConfig, RouteConfig, RoutingConfig

QUICK = {"hold_max": 0, "opening_timeout_s": 5.0}
ENCRYPTION = mc.frame(0x01, b"pretend")  # what a node says first, as far as the proxy cares


async def node(peer: Peer) -> None:
    """Answers a login, then echoes."""
    await mc.read_packet(peer)
    await mc.read_packet(peer)
    await peer.send(ENCRYPTION)
    while data := await peer.stream.receive_some(65536):
        await peer.send(data)


async def closing(peer: Peer) -> None:
    """Takes the login and closes without a word."""
    await mc.read_packet(peer)


async def kicking(peer: Peer) -> None:
    """Answers, and throws the player out."""
    await mc.read_packet(peer)
    await mc.read_packet(peer)
    await peer.send(ENCRYPTION)


async def silent(peer: Peer) -> None:
    await peer.read_to_end()


@asynccontextmanager
async def game(
    *scripts: Script | None, fallback: str = "", limits: EdgeLimits | None = None,
    routing: RoutingConfig | None = None, **config: Any,
) -> AsyncIterator[Harness]:  # fmt: skip
    more = {} if routing is None else {"routing": routing}
    settings = GameConfig(**{**QUICK, **config})
    listener = {"fallback": fallback, "fallback_after_s": 0.1}
    async with running_edge(
        *scripts, kind="minecraft", listener=listener, limits=limits, game=settings, **more
    ) as h:
        yield h


async def status_of(h: Harness, host: str = "h", protocol: int = mc.PROTOCOL_1_21) -> Any:
    client = await h.connect()
    await client.send(mc.handshake(host, 1, protocol) + mc.STATUS_REQUEST)
    shown = await mc.read_json(client)
    await client.send(mc.ping())
    assert await mc.read_packet(client) == (0x01, b"\0\1\2\3\4\5\6\7")
    assert await client.read_to_end() == b""
    client.stream.close()
    return shown


async def playing(h: Harness, name: str = "Alice", host: str = "h", intent: int = 2) -> Peer:
    client = await h.connect()
    await client.send(mc.join(name, host, intent))
    answer = await mc.read_packet(client)
    assert answer == (0x01, b"pretend"), answer
    return client


async def kicked(h: Harness, name: str = "Alice", host: str = "h") -> str:
    client = await h.connect()
    await client.send(mc.join(name, host))
    words = await mc.read_kick(client)
    client.stream.close()
    return words.split("\n")[-1].split(" ")[0]


# -- the list of servers


async def test_the_status_is_answered_with_no_node_up() -> None:
    async with game(None, motd="Hi", offline_motd="Away", players_max=20) as h:
        shown = await status_of(h)
        assert shown["description"] == {"text": "Hi"}  # nothing is known yet
        assert await kicked(h) == "BACKEND_UNREACHABLE"
        shown = await status_of(h)
        assert shown["description"] == {"text": "Away"}
        assert shown["players"] == {"max": 20, "online": 0}
        assert shown["version"]["protocol"] == mc.PROTOCOL_1_21


async def test_the_status_counts_who_plays() -> None:
    async with game(node, sample=True) as h:
        await playing(h, "Alice")
        bob = await playing(h, "Bob")
        shown = await status_of(h)
        assert shown["players"]["online"] == 2
        assert [each["name"] for each in shown["players"]["sample"]] == ["Alice", "Bob"]
        await bob.stream.send_eof()
        await bob.read_to_end()
        await h.until_sessions(1)
        assert (await status_of(h))["players"]["online"] == 1


async def test_lists_of_servers_that_never_ping_keep_nobody_from_joining() -> None:
    async with game(node, limits=EdgeLimits(client_handshake_concurrent_max=1), opening_timeout_s=0.3) as h:
        browsers = []
        for _ in range(3):
            browsers.append(browser := await h.connect())
            await browser.send(mc.handshake(intent=1) + mc.STATUS_REQUEST)
            assert (await mc.read_json(browser))["players"]["online"] == 0
        assert h.edge.admission.handshaking == 0
        await playing(h)
        assert await browsers[0].read_to_end() == b""
        assert h.rejects == {}


async def test_old_clients_are_answered_too() -> None:
    async with game(node, motd='{"text":"Hi ","extra":["there"]}', version_name="1.21") as h:
        for raw, expected in (
            (b"\xfe", "Hi there\u00a70\u00a71"),
            (b"\xfe\x01", "\u00a71\x00127\x001.21\0Hi there\x000\x001"),
            (mc.legacy_ping_1_6(), "\u00a71\x00127\x001.21\0Hi there\x000\x001"),
        ):
            client = await h.connect()
            await client.send(raw)
            assert mc.legacy_kick_text(await client.read_to_end()) == expected
        client = await h.connect()
        await client.send(b"\x02\x4e\x00\x05" + "Alice".encode("utf-16-be"))
        text = mc.legacy_kick_text(await client.read_to_end())
        assert "GAME_VERSION_UNSUPPORTED" in text
        assert h.rejects == {"GAME_VERSION_UNSUPPORTED": 1}


async def test_a_nodes_own_status_is_passed_on_and_asked_for_once_in_a_while() -> None:
    own = mc.frame(0x00, mc.string(json.dumps({"description": "from the node"})))

    async def with_status(peer: Peer) -> None:
        await mc.read_packet(peer)
        assert await mc.read_packet(peer) == (0x00, b"")
        await peer.send(own)

    async with game(with_status, status_of_node=True) as h:
        for _ in range(3):
            assert await status_of(h) == {"description": "from the node"}
        assert h.upstreams[0].accepted == 1
    for script in (silent, closing, None):
        async with game(script, status_of_node=True, status_timeout_s=0.1, motd="Own") as h:
            assert (await status_of(h))["description"] == {"text": "Own"}


# -- joining


async def test_a_login_reaches_the_node_as_it_came_and_is_relayed() -> None:
    heard: list[tuple[int, bytes]] = []

    async def listening(peer: Peer) -> None:
        heard.append(await mc.read_packet(peer))
        heard.append(await mc.read_packet(peer))
        await peer.send(ENCRYPTION)
        await peer.send(await peer.read_exactly(4))
        await peer.read_to_end()
        await peer.send(b"bye")

    async with game(listening) as h:
        client = await h.connect()
        raw = mc.join("Alice", "H.example.org.\0FML3\0")
        for index in range(len(raw)):
            await client.send(raw[index : index + 1])
        assert await mc.read_packet(client) == (0x01, b"pretend")
        await client.send(b"ping")
        assert await client.read_exactly(4) == b"ping"
        assert mc.frame(heard[0][0], heard[0][1]) + mc.frame(heard[1][0], heard[1][1]) == raw
        row = h.edge.status()["sessions"][0]
        assert (row["player_name"], row["backend"], row["state"]) == ("Alice", "b0", "PLAYING")
        assert (row["player_uuid"], row["protocol"]) == (
            "00010203-0405-0607-0809-0a0b0c0d0e0f",
            mc.PROTOCOL_1_21,
        )
        await client.stream.send_eof()
        assert await client.read_to_end() == b"bye"
        await h.until_sessions(0)
        assert h.rejects == {}


async def test_a_transfer_is_an_ordinary_login_for_the_node_unless_configured() -> None:
    intents: list[int] = []

    async def listening(peer: Peer) -> None:
        intents.append((await mc.read_packet(peer))[1][-1])
        await mc.read_packet(peer)
        await peer.send(ENCRYPTION)

    for configured in ("login", "transfer"):
        async with game(listening, transfer_intent=configured) as h:
            await playing(h, intent=3)
    assert intents == [2, 3]


async def test_players_are_led_by_the_host_they_came_to() -> None:
    routing = RoutingConfig(
        routes=(
            RouteConfig("wild", host="*.example.org", backends=("b1",)),
            RouteConfig("exact", host="lobby.example.com", backends=("b2",)),
        )
    )
    async with game(node, node, node, routing=routing) as h:
        for host, backend in (
            ("Sub.Example.org.\0FML2\0", "b1"),
            ("a.b.example.org:25565", "b1"),
            ("LOBBY.example.com", "b2"),
            ("elsewhere.org", "b0"),
            ("\u00fcnsinn\x01", "b0"),
        ):
            client = await playing(h, host=host)
            rows = h.edge.status()["sessions"]
            assert rows[-1]["backend"] == backend, host
            client.stream.close()
            await h.until_sessions(0)


async def test_what_a_client_sends_before_the_answer_follows_its_login() -> None:
    heard: list[bytes] = []

    async def slow(peer: Peer) -> None:
        await mc.read_packet(peer)
        await mc.read_packet(peer)
        await trio.sleep(0.05)
        await peer.send(ENCRYPTION)
        heard.append(await peer.read_exactly(10))

    async with game(slow) as h:
        client = await h.connect()
        await client.send(mc.join() + b"early")
        await trio.sleep(0.02)
        await client.send(b"-more")
        assert await mc.read_packet(client) == (0x01, b"pretend")
        assert await client.read_to_end() == b""
    assert heard == [b"early-more"]


async def test_a_client_that_talks_without_end_before_the_answer_is_refused() -> None:
    async with game(silent) as h:
        client = await h.connect()
        await client.send(mc.join() + bytes(20_000))
        assert "GAME_PACKET_MALFORMED" in await mc.read_kick(client)
        assert h.rejects == {"GAME_PACKET_MALFORMED": 1}


async def test_a_node_may_hear_of_the_client_by_a_proxy_header() -> None:
    heard: list[bytes] = []

    async def listening(peer: Peer) -> None:
        heard.append(await peer.read_exactly(28))
        assert (await mc.read_packet(peer))[0] == 0x00
        await mc.read_packet(peer)
        await peer.send(ENCRYPTION)

    async with running_edge(
        listening, kind="minecraft", backend={"send_proxy": "v2"}, game=GameConfig(**QUICK)
    ) as h:
        client = await playing(h)
        port = client.stream.socket.getsockname()[1]  # type: ignore[attr-defined]
        assert heard[0][:16] == b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"
        assert heard[0][16:20] == b"\x7f\0\0\1"
        assert int.from_bytes(heard[0][24:26], "big") == port


async def test_texts_and_bounds_change_while_players_play() -> None:
    async with game(node, motd="Before", players_max=5) as h:
        player = await playing(h)
        config = h.edge._config
        h.edge.reroute(replace(config, game=replace(config.game, motd="After", players_max=1, hold_max=7)))
        assert (await status_of(h))["description"] == {"text": "After"}
        assert await kicked(h, "Bob") == "PLAYER_LIMIT"
        assert h.edge.game.room.hold_max == 7
        await player.send(b"still")
        assert await player.read_exactly(5) == b"still"
        assert h.edge.status()["game"] == {"players": 1, "waiting": 0, "in_loops": 0}
        assert 'fairlead_edge_players{state="playing"} 1' in h.observer.metrics.exposition()


# -- kicks


async def test_no_node_is_said_in_words_and_counted() -> None:
    async with game(None) as h:
        assert await kicked(h) == "BACKEND_UNREACHABLE"
        assert h.rejects == {"BACKEND_UNREACHABLE": 1}
    async with game() as h:
        assert await kicked(h) == "BACKEND_NONE_AVAILABLE"


async def test_full_versions_and_forwarded_addresses_are_refused_with_words() -> None:
    async with game(node, players_max=1, protocol_max=mc.PROTOCOL_1_21, forwarded="refuse") as h:
        await playing(h)
        assert await kicked(h, "Bob") == "PLAYER_LIMIT"
        client = await h.connect()
        await client.send(mc.handshake(protocol=768) + mc.login_start())
        assert "GAME_VERSION_UNSUPPORTED" in await mc.read_kick(client)
        assert await kicked(h, host="h\x0010.0.0.1\x00" + "0" * 32) == "GAME_ADDRESS_FORWARDED"
        assert h.rejects == {"PLAYER_LIMIT": 1, "GAME_VERSION_UNSUPPORTED": 1, "GAME_ADDRESS_FORWARDED": 1}


async def test_who_is_beyond_the_limits_is_told_so_as_its_protocol_can() -> None:
    limits = EdgeLimits(connections_max=1), EdgeLimits(client_handshake_concurrent_max=1)
    for limit, reason in zip(limits, ("CONNECTION_LIMIT", "CLIENT_HANDSHAKE_LIMIT"), strict=True):
        async with game(node, limits=limit) as h:
            first = await h.connect()  # it says nothing, and is in its handshake
            await h.until_sessions(1)
            assert await kicked(h) == reason
            browser = await h.connect()
            await browser.send(mc.handshake(intent=1) + mc.STATUS_REQUEST)
            assert (await mc.read_json(browser))["version"]["protocol"] == -1
            for raw in (b"\xfe\x01", mc.legacy_ping_1_6(), b"\x02\x4e\0\5"):
                old = await h.connect()
                await old.send(raw)
                assert " full" in (text := mc.legacy_kick_text(await old.read_to_end())) or "many" in text
            silent_one = await h.connect()
            assert reason in await mc.read_kick(silent_one)
            assert h.rejects == {reason: 6}
            first.stream.close()


async def test_drain_tells_those_who_have_no_node_yet() -> None:
    async with game(silent, node) as h:
        client = await h.connect()
        await client.send(mc.join())
        while not h.upstreams[0].accepted:
            await trio.sleep(0.002)
        h.edge.drain()
        assert "EDGE_DRAINING" in await mc.read_kick(client)
        assert h.rejects == {"EDGE_DRAINING": 1}


# -- a node that dies


async def test_a_node_that_closes_before_it_answers_makes_way_for_the_next() -> None:
    async with game(closing, node) as h:
        client = await playing(h)
        await client.send(b"hello")
        assert await client.read_exactly(5) == b"hello"
        assert h.rejects == {}
    async with game(closing) as h:
        assert await kicked(h) == "BACKEND_CLOSED_EARLY"


async def test_a_node_that_says_nothing_is_given_up_with_words() -> None:
    async with game(silent, first_answer_timeout_s=0.05) as h:
        assert await kicked(h) == "BACKEND_TIMEOUT"


async def test_a_player_is_held_until_a_node_is_there() -> None:
    async with game(None, hold_max=5, hold_s=10, retry_s=0.05, limits=EdgeLimits(backend_down_s=0.1)) as h:
        port = int(h.edge.status()["listeners"][0]["backends"][0]["address"].rpartition(":")[2])
        client = await h.connect()
        await client.send(mc.join())
        while not h.edge.game.room.held:
            await trio.sleep(0.002)
        listener = await h.world.listen_tcp("127.0.0.1", port)
        stream = await listener.accept()
        peer = Peer(stream)
        assert (await mc.read_packet(peer))[0] == 0x00
        await peer.send(ENCRYPTION)
        assert await mc.read_packet(client) == (0x01, b"pretend")
        assert h.edge.game.room.held == 0
        stream.close()
        listener.close()
        assert h.rejects == {}


async def test_who_leaves_the_waiting_room_frees_its_place_at_once() -> None:
    async with game(None, hold_max=1, hold_s=10) as h:
        first = await h.connect()
        await first.send(mc.join())
        while not h.edge.game.room.held:
            await trio.sleep(0.002)
        assert await kicked(h, "Bob") == "WAITING_ROOM_FULL"
        first.stream.close()
        await h.until_sessions(0)
        assert h.edge.game.room.held == 0


async def test_the_waiting_room_ends_with_words() -> None:
    async with game(None, hold_max=1, hold_s=0.1, retry_s=0.02) as h:
        assert await kicked(h) == "WAITING_ROOM_TIMEOUT"
        assert h.rejects == {"WAITING_ROOM_TIMEOUT": 1}


async def test_who_is_thrown_out_again_and_again_is_led_to_another_node_and_then_told() -> None:
    async with game(kicking, kicking, loop_max=2, loop_window_s=60) as h:
        for _ in range(4):
            client = await playing(h)
            assert await client.read_to_end() == b""
            client.stream.close()
            await h.until_sessions(0)
        assert [each.accepted for each in h.upstreams] == [2, 2]
        assert await kicked(h) == "PLAYER_THROWN_OUT"
        await playing(h, "Bob")


async def test_a_player_returns_to_the_node_that_died_when_it_is_back() -> None:
    async def dying(peer: Peer) -> None:
        await kicking(peer)

    async with game(node, dying, loop_max=0) as h:
        h.edge.game.remembered.remember("Alice", "127.0.0.1", "b1", trio.current_time() + 60)
        for expected in (1, 2):
            client = await playing(h)
            await client.read_to_end()
            client.stream.close()
            await h.until_sessions(0)
            assert h.upstreams[1].accepted == expected
        await playing(h, "Bob")
        assert (h.upstreams[0].accepted, h.upstreams[1].accepted) == (1, 2)


# -- transfers


async def test_a_token_in_the_host_is_handed_on_and_kept_from_the_node() -> None:
    heard: list[bytes] = []

    async def listening(peer: Peer) -> None:
        heard.append((await mc.read_packet(peer))[1])
        await mc.read_packet(peer)
        await peer.send(ENCRYPTION)
        await peer.read_to_end()

    class Known:
        async def arrived(self, session: Session, token: bytes) -> Reject | None:
            if token == b"good token":
                session.bound = "b1"
            return None if token != b"bad" else Reject(Reason.GAME_TOKEN_MALFORMED, "as told")

        def playing(self, session: Session) -> None:
            heard.append(session.backend.encode())

        def turned_away(self, session: Session, why: Reject) -> None:
            heard.append(why.reason.encode())

    async with game(node, listening) as h:
        h.edge.game.recognition = Known()
        await playing(h, host=host_with(b"good token", "play.example.org") + "\0FML2\0", intent=3)
        assert heard[1] == b"b1"
        assert b"\x18play.example.org\0FML2\0" in heard[0] or b"play.example.org\0FML2\0" in heard[0]
        assert b"fl1-" not in heard[0]
        assert await kicked(h, host=host_with(b"bad", "play.example.org")) == "GAME_TOKEN_MALFORMED"


async def test_a_made_up_token_is_refused() -> None:
    async with game(node) as h:
        assert await kicked(h, host="fl1-0000.play.example.org") == "GAME_TOKEN_MALFORMED"
        assert await kicked(h, host=host_with(b"unknown", "play.example.org")) == "GAME_TOKEN_MALFORMED"
        assert h.rejects == {"GAME_TOKEN_MALFORMED": 2}


# -- bad input


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xff\xff\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", bytes(100),
        mc.handshake(b"\xff" * 255), mc.handshake(intent=7), mc.handshake(intent=1) + mc.frame(0x05),
        mc.handshake() + mc.login_start("x" * 100), mc.handshake() + b"\xff\xff\xff\xff\xff",
    ],
)  # fmt: skip
async def test_garbage_is_refused_counted_and_never_forwarded(raw: bytes) -> None:
    async with game(node) as h:
        client = await h.connect()
        await client.send(raw)
        try:
            said = await client.read_to_end()
        except trio.BrokenResourceError:
            said = b""
        client.stream.close()
        assert not said or b"GAME_PACKET_MALFORMED" in said
        await h.until_sessions(0)
        assert h.rejects == {"GAME_PACKET_MALFORMED": 1}
        assert h.upstreams[0].accepted == 0


@pytest.mark.parametrize("raw", [b"", b"\x20\x00", mc.handshake(), mc.handshake(intent=1)])
async def test_a_slow_client_is_given_up(raw: bytes) -> None:
    async with game(node, opening_timeout_s=0.1) as h:
        client = await h.connect()
        await client.send(raw) if raw else None
        try:
            await client.read_to_end()
        except trio.BrokenResourceError:
            pass
        client.stream.close()
        await h.until_sessions(0)
        assert h.rejects == {"GAME_OPENING_TIMEOUT": 1}
        assert h.edge.admission.handshaking == 0


# -- other protocols on the same port


async def test_a_game_port_may_serve_other_protocols_as_well() -> None:
    async def greeter(peer: Peer) -> None:
        await peer.send(b"welcome\n")
        await peer.send(await peer.read_until(b"\n"))

    async with game(greeter, fallback="tcp", motd="Hi") as h:
        quiet = await h.connect()
        assert await quiet.read_until(b"\n") == b"welcome\n"
        await quiet.send(b"hello\n")
        assert await quiet.read_to_end() == b"hello\n"
        eager = await h.connect()
        await eager.send(b"GET / HTTP/1.1\n")
        assert await eager.read_to_end() == b"welcome\nGET / HTTP/1.1\n"
        assert (await status_of(h))["description"] == {"text": "Hi"}
        assert h.rejects == {}
