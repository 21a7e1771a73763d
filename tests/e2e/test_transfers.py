"""Clients moved between real processes, and every reason of transfers and of players' commands, provoked.

HTTP clients over real sockets; players are game clients whose node refers them over RCON to a server of the test.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.support.ctl import ctl, ctl_json
from tests.support.processes import Fleet, free_port, http_call, until
from tests.support.provocations import OF_TRANSFERS, Provocations, refused
from tests.support.rcon_server import RconServer

from fairlead.protocol.reasons import Reason

pytestmark = pytest.mark.e2e

_here = Provocations()
provokes, _provoked = _here.provokes, _here.reasons

HANDLERS = '''
"""A node whose players enter commands: one line on a local port is one command."""
import json
import os
import trio
from fairlead.backend import Node
from fairlead.protocol.reasons import Refused

node = Node()

@node.command("play:whoami", effect="idempotent", player_only=True)
async def whoami(ctx):
    return {"principal": ctx.identity.principal, "node": ctx.node_id}

@node.background
async def console(background):
    async def serve(stream):
        line = b""
        while not line.endswith(b"\\n"):
            line += await stream.receive_some(4096)
        asked = json.loads(line)
        try:
            value = await background.player_command(**asked)
        except Refused as refused:
            value = {"refused": refused.reason.value}
        await stream.send_all(json.dumps(value).encode())
        await stream.aclose()
    await trio.serve_tcp(serve, int(os.environ["CONSOLE_PORT"]), host="127.0.0.1")
'''


@pytest.fixture(autouse=True)
def _remember(request: pytest.FixtureRequest) -> None:
    _here.tests_run.add(request.node.name)


class Court:
    """A fleet with a game listener before two silent game servers, whose nodes ask one RCON server."""

    def __init__(self, folder: Path) -> None:
        self.rcon = RconServer("sesame")
        self.games = {name: GameServer() for name in ("lobby-1", "lobby-2")}
        self.mc, self.consoles = free_port(), {name: free_port() for name in self.games}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "play_handlers.py").write_text(HANDLERS)
        fleet = self.fleet = Fleet(
            folder,
            proxy={
                "transfer": {"host": "127.0.0.1", "timeout_ms": 1_500, "pending_max": 1},
                "players": {"commands_max": 3, "commands_window_ms": 600_000},
            },
            node={"rcon": {"port": self.rcon.port, "password": "sesame"}},
            environ={},
        )
        path = folder / "proxy.toml"
        text = path.read_text()
        text += f'[[listeners]]\nname = "mc"\nkind = "minecraft"\nport = {self.mc}\n'
        text += 'backends = ["mc-1", "mc-2", "mc-3"]\n'
        text += 'default_backend_id = "mc-1"\n'
        for number, (name, game) in enumerate(self.games.items(), 1):
            text += (
                f'[[backends]]\nid = "mc-{number}"\nnode = "{name}"\nhost = "127.0.0.1"\nport = {game.port}\n'
            )
            text += 'namespaces = ["play"]\n'
        text += (
            f'[[backends]]\nid = "mc-3"\nnode = "never-linked"\nhost = "127.0.0.1"\nport = {free_port()}\n'
        )
        path.write_text(text)
        for name in self.games:
            process = fleet.processes[name]
            process.arguments = [
                "play_handlers:node" if each.startswith("fairlead.backend.demo") else each
                for each in process.arguments
            ]
            process.environ = {**process.environ, "CONSOLE_PORT": str(self.consoles[name])}

    def close(self) -> None:
        self.fleet.close()
        self.rcon.close()
        for game in self.games.values():
            game.close()

    def session(self, player: str) -> Any:
        found = self.fleet.ops("GET", f"/api/sessions?player={player}").json()["sessions"]
        return found[-1] if found else None

    def enters(self, node: str, **asked: Any) -> Any:
        """What a player is told who enters a command on a node."""
        with socket.create_connection(("127.0.0.1", self.consoles[node]), 5.0) as sock:
            sock.sendall(json.dumps(asked).encode() + b"\n")
            answer = b""
            while data := sock.recv(65_536):
                answer += data
        return json.loads(answer)

    def move(self, session: str, to: str, wait_s: int = 0) -> Any:
        headers = {"prefer": f"wait={wait_s}"} if wait_s else {}
        return self.fleet.ops("POST", f"/api/sessions/{session}/transfer", {"to": to}, headers)

    def idle(self) -> bool:
        return bool(self.fleet.ops("GET", "/status").json()["sessions"]["transfers"]["pending"] == 0)


class GameServer:
    """Answers a login with a few bytes, and holds the connection."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._held: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._held.append(sock)
            threading.Thread(target=self._answer, args=(sock,), daemon=True).start()

    def _answer(self, sock: socket.socket) -> None:
        try:
            if sock.recv(4_096):
                sock.sendall(b"\x02\x03\x00")
        except OSError:
            pass

    def close(self) -> None:
        for sock in (self._listener, *self._held):
            sock.close()


def packet(number: int, body: bytes) -> bytes:
    content = bytes((number,)) + body
    return varint(len(content)) + content


def varint(value: int) -> bytes:
    return bytes((value,)) if value < 128 else bytes((value & 127 | 128, value >> 7))


def text(value: str) -> bytes:
    return varint(len(value)) + value.encode()


def login(port: int, name: str, host: str = "127.0.0.1", intent: int = 2) -> socket.socket:
    """A client of 1.20.5 (protocol 766) that joins."""
    sock = socket.create_connection(("127.0.0.1", port), 5.0)
    handshake = packet(0, b"\xfe\x05" + text(host) + port.to_bytes(2, "big") + bytes((intent,)))
    sock.sendall(handshake + packet(0, text(name) + bytes(16)))
    return sock


@pytest.fixture(scope="module")
def court(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Court]:
    made = Court(tmp_path_factory.mktemp("transfers"))
    with closing(made):
        made.fleet.processes["proxy"].start()
        for name in made.games:
            made.fleet.processes[name].start()

        def ready() -> bool:
            nodes = {node["id"]: node for node in made.fleet.ops("GET", "/api/nodes").json()["nodes"]}
            return all(
                nodes[name]["registry"]["synchronized"] and nodes[name]["offers"] for name in made.games
            )

        until(ready, "the court is ready", 20.0, made.fleet.tails)
        yield made


@pytest.fixture
def ada(court: Court) -> Iterator[Any]:
    """A player on the first node."""
    with closing(login(court.mc, "ada")):
        yield until(
            lambda: (found := court.session("ada")) and found["state"] == "PLAYING" and found, "ada plays",
            more=court.fleet.tails,
        )  # fmt: skip
    until(lambda: court.session("ada") is None and court.idle(), "ada has left", more=court.fleet.tails)


def answers(court: Court) -> None:
    assert court.fleet.ops("GET", "/health/live").status == 200


# -- what works


def test_an_http_client_with_a_sticky_cookie_is_transferred(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, proxy={"routing": {"sticky": "cookie"}})
    with (
        closing(fleet.start()),
        closing(http.client.HTTPConnection("127.0.0.1", fleet.http, timeout=10)) as client,
    ):
        jar: dict[str, str] = {}

        def ask(connection: http.client.HTTPConnection) -> str:
            connection.request("GET", "/whoami", headers=jar)
            answer = connection.getresponse()
            if cookie := answer.getheader("set-cookie"):
                jar["cookie"] = cookie.partition(";")[0]
            return str(json.loads(answer.read())["node"])

        first = ask(client)
        other = "lobby-2" if first == "lobby-1" else "lobby-1"
        assert ask(client) == first
        listed = fleet.ops("GET", f"/api/sessions?kind=http&backend={first}").json()["sessions"]
        (session,) = [each["id"] for each in listed if each["peer"] == "127.0.0.1"]
        moved = http_call(
            fleet.ops_port,
            "POST",
            f"/api/sessions/{session}/transfer",
            {"to": other},
            {"x-ops-key": fleet.ops_key},
        )
        assert (moved.status, moved.json()["state"]) == (200, "COMPLETED")
        assert ask(client) == other
        with closing(http.client.HTTPConnection("127.0.0.1", fleet.http, timeout=10)) as anew:
            assert ask(anew) == other, "the cookie leads there too"
        refused(
            fleet.ops("POST", f"/api/sessions/{session}/transfer", {"to": other}), Reason.ALREADY_CONNECTED
        )


def test_a_player_is_referred_over_rcon_and_plays_on_where_it_was_sent(court: Court, ada: Any) -> None:
    court.rcon.answer = "Transferring ada to 127.0.0.1"
    answer = court.move(ada["id"], "mc-2")
    assert answer.status == 202, answer
    until(lambda: court.rcon.commands, "the server was told", more=court.fleet.tails)
    assert court.rcon.commands.pop() == f"transfer 127.0.0.1 {court.mc} ada"
    with closing(login(court.mc, "ada", intent=3)):
        moved = until(
            lambda: (found := court.session("ada")) and found["backend"] == "mc-2" and found, "it plays there",
            more=court.fleet.tails,
        )  # fmt: skip
        assert moved["previous_session"] == ada["id"]
        shown = court.fleet.ops("GET", f"/api/sessions/{moved['id']}").json()
        assert shown["transfer"]["state"] == "COMPLETED"
        metric = court.fleet.metric("fairlead_transfers_total", kind="minecraft", result="COMPLETED")
        assert metric == 1


def test_a_players_command_runs_where_the_player_is(court: Court, ada: Any) -> None:
    told = court.enters("lobby-1", command="play:whoami", player="ada")
    assert told["node"] == "lobby-1"
    assert told["principal"].startswith("player:")


# -- what is refused


def provoked(court: Court, *reasons: Reason, logged: bool = True) -> Any:
    return provokes(court.fleet, *reasons, logged=logged, serves=lambda: answers(court))


def test_transfers_that_cannot_be(court: Court, ada: Any) -> None:
    for session, to, reason in (
        ("nobody", "mc-2", Reason.SESSION_UNKNOWN), (ada["id"], "mc-9", Reason.BACKEND_NOT_FOUND),
        (ada["id"], "mc-1", Reason.ALREADY_CONNECTED), (ada["id"], "mc-3", Reason.BACKEND_STATUS_UNKNOWN),
    ):  # fmt: skip
        with provoked(court, reason):
            refused(court.move(session, to), reason)
    court.fleet.ops("POST", "/api/nodes/lobby-2/drain")
    with provoked(court, Reason.BACKEND_UNAVAILABLE):
        refused(court.move(ada["id"], "mc-2"), Reason.BACKEND_UNAVAILABLE)
    court.fleet.ops("POST", "/api/nodes/lobby-2/undrain")


def test_a_kind_of_client_that_cannot_be_told_to_come_again(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    with closing(fleet.start()), closing(socket.create_connection(("127.0.0.1", fleet.game), 5.0)) as sock:
        sock.recv(4_096)
        (session,) = fleet.ops("GET", "/api/sessions?kind=tcp").json()["sessions"]
        other = "game-lobby-2" if session["backend"] == "game-lobby-1" else "game-lobby-1"
        with provokes(fleet, Reason.TRANSFER_UNSUPPORTED):
            refused(
                fleet.ops("POST", f"/api/sessions/{session['id']}/transfer", {"to": other}),
                Reason.TRANSFER_UNSUPPORTED,
            )


def test_a_node_that_says_no(court: Court, ada: Any) -> None:
    court.rcon.answer = "No player was found"
    with provoked(court, Reason.REFERRAL_REJECTED):
        answer = court.move(ada["id"], "mc-2", wait_s=5)
        refused(answer, Reason.REFERRAL_REJECTED)
    assert "No player was found" in answer.json()["detail"]
    assert court.session("ada")["state"] == "PLAYING"
    court.rcon.commands.clear()


def test_a_client_that_does_not_come_back(court: Court, ada: Any) -> None:
    court.rcon.answer = "Transferring ada"
    with closing(login(court.mc, "bob")):
        until(lambda: (found := court.session("bob")) and found["state"] == "PLAYING", "bob plays")
        with provoked(court, Reason.TRANSFER_TIMEOUT, Reason.PLAYER_NOT_READY, Reason.TRANSFER_LIMIT):
            assert court.move(ada["id"], "mc-2").status == 202
            refused(court.move(ada["id"], "mc-2"), Reason.PLAYER_NOT_READY)
            refused(court.move(court.session("bob")["id"], "mc-2"), Reason.TRANSFER_LIMIT)
            until(court.idle, "its time is over", more=court.fleet.tails)
    assert court.session("ada")["state"] == "PLAYING"


def test_a_made_up_token(court: Court) -> None:
    from fairlead.proxy.edge.minecraft.host_token import host_with

    with provoked(court, Reason.TRANSFER_TOKEN_REJECTED):
        with closing(login(court.mc, "eve", host_with(b"\x01" * 90, "play.example"), intent=3)) as sock:
            said = sock.recv(4_096)
    assert b"TRANSFER_TOKEN_REJECTED" in said or b"token" in said


def test_players_commands_that_are_refused(court: Court, ada: Any) -> None:
    with provoked(court, Reason.PLAYER_NOT_ON_NODE):
        told = court.enters("lobby-2", command="play:whoami", session=ada["id"])
    assert told == {"refused": "PLAYER_NOT_ON_NODE"}
    with provoked(court, Reason.PLAYER_ONLY):
        refused(court.fleet.dispatch("play:whoami"), Reason.PLAYER_ONLY)
    with provoked(court, Reason.PLAYER_RATE_LIMITED):
        told = {}
        while "refused" not in told:
            told = court.enters("lobby-1", command="play:whoami", session=ada["id"])
    assert told == {"refused": "PLAYER_RATE_LIMITED"}


def test_ctl_shows_and_moves(court: Court, ada: Any) -> None:
    court.rcon.answer = "No player was found"
    said = ctl(court.fleet, "sessions", "--player", "ada")
    assert (said.status, ada["id"] in said.out) == (0, True), said
    assert ctl_json(court.fleet, "sessions", ada["id"])["player_name"] == "ada"
    said = ctl(court.fleet, "sessions", "transfer", ada["id"], "--to", "mc-2")
    assert (said.status, "REFERRAL_REJECTED" in said.err) == (1, True), said
    court.rcon.commands.clear()


def test_every_reason_of_transfers_was_provoked(request: pytest.FixtureRequest) -> None:
    ours = {item.name for item in request.session.items if item.path == Path(__file__)}
    if ours != _here.tests_run:
        pytest.skip("only with the whole file")
    missing = sorted(each.value for each in OF_TRANSFERS - _provoked)
    assert not missing, f"not provoked: {', '.join(missing)}"
