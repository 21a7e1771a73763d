"""The game's port of a real proxy: every refusal that players read, the list of servers, a player that plays."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.support import minecraft as mc
from tests.support.processes import Fleet, free_port, until
from tests.support.provocations import OF_GAMES, Provocations

from fairlead.protocol.reasons import Reason

pytestmark = pytest.mark.e2e

_here = Provocations()
provokes = _here.provokes
ANSWER = mc.frame(0x01, b"pretend")


class GameServer(threading.Thread):
    """Answers each login; then echoes, or throws the player out."""

    def __init__(self, throws_out: bool = False) -> None:
        super().__init__(daemon=True)
        self._throws_out = throws_out
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self._play, args=(connection,), daemon=True).start()

    def _play(self, connection: socket.socket) -> None:
        with connection:
            connection.recv(4096)
            connection.sendall(ANSWER)
            while not self._throws_out and (data := connection.recv(4096)):
                connection.sendall(data)


class Court:
    """A fleet whose game port leads to these servers by host name."""

    def __init__(self, folder: Path) -> None:
        self.port, self.kept = free_port(), GameServer()
        servers = {"mc-1": self.kept.port, "mc-out": GameServer(throws_out=True).port, "mc-void": free_port()}
        self.fleet = Fleet(
            folder,
            nodes=("lobby-1",),
            proxy={
                "minecraft": {
                    "motd": "Hello", "players_max": 1, "protocol_max": mc.PROTOCOL_1_21, "forwarded": "refuse",
                    "hold_max": 1, "hold_s": 2, "loop_max": 1, "opening_timeout_s": 1,
                },
                "routes": [
                    {"id": "out", "listeners": ["mc"], "host": "out.test", "backends": ["mc-out"]},
                    {"id": "void", "listeners": ["mc"], "host": "*.void.test", "backends": ["mc-void"]},
                ],
            },
        )  # fmt: skip
        path = folder / "proxy.toml"
        text = path.read_text()
        text += f'[[listeners]]\nname = "mc"\nkind = "minecraft"\nport = {self.port}\n'
        text += 'backends = ["mc-1"]\ndefault_backend_id = "mc-1"\n'
        for name, port in servers.items():
            text += f'[[backends]]\nid = "{name}"\nhost = "127.0.0.1"\nport = {port}\n'
        path.write_text(text)

    def dial(self, raw: bytes = b"") -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), 10)
        connection.sendall(raw)
        return connection

    def kicked(self, raw: bytes) -> str:
        """The reason that a client reads."""
        with self.dial(raw) as connection:
            return reason_in(rest_of(connection))


def rest_of(connection: socket.socket) -> bytes:
    found = b""
    try:
        while data := connection.recv(4096):
            found += data
    except ConnectionResetError:
        pass  # What was not the protocol is told nothing.
    return found


def reason_in(raw: bytes) -> str:
    text = json.loads(raw[raw.index(b"{") :])["text"]
    found = re.search(r"\n([A-Z_]+) \S+$", text)
    assert found, text
    return found[1]


@pytest.fixture(scope="module")
def court(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Court]:
    made = Court(tmp_path_factory.mktemp("minecraft"))
    with closing(made.fleet.start()):
        yield made


def sessions(court: Court) -> list[dict[str, Any]]:
    found = court.fleet.ops("GET", "/api/sessions").json()["sessions"]
    return [each for each in found if each["listener"] == "mc"]


def test_a_player_plays_and_the_list_shows_it(court: Court) -> None:
    with court.dial(mc.join("Alice", "anything.test")) as player:
        assert player.recv(4096) == ANSWER
        player.sendall(b"hello")
        assert player.recv(4096) == b"hello"
        with court.dial(mc.handshake(intent=1) + mc.STATUS_REQUEST) as browser:
            raw = browser.recv(4096)
            shown = json.loads(raw[raw.index(b"{") :])
        assert (shown["description"], shown["players"]) == ({"text": "Hello"}, {"max": 1, "online": 1})
        with provokes(court.fleet, Reason.PLAYER_LIMIT):
            assert court.kicked(mc.join("Bob")) == "PLAYER_LIMIT"
    until(lambda: not sessions(court), "the player has left")


@pytest.mark.parametrize("raw", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 10, mc.handshake(b"\xff" * 255)])
def test_garbage(court: Court, raw: bytes) -> None:
    with provokes(court.fleet, Reason.GAME_PACKET_MALFORMED):
        with court.dial(raw) as connection:
            assert rest_of(connection) == b""


def test_a_client_that_does_not_say_what_it_wants(court: Court) -> None:
    with provokes(court.fleet, Reason.GAME_OPENING_TIMEOUT):
        assert court.kicked(mc.handshake()) == "GAME_OPENING_TIMEOUT"


def test_what_is_not_let_in(court: Court) -> None:
    for reason, raw in (
        (Reason.GAME_VERSION_UNSUPPORTED, mc.handshake(protocol=768) + mc.login_start()),
        (Reason.GAME_ADDRESS_FORWARDED, mc.join(host="h\x0010.0.0.1\x00" + "0" * 32)),
        (Reason.GAME_TOKEN_MALFORMED, mc.join(host="fl1-0000.play.test")),
    ):
        with provokes(court.fleet, reason):
            assert court.kicked(raw) == reason


def test_who_is_thrown_out_is_told_when_there_is_no_other_node(court: Court) -> None:
    with court.dial(mc.join("Carol", "out.test")) as player:
        assert rest_of(player) == ANSWER
    until(lambda: not sessions(court), "the player is gone")
    with provokes(court.fleet, Reason.PLAYER_THROWN_OUT):
        assert court.kicked(mc.join("Carol", "out.test")) == "PLAYER_THROWN_OUT"


def test_the_waiting_room(court: Court) -> None:
    with provokes(court.fleet, Reason.WAITING_ROOM_TIMEOUT, Reason.WAITING_ROOM_FULL):
        with court.dial(mc.join("Dave", "a.void.test")) as held:
            until(lambda: [each["player_name"] for each in sessions(court)] == ["Dave"], "Dave waits")
            assert court.kicked(mc.join("Erin", "b.void.test")) == "WAITING_ROOM_FULL"
            assert reason_in(rest_of(held)) == "WAITING_ROOM_TIMEOUT"


def test_every_reason_of_the_game_was_provoked(request: pytest.FixtureRequest) -> None:
    if len([item for item in request.session.items if item.fspath == request.node.fspath]) < 8:
        pytest.skip("only with the whole file")
    assert OF_GAMES - _here.reasons == set()
