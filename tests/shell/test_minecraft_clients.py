"""Real clients through the edge: a status library, and a client and servers that speak the whole protocol."""

from __future__ import annotations

import trio
from mcstatus import JavaServer, LegacyServer
from tests.support.edge_harness import Peer, Script, running_edge
from tests.support.minecraft_programs import Program, running

from fairlead.protocol.reasons import Reject
from fairlead.proxy.edge.minecraft.host_token import host_with
from fairlead.proxy.edge.sessions import Session
from fairlead.proxy.edge.settings import EdgeLimits, GameConfig
from fairlead.runtime.relay import relay
from fairlead.runtime.world import RealWorld

LIMITS = EdgeLimits(backend_down_s=0.2)


class Moved:
    bytes_in = 0
    bytes_out = 0


def leading_to(server: Program) -> Script:
    """A node that is a real server, wherever that listens."""

    async def lead(peer: Peer) -> None:
        port = next(each["port"] for each in server.said if each["event"] == "listening")
        try:
            stream = await RealWorld().connect_tcp("127.0.0.1", port)
        except OSError:
            return
        ended = await relay(peer.stream, stream, Moved(), 60)
        if ended is not None:
            peer.stream.abort()
        stream.close()

    return lead


class Transfers:
    """Stands for the proxy's own: a token that is a backend's name leads there."""

    async def arrived(self, session: Session, token: bytes) -> Reject | None:
        session.bound = token.decode()
        return None

    def playing(self, session: Session) -> None:
        pass

    def turned_away(self, session: Session, why: Reject) -> None:
        pass


async def test_a_player_joins_plays_is_transferred_and_plays_on() -> None:
    async with running("server.js", name="lobby") as lobby, running("server.js", name="arena") as arena:
        await lobby.until("listening")
        await arena.until("listening")
        scripts = leading_to(lobby), leading_to(arena)
        async with running_edge(
            *scripts, kind="minecraft", limits=LIMITS, game=GameConfig(), timeout_s=60.0
        ) as h:
            h.edge.game.recognition = Transfers()
            port = h.edge.port("front")
            options = {"host": "play.example.org", "dial": "127.0.0.1", "port": port}
            async with running("bot.js", name="Alice", **options) as bot:
                await bot.until("play")
                assert (await lobby.until("join"))["host"] == "play.example.org"
                await bot.tell("say hello")
                assert (await bot.until("echo"))["text"] == "lobby: hello"
                [row] = h.edge.status()["sessions"]
                told = (row["player_name"], row["state"], row["backend"], row["protocol"])
                assert told == ("Alice", "PLAYING", "b0", 767)

                await lobby.tell(f"transfer Alice {host_with(b'b1', 'play.example.org')} {port}")
                assert (await bot.until("play", 2))["intent"] == 3
                # The token is the proxy's, and the node hears of an ordinary login.
                assert (await arena.until("join"))["host"] == "play.example.org"
                await bot.tell("say hello again")
                assert (await bot.until("echo", 2))["text"] == "arena: hello again"
                await h.until_sessions(1)

                await arena.tell("kick Alice so long")
                assert "so long" in (await bot.until("kicked"))["text"]
                await bot.until("end")
            await h.until_sessions(0)
            assert h.rejects == {}


async def test_a_client_waits_in_its_login_until_a_server_is_up() -> None:
    game = GameConfig(hold_max=5, hold_s=28, retry_s=0.1)
    async with running_edge(None, kind="minecraft", limits=LIMITS, game=game, timeout_s=60.0) as h:
        address = h.edge.status()["listeners"][0]["backends"][0]["address"]
        options = {"host": "127.0.0.1", "port": h.edge.port("front"), "version": "1.20.6"}
        async with running("bot.js", name="Alice", **options) as bot:
            while not h.edge.game.room.held:
                await trio.sleep(0.01)
            port = int(address.rpartition(":")[2])
            async with running("server.js", name="late", port=port, version="1.20.6"):
                await bot.until("play")
                assert h.edge.game.room.held == 0
                await bot.tell("say at last")
                assert (await bot.until("echo"))["text"] == "late: at last"
            await bot.until("end")
        assert h.edge.game.remembered.backend_for("Alice", "127.0.0.1", trio.current_time()) == "b0"


async def test_a_player_is_kicked_with_words_where_there_is_no_node() -> None:
    async with running_edge(
        None, kind="minecraft", limits=LIMITS, game=GameConfig(hold_max=0), timeout_s=60.0
    ) as h:
        for number, version in enumerate(("1.21.1", "1.20.4", "1.8.8"), 1):
            options = {"host": "127.0.0.1", "port": h.edge.port("front"), "version": version}
            async with running("bot.js", name="Alice", **options) as bot:
                assert (await bot.until("kicked"))["text"].startswith("No server could be reached.")
                await bot.until("end")
            assert h.rejects == {"BACKEND_UNREACHABLE": number}


async def test_the_status_library_reads_the_proxys_own_status() -> None:
    game = GameConfig(motd="Hello \u00a7athere", offline_motd="Away", version_name="1.21", players_max=42)
    async with running_edge(None, kind="minecraft", game=game) as h:
        port = h.edge.port("front")
        server = JavaServer("127.0.0.1", port, timeout=5)
        status = await trio.to_thread.run_sync(server.status)
        assert (status.motd.to_plain(), status.version.name) == ("Hello there", "1.21")
        assert (status.players.online, status.players.max) == (0, 42)
        assert await trio.to_thread.run_sync(server.ping) < 5_000
        legacy = await trio.to_thread.run_sync(LegacyServer("127.0.0.1", port, timeout=5).status)
        assert (legacy.motd.to_plain(), legacy.version.name) == ("Hello there", "1.21")
        assert (legacy.players.online, legacy.players.max) == (0, 42)
        assert h.rejects == {}
