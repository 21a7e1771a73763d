"""A client that speaks the real protocol joins a real server through the proxy, is transferred, and plays on."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import Fleet, free_port, until
from tests.support.rcon_server import RconServer
from tests.support.tools import minecraft_environment, tool

pytestmark = pytest.mark.e2e
PROGRAMS = Path(__file__).parents[1] / "minecraft"
NODES = ("lobby-1", "lobby-2")


class Program:
    """One of tests/minecraft: takes lines, tells events."""

    def __init__(self, program: str, **options: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self._popen = subprocess.Popen(
            [tool("node"), PROGRAMS / program, json.dumps(options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=minecraft_environment(), text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        for line in self._popen.stdout:
            self.events.append(json.loads(line))

    def say(self, line: str) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write(line + "\n")
        self._popen.stdin.flush()

    def told(self, event: str, count: int = 1) -> dict[str, Any]:
        """The event, once it was told so often."""

        def found() -> list[dict[str, Any]]:
            return [each for each in self.events if each["event"] == event]

        until(lambda: len(found()) >= count, f"{event} is told", 30.0, lambda: json.dumps(self.events))
        return found()[count - 1]

    def close(self) -> None:
        self._popen.kill()
        self._reader.join(10)
        with self._popen:  # which closes its pipes
            pass


class Court:
    """A proxy before two real servers, each with a node that refers players over RCON."""

    def __init__(self, folder: Path) -> None:
        self.port, self.servers, self.consoles = free_port(), {}, {}
        for name in NODES:
            port = free_port()
            self.servers[name] = Program("server.js", port=port, name=name)
            self.servers[name].told("listening")
            self.consoles[name] = RconServer("sesame")
            self.consoles[name].on_command = self._console(name)
        self.fleet = Fleet(
            folder, nodes=NODES,
            proxy={"transfer": {"host_suffix": "play.test", "timeout_ms": 20_000}},
        )  # fmt: skip
        path = folder / "proxy.toml"
        text = path.read_text()
        text += f'[[listeners]]\nname = "mc"\nkind = "minecraft"\nport = {self.port}\n'
        text += 'backends = ["mc-lobby-1", "mc-lobby-2"]\ndefault_backend_id = "mc-lobby-1"\n'
        for name in NODES:
            port = self.servers[name].events[0]["port"]
            text += f'[[backends]]\nid = "mc-{name}"\nnode = "{name}"\nhost = "127.0.0.1"\nport = {port}\n'
            node = folder / f"{name}.toml"
            rcon = f'[rcon]\nport = {self.consoles[name].port}\npassword = "sesame"\n'
            node.write_text(node.read_text() + rcon)
        path.write_text(text)

    def _console(self, name: str) -> Any:
        def told(command: str) -> str:
            _, host, port, player = command.split()
            self.servers[name].say(f"transfer {player} {host} {port}")
            return f"Transferring {player} to {host}:{port}"

        return told

    def close(self) -> None:
        self.fleet.close()
        for program in self.servers.values():
            program.close()
        for console in self.consoles.values():
            console.close()


@pytest.fixture
def court(tmp_path: Path) -> Iterator[Court]:
    made = Court(tmp_path)
    with closing(made):
        made.fleet.start()
        yield made


def test_a_bot_joins_is_transferred_and_plays_on(court: Court) -> None:
    bot = Program("bot.js", host="play.test", port=court.port, name="Ada", dial="127.0.0.1")
    with closing(bot):
        bot.told("play")
        bot.say("say hello")
        assert bot.told("echo")["text"] == "lobby-1: hello"
        (session,) = court.fleet.ops("GET", "/api/sessions?player=ada").json()["sessions"]
        assert (session["state"], session["node"], session["protocol"] >= 766) == ("PLAYING", "lobby-1", True)
        moved = court.fleet.ops(
            "POST", f"/api/sessions/{session['id']}/transfer", {"to": "mc-lobby-2"}, {"prefer": "wait=20"}
        )
        assert (moved.status, moved.json()["state"]) == (200, "COMPLETED"), (moved, bot.events)
        assert bot.told("transfer")["host"].endswith(".play.test")
        assert bot.told("play", 2)["intent"] == 3
        assert court.servers["lobby-2"].told("join")["host"] == "play.test", (
            "the token is none of the node's business"
        )
        bot.say("say again")
        assert bot.told("echo", 2)["text"] == "lobby-2: again"
        (after,) = court.fleet.ops("GET", "/api/sessions?player=ada").json()["sessions"]
        assert (after["node"], after["previous_session"]) == ("lobby-2", session["id"])
        dispatched = court.fleet.ops(
            "POST", "/api/dispatch",
            {"command": "fairlead:transfer", "args": {"session": after["id"], "to": "mc-lobby-1"}},
            {"prefer": "wait=20"},
        ).json()  # fmt: skip
        assert dispatched["status"] == "COMPLETED", dispatched
        bot.told("play", 3)
        bot.say("say home")
        assert bot.told("echo", 3)["text"] == "lobby-1: home"
